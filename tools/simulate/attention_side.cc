#include "tools/simulate/attention_side.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/check.h"
#include "common/transport/holder_choice.h"

namespace tandem::simulate {
namespace {

// What rows at positions [first, end) see of positions 0 to their own.
int64_t PairsOf(int64_t first, int64_t end) {
  return first >= end ? 0 : (end * (end + 1) - first * (first + 1)) / 2;
}

}  // namespace

AttentionSide::AttentionSide(const Environment& environment, int number, uint64_t seed,
                             std::function<void(StepResult)> on_result)
    : events_(*environment.events),
      costs_(*environment.costs),
      routing_(*environment.routing),
      placement_(*environment.placement),
      experts_(*environment.experts),
      on_result_(std::move(on_result)),
      random_(seed),
      rotation_(static_cast<uint64_t>(number)) {}

// ---- What the gateway says ----------------------------------------------------------------------

void AttentionSide::Run(Step step) {
  for (const NewBatch& batch : step.new_batches) {
    RowBatchState& state = batches_[batch.batch];
    state.runs = batch.runs;
    state.decode = batch.runs.front().last_sampled;
    int32_t first_row = 0;
    size_t next = 0;  // of the outputs, which ascend by row
    for (const RowRun& run : batch.runs) {
      for (; next < batch.outputs.size() && batch.outputs[next].row < first_row + run.count;
           ++next) {
        RowResult& output = state.outputs.emplace_back();
        output.sequence = run.sequence;
        output.position = run.first_position + batch.outputs[next].row - first_row;
      }
      first_row += run.count;
    }
  }
  queue_.push_back(std::move(step));
  Work();
}

void AttentionSide::Cancel(SequenceId sequence) {
  for (auto& [id, batch] : batches_) {
    const auto is_dead = [&](const auto& of) { return of.sequence == sequence; };
    std::erase_if(batch.runs, is_dead);
    std::erase_if(batch.outputs, is_dead);
  }
}

// ---- The engine ---------------------------------------------------------------------------------

Nanos AttentionSide::IdleSoFar() const {
  const bool idle_now = !engine_busy_ && !walks_.empty();
  return idle_ + (idle_now ? events_.now() - idle_since_ : 0);
}

std::set<SequenceId> AttentionSide::SequencesOf(const Step& step) const {
  std::set<SequenceId> sequences;
  for (const Advance& advance : step.advance) {
    const auto batch = batches_.find(advance.batch);
    if (batch == batches_.end()) continue;
    for (const RowRun& run : batch->second.runs) sequences.insert(run.sequence);
  }
  return sequences;
}

bool AttentionSide::TakeStep() {
  const auto under_way = std::count_if(walks_.begin(), walks_.end(), [](const Walk& walk) {
    return walk.state != WalkState::kDone;
  });
  if (queue_.empty() || under_way >= static_cast<int64_t>(kMaxWalks)) return false;
  const std::set<SequenceId> wanted = SequencesOf(queue_.front());
  for (const Walk& walk : walks_) {
    for (const SequenceId sequence : SequencesOf(walk.step)) {
      if (wanted.contains(sequence)) return false;
    }
  }
  Walk& walk = walks_.emplace_back();
  walk.step = std::move(queue_.front());
  queue_.pop_front();
  walk.begun = events_.now();
  walk.idle_at_begin = IdleSoFar();
  walk.layer = costs_.model().num_layers;
  for (const Advance& advance : walk.step.advance) {
    walk.layer = std::min(walk.layer, static_cast<int>(advance.first_layer));
    walk.end_layer = std::max(walk.end_layer, static_cast<int>(advance.end_layer));
  }
  return true;
}

void AttentionSide::Work() {
  if (engine_busy_) return;
  if (walks_.empty()) idle_since_ = events_.now();
  while (TakeStep()) {
  }
  for (Walk& walk : walks_) {
    if (walk.state == WalkState::kReady) return BeginLayer(&walk);
  }
}

void AttentionSide::Occupy(Walk* walk, Nanos duration, std::function<void()> then) {
  TANDEM_CHECK(!engine_busy_);
  idle_ = IdleSoFar();
  engine_busy_ = true;
  busy_ += duration;
  walk->times.attention += duration;
  events_.After(duration, [this, then = std::move(then)] {
    engine_busy_ = false;
    idle_since_ = events_.now();
    then();
    Work();
  });
}

LayerRows AttentionSide::RowsOf(const Walk& walk) const {
  LayerRows work;
  for (const Advance& advance : walk.step.advance) {
    if (!IsActive(advance, walk.layer)) continue;
    for (const RowRun& run : batches_.at(advance.batch).runs) {
      const int64_t first = run.first_position;
      const int64_t end = first + run.count;
      const int64_t expanded_end =
          std::clamp<int64_t>(expanded_lengths_.at(run.sequence), first, end);
      work.rows += run.count;
      work.expanded_pairs += PairsOf(first, expanded_end);
      work.absorbed_pairs += PairsOf(expanded_end, end);
      if (expanded_end > first) work.expanded_positions += expanded_end;
    }
  }
  return work;
}

void AttentionSide::BeginLayer(Walk* walk) {
  if (walk->layer == walk->end_layer) return FinishWalk(walk);
  const LayerRows work = RowsOf(*walk);
  if (work.rows == 0) {
    ++walk->layer;
    return BeginLayer(walk);
  }
  const bool moe = costs_.model().IsMoeLayer(walk->layer);
  Occupy(walk, costs_.Attention(work, moe), [this, walk, moe, rows = work.rows] {
    if (!moe) return NextLayer(walk);
    Dispatch(walk);
    walk->sharing = true;
    Occupy(walk, costs_.SharedExperts(rows), [this, walk] {
      walk->sharing = false;
      walk->shared_done = events_.now();
      EndIfBack(walk);
    });
  });
}

void AttentionSide::NextLayer(Walk* walk) {
  ++walk->layer;
  walk->state = WalkState::kReady;
}

void AttentionSide::Dispatch(Walk* walk) {
  const ModelConfig& model = costs_.model();
  const int layer = walk->layer;
  walk->state = WalkState::kAway;
  row_experts_.clear();
  for (const Advance& advance : walk->step.advance) {
    if (!IsActive(advance, layer)) continue;
    for (const RowRun& run : batches_.at(advance.batch).runs) {
      for (int row = 0; row < run.count; ++row) routing_.Draw(layer, random_, row_experts_);
    }
  }
  std::vector<int64_t> routes(model.num_experts);
  for (const int32_t expert : row_experts_) ++routes[expert];
  std::vector<ExpertDemand> demands;
  for (int32_t expert = 0; expert < model.num_experts; ++expert) {
    if (routes[expert] > 0) {
      demands.push_back({expert, routes[expert], placement_.Holders(layer, expert)});
    }
  }
  const std::map<int32_t, WorkerId> holders =
      ChooseHolders(std::move(demands), work_out_, rotation_++);

  std::map<WorkerId, std::shared_ptr<ExpertCall>> calls;
  std::vector<ExpertCall*> call_of(model.num_experts);
  for (const auto& [expert, worker] : holders) {
    std::shared_ptr<ExpertCall>& call = calls[worker];
    if (call == nullptr) call = std::make_shared<ExpertCall>();
    call->experts.emplace_back(expert, routes[expert]);
    call_of[expert] = call.get();
  }
  // A row whose experts are all at one worker is combined there; else each route's row returns.
  const auto top_k = static_cast<size_t>(model.experts_per_token);
  std::vector<ExpertCall*> of_row;
  for (size_t begin = 0; begin < row_experts_.size(); begin += top_k) {
    of_row.clear();
    for (size_t i = begin; i < begin + top_k; ++i) {
      ExpertCall* const call = call_of[row_experts_[i]];
      if (std::find(of_row.begin(), of_row.end(), call) == of_row.end()) {
        of_row.push_back(call);
        ++call->rows;
      }
      ++call->reply_rows;
    }
    if (of_row.size() == 1) of_row.front()->reply_rows -= static_cast<int64_t>(top_k) - 1;
  }
  ++layers_;
  expert_calls_ += static_cast<int64_t>(calls.size());
  walk->calls_out = static_cast<int>(calls.size());
  for (auto& [worker, call] : calls) {
    int64_t num_routes = 0;
    for (const auto& [expert, count] : call->experts) num_routes += count;
    const int64_t work = PartWork(num_routes, static_cast<int64_t>(call->experts.size()));
    work_out_[worker] += work;
    call->layer = layer;
    call->sent = events_.now();
    call->answered = [this, walk, worker = worker, work](const auto& answer) {
      if ((work_out_[worker] -= work) == 0) work_out_.erase(worker);
      const Nanos received = in_.Take(events_.now(), costs_.Transfer(answer->reply_rows));
      events_.At(received, [this, walk, answer] { OnReply(walk, *answer); });
    };
    const Nanos left = out_.Take(events_.now(), costs_.Transfer(call->rows));
    events_.At(left, [to = experts_[worker - 1].get(), call = call] { to->Send(call); });
  }
}

void AttentionSide::OnReply(Walk* walk, const ExpertCall& call) {
  if (--walk->calls_out > 0) return;
  // The last one: what it went through is what the step waited for, from when the shared experts
  // were done.
  const Nanos all = events_.now() - call.sent;
  const Nanos from = walk->sharing ? events_.now() : std::max(walk->shared_done, call.sent);
  const double share =
      all > 0 ? static_cast<double>(events_.now() - from) / static_cast<double>(all) : 0;
  const auto part = [&](Nanos duration) {
    return static_cast<Nanos>(share * static_cast<double>(duration));
  };
  walk->times.queue += part(call.begun - call.arrived);
  walk->times.experts += part(call.computed - call.begun);
  walk->times.network += part((call.arrived - call.sent) + (events_.now() - call.computed));
  EndIfBack(walk);
  Work();
}

void AttentionSide::EndIfBack(Walk* walk) {
  if (walk->calls_out == 0 && !walk->sharing) NextLayer(walk);
}

void AttentionSide::FinishWalk(Walk* walk) {
  const int num_layers = costs_.model().num_layers;
  int64_t outputs = 0;
  bool decode = false;
  for (const Advance& advance : walk->step.advance) {
    const RowBatchState& batch = batches_.at(advance.batch);
    decode = decode || batch.decode;
    if (advance.end_layer == num_layers) outputs += static_cast<int64_t>(batch.outputs.size());
  }
  Occupy(walk, outputs > 0 ? costs_.Outputs(outputs) : 0, [this, walk, decode, num_layers] {
    StepResult& result = walk->result;
    result.step = walk->step.step;
    for (const Advance& advance : walk->step.advance) {
      result.batches.push_back({advance.batch, advance.end_layer});
      if (advance.end_layer < num_layers) continue;
      const auto batch = batches_.find(advance.batch);
      std::move(batch->second.outputs.begin(), batch->second.outputs.end(),
                std::back_inserter(result.rows));
      batches_.erase(batch);
    }
    StepTimes& times = walk->times;
    times.engine = std::max<Nanos>(events_.now() - walk->begun - times.sum(), 0);
    step_times_.attention += times.attention;
    step_times_.network += times.network;
    step_times_.queue += times.queue;
    step_times_.experts += times.experts;
    step_times_.engine += times.engine;
    if (decode) decode_steps_ms_.push_back(1e-6 * static_cast<double>(events_.now() - walk->begun));
    walk->state = WalkState::kDone;
    AnswerInOrder();
  });
}

void AttentionSide::AnswerInOrder() {
  while (!walks_.empty() && walks_.front().state == WalkState::kDone) {
    Walk& walk = walks_.front();
    const bool first = walk.begun >= last_answer_;
    const Nanos idle = idle_;
    walk.result.busy_us = (events_.now() - std::max(last_answer_, walk.begun)) / 1000;
    walk.result.wait_us = (idle - (first ? walk.idle_at_begin : idle_at_last_answer_)) / 1000;
    last_answer_ = events_.now();
    idle_at_last_answer_ = idle;
    StepResult result = std::move(walk.result);
    walks_.pop_front();
    on_result_(std::move(result));
  }
}

void AttentionSide::ResetCounts() {
  busy_ = 0;
  step_times_ = {};
  decode_steps_ms_.clear();
  layers_ = expert_calls_ = 0;
  in_.ResetBusy();
  out_.ResetBusy();
}

}  // namespace tandem::simulate
