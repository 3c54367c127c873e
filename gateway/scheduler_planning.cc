// The scheduler's half that says what a worker runs next.
#include <algorithm>
#include <array>
#include <utility>

#include "common/check.h"
#include "common/pages.h"
#include "gateway/scheduler.h"

namespace tandem {
namespace {

constexpr int kMaxTestPreemptions = 3;  // per job, so that every test ends

}  // namespace

WorkerOrders Scheduler::NextStep(WorkerId worker_id) {
  WorkerOrders orders;
  const auto it = workers_.find(worker_id);
  if (it != workers_.end()) DropDeadRepeats(&it->second);
  Admit(&orders.events);
  if (it == workers_.end()) return orders;
  Worker& worker = it->second;
  if (worker.outstanding.size() < AttentionLink::kMaxOutstandingSteps) {
    if (policy_.test_seed != 0) MaybeTestPreempt(&worker);
    if (worker.recovering) {
      RepeatStep(&worker, &orders);
    } else {
      PlanStep(&worker, &orders);
    }
  }
  orders.cancels = std::exchange(worker.cancels, {});
  orders.releases = std::exchange(worker.releases, {});
  return orders;
}

void Scheduler::SendStep(Worker* worker, SentStep sent, WorkerOrders* orders) {
  sent.step.step = worker->next_step++;
  orders->step = sent.step;
  worker->outstanding.push_back(std::move(sent));
}

void Scheduler::DropDeadRepeats(Worker* worker) {
  const auto is_dead = [worker](const auto& of) { return !worker->batches.contains(of.batch); };
  for (SentStep& sent : worker->repeats) {
    std::erase_if(sent.step.new_batches, is_dead);
    std::erase_if(sent.step.advance, is_dead);
  }
  std::erase_if(worker->repeats, [](const SentStep& sent) { return sent.step.advance.empty(); });
  if (worker->repeats.empty() && worker->outstanding.empty()) worker->recovering = false;
}

void Scheduler::RepeatStep(Worker* worker, WorkerOrders* orders) {
  DropDeadRepeats(worker);
  if (worker->repeats.empty()) return;
  for (const SentStep& sent : worker->outstanding) {
    if (sent.after_failure) return;  // it may have to be repeated as well
  }
  SentStep sent = std::move(worker->repeats.front());
  worker->repeats.pop_front();
  sent.decode_rows = 0;  // what is left of it says nothing of how long a whole step takes
  sent.shape.reset();
  SendStep(worker, std::move(sent), orders);
}

void Scheduler::MaybeTestPreempt(Worker* worker) {
  if (worker->running.empty() || Draw(1, 20) > 1) return;
  std::vector<JobState*> candidates;
  for (const auto& [place, id] : worker->running) {
    JobState& job = jobs_.at(id);
    if (job.batch == 0 || job.test_preemptions >= kMaxTestPreemptions) continue;
    if (worker->batches.at(job.batch).next_layer > 0) candidates.push_back(&job);
  }
  if (candidates.empty()) return;
  JobState* const job = candidates[Draw(0, static_cast<int64_t>(candidates.size()) - 1)];
  ++job->test_preemptions;
  Preempt(job);
}

void Scheduler::PlanStep(Worker* worker, WorkerOrders* orders) {
  // Decode rows come first, since they may preempt; then it is known what is still alive.
  SentStep sent;
  sent.shape.emplace();
  sent.group = ChooseGroup(worker);
  PlanDecode(worker, sent.group, orders, &sent.step.new_batches);
  DecodeShape& decode = sent.shape->decode;
  for (const NewBatch& batch : sent.step.new_batches) {
    for (const JobRows& rows : worker->batches.at(batch.batch).rows) {
      ++decode.rows;
      decode.context += rows.end_row;
    }
  }
  std::vector<JobId> ready;  // a job's next batch comes when its last one was sent to the end
  for (const auto& [place, id] : worker->running) {
    if (jobs_.at(id).PrefillReady()) ready.push_back(id);
  }
  PrefillBudget budget = BudgetFor(*worker, decode);
  const bool decode_only = budget.limited() && worker->mixed_steps >= kMostMixedSteps;
  PlanAdvances(worker, decode_only, &budget, &sent);
  if (!decode_only) PlanPrefill(worker, ready, &budget, orders, &sent);
  if (sent.step.advance.empty()) return;
  if (sent.shape->prefill.empty()) {
    sent.decode_rows = static_cast<int>(decode.rows);
    worker->mixed_steps = 0;
  } else if (decode.rows > 0) {
    ++worker->mixed_steps;
  }
  worker->last_group = sent.group.value_or(worker->last_group);
  SendStep(worker, std::move(sent), orders);
}

Scheduler::PrefillBudget Scheduler::BudgetFor(const Worker& worker,
                                              const DecodeShape& decode) const {
  PrefillBudget budget;
  if (policy_.test_seed != 0 || policy_.prefill_step_target <= 0) return budget;
  if (decode.rows == 0) return budget;
  budget.left_us = 0;
  if (!worker.costs.knows_decode()) return budget;
  // Where more prompts wait than sequences decode, they get more.
  int64_t prompts = 0;
  for (const auto& [place, id] : worker.running) {
    const JobState& job = jobs_.at(id);
    const bool under_way = job.batch != 0 && !worker.batches.at(job.batch).decode;
    prompts += job.PrefillReady() || under_way ? 1 : 0;
  }
  const double prompts_per_row = static_cast<double>(prompts) / static_cast<double>(decode.rows);
  budget.left_us = std::max(policy_.prefill_step_target - 1, 0.0) * std::max(prompts_per_row, 1.0) *
                   worker.costs.DecodeUs(decode);
  return budget;
}

std::optional<int> Scheduler::ChooseGroup(Worker* worker) {
  const int groups = policy_.test_seed != 0 ? static_cast<int>(Draw(1, 2)) : DecodeGroups(*worker);
  if (groups < 2) return std::nullopt;
  for (const auto& [id, batch] : worker->batches) {
    if (!batch.decode || batch.next_layer < worker->info.num_layers) return std::nullopt;
  }
  std::array<std::vector<JobState*>, 2> members;  // oldest first
  for (const auto& [place, id] : worker->running) {
    JobState& job = jobs_.at(id);
    if (job.PrefillReady()) return std::nullopt;
    if (!job.DecodeReady()) continue;
    if (!job.group.has_value()) job.group = members[0].size() <= members[1].size() ? 0 : 1;
    members[*job.group].push_back(&job);
  }
  if (members[0].size() + members[1].size() < 2) return std::nullopt;

  // A job of the group that is outstanding stays: its next row would wait for that step.
  std::optional<int> busy;
  if (!worker->outstanding.empty()) busy = worker->outstanding.front().group;
  const int larger = members[0].size() >= members[1].size() ? 0 : 1;
  while (busy != larger && members[larger].size() > members[1 - larger].size() + 1) {
    JobState* const job = members[larger].back();
    members[larger].pop_back();
    job->group = 1 - larger;
    members[1 - larger].push_back(job);
  }
  return 1 - busy.value_or(worker->last_group);
}

void Scheduler::PlanDecode(Worker* worker, std::optional<int> group, WorkerOrders* orders,
                           std::vector<NewBatch>* batches) {
  NewBatch batch;
  const std::vector<Turn> in_turn(worker->running.begin(), worker->running.end());
  for (const Turn& turn : in_turn) {
    if (!worker->running.contains(turn)) break;  // preempted, as are all behind it
    JobState& job = jobs_.at(turn.job);
    if (!job.DecodeReady() || (group.has_value() && job.group != group)) continue;
    const int64_t missing = PagesFor(job.planned + 1) - static_cast<int64_t>(job.pages.size());
    while (job.worker.has_value() && worker->available_pages() < missing) {
      Preempt(&jobs_.at(worker->running.rbegin()->job));
    }
    if (!job.worker.has_value()) break;
    if (batch.batch == 0) batch.batch = next_batch_++;
    PutRows(worker, &job, 1, &batch, orders);
  }
  if (batch.batch == 0) return;
  worker->batches.at(batch.batch).decode = true;
  batches->push_back(std::move(batch));
}

int64_t Scheduler::PrefillRows(const Worker& worker, const JobState& job, const PrefillShape& batch,
                               const PrefillBudget& budget) const {
  int64_t most =
      std::min(job.known - job.planned, std::max(policy_.max_batch_rows, 1) - batch.rows);
  if (job.job.max_rows_per_batch > 0) most = std::min<int64_t>(most, job.job.max_rows_per_batch);
  if (!budget.limited()) return most;
  const double left_us = budget.left_us - worker.costs.LayerUs(batch);
  const int64_t rows = worker.costs.RowsWithin(left_us, job.planned, most);
  const int64_t least = std::min(most, kLeastPrefillRows + job.planned / kContextPerLeastRow);
  if (rows >= least) return rows;
  return budget.used || batch.rows > 0 ? 0 : least;
}

void Scheduler::PlanPrefill(Worker* worker, const std::vector<JobId>& ready, PrefillBudget* budget,
                            WorkerOrders* orders, SentStep* sent) {
  std::vector<NewBatch> batches;
  NewBatch batch;
  PrefillShape shape;
  int64_t rows_in_step = 0;
  for (const JobId id : ready) {
    JobState& job = jobs_.at(id);
    int64_t count = PrefillRows(*worker, job, shape, *budget);
    count = std::min(count, std::max(policy_.max_batch_rows, 1) - rows_in_step);
    if (count <= 0) break;
    if (policy_.test_seed != 0) {
      count = Draw(1, count);
      if (batch.batch != 0 && Draw(0, 1) == 1) {
        batches.push_back(std::exchange(batch, {}));
        shape = {};
      }
    }
    if (batch.batch == 0) batch.batch = next_batch_++;
    shape.Add(job.planned, count);
    PutRows(worker, &job, count, &batch, orders);
    rows_in_step += count;
  }
  prefill_rows_ += rows_in_step;
  if (batch.batch != 0) batches.push_back(std::move(batch));
  for (NewBatch& made : batches) {
    AdvanceBatch(worker, made.batch, budget, sent);
    sent->step.new_batches.push_back(std::move(made));
  }
}

void Scheduler::PutRows(Worker* worker, JobState* job, int64_t count, NewBatch* batch,
                        WorkerOrders* orders) {
  if (job->sequence == 0) {
    job->sequence = next_sequence_++;
    worker->sequences[job->sequence] = job->id;
    orders->opens.push_back(MakeSpec(*job));
    if (!job->admitted) {
      job->admitted = true;
      SchedulerEvent& event = orders->events.emplace_back();
      event.job = job->id;
      event.kind = SchedulerEvent::Kind::kAdmitted;
      event.cached_tokens = static_cast<int32_t>(job->shared);
    }
  }
  const int64_t end = job->planned + count;
  int32_t row = 0;  // within the batch
  for (const RowRun& run : batch->runs) row += run.count;
  batch->runs.push_back({.sequence = job->sequence,
                         .first_position = static_cast<int32_t>(job->planned),
                         .count = static_cast<int32_t>(count),
                         .last_sampled = job->planned >= job->known});
  size_t scored = job->next_scored;
  for (int64_t position = job->planned; position < end; ++position, ++row) {
    for (; scored < job->job.scored.size() && job->job.scored[scored].position <= position;
         ++scored) {
      const ScoredRow& wanted = job->job.scored[scored];
      if (wanted.position < position) continue;
      if (wanted.target >= 0) {
        batch->outputs.push_back({row, RowOutputKind::kLogProb, wanted.target});
      }
      if (wanted.logits) batch->outputs.push_back({row, RowOutputKind::kLogits, 0});
    }
    const bool draws = position + 1 >= job->known && job->job.max_new_tokens > 0;
    if (draws) batch->outputs.push_back({row, RowOutputKind::kSample, 0});
  }

  worker->reserved_pages -= job->Reserved();
  while (static_cast<int64_t>(job->pages.size()) < PagesFor(end)) {
    batch->pages.push_back(worker->book.Take());
    job->pages.push_back(batch->pages.back());
  }
  worker->reserved_pages += job->Reserved();
  TANDEM_CHECK(worker->available_pages() >= 0);
  job->batch = batch->batch;
  Batch& known_batch = worker->batches[batch->batch];
  known_batch.rows.push_back({job->id, std::exchange(job->planned, end), end});
  ++known_batch.num_live;
}

SequenceSpec Scheduler::MakeSpec(const JobState& job) const {
  SequenceSpec spec;
  spec.sequence = job.sequence;
  spec.token_ids = job.job.prompt;
  spec.token_ids.insert(spec.token_ids.end(), job.generated.begin(), job.generated.end());
  spec.num_prompt_tokens = static_cast<int32_t>(job.prompt_size());
  spec.expanded_length = job.job.expanded_length;
  spec.absorbed_pages = job.job.absorbed_pages;
  spec.pages = job.pages;
  spec.sampling = job.job.sampling;
  spec.mask_ids_without_token = job.job.mask_ids_without_token;
  spec.tag = job.job.tag;
  spec.top_logprobs = job.job.top_logprobs;
  return spec;
}

void Scheduler::PlanAdvances(Worker* worker, bool decode_only, PrefillBudget* budget,
                             SentStep* sent) {
  for (const auto& [id, batch] : worker->batches) {
    if (batch.next_layer == worker->info.num_layers || (decode_only && !batch.decode)) continue;
    AdvanceBatch(worker, id, budget, sent);
  }
}

void Scheduler::AdvanceBatch(Worker* worker, BatchId id, PrefillBudget* budget, SentStep* sent) {
  Batch& batch = worker->batches.at(id);
  const int32_t num_layers = worker->info.num_layers;
  int32_t layers = num_layers - batch.next_layer;
  if (policy_.test_seed != 0) {
    layers = static_cast<int32_t>(Draw(1, layers));
  } else if (!batch.decode) {
    if (policy_.max_layers_per_step > 0) layers = std::min(layers, policy_.max_layers_per_step);
    const double layer_us = worker->costs.LayerUs(batch.LiveShape());
    if (layers * layer_us > budget->left_us) {
      layers = std::max(static_cast<int32_t>(budget->left_us / layer_us), budget->used ? 0 : 1);
    }
    budget->left_us = std::max(budget->left_us - layers * layer_us, 0.0);
    budget->used = true;
  }
  if (layers == 0) return;
  sent->step.advance.push_back({id, batch.next_layer, batch.next_layer + layers});
  batch.next_layer += layers;
  if (!batch.decode) {
    sent->shape->prefill.push_back({batch.LiveShape(), layers});
    prefill_layers_ += layers;
  }
  if (batch.next_layer < num_layers) return;
  for (const JobRows& rows : batch.rows) {
    if (rows.job != 0) jobs_.at(rows.job).batch = 0;
  }
}

}  // namespace tandem
