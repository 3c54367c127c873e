#include "attention_worker/step_runner.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "attention_worker/row_outputs.h"
#include "common/check.h"
#include "common/log_scope.h"
#include "common/request_tag.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

int64_t Microseconds(StepRunner::Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

}  // namespace

StepRunner::StepRunner(const AttentionModel* model, ModelContext context,
                       kernels::DeviceTensor ids_with_token, EngineCounts* counts,
                       std::function<void()> experts_changed,
                       std::function<Clock::time_point()> now, LayerTimes* layer_times)
    : model_(*model),
      context_(context),
      ids_with_token_(ids_with_token),
      counts_(*counts),
      now_(std::move(now)) {
  for (size_t i = 0; i < kMaxWalks; ++i) {
    free_walks_.push_back(std::make_unique<LayerWalk>(model, &context_, counts, experts_changed,
                                                      LayerClock(layer_times, now_)));
  }
}

bool StepRunner::CanBegin(const SessionState& state, const Step& step) const {
  if (!HasFreeWalk()) return false;
  for (const NewBatch& batch : step.new_batches) {
    for (const RowRun& run : batch.runs) {
      const Sequence* sequence = state.FindSequence(run.sequence);
      if (sequence != nullptr && sequence->in_walk) return false;
    }
  }
  for (const Advance& advance : step.advance) {
    const Batch* batch = state.FindBatch(advance.batch);
    if (batch == nullptr) continue;
    if (batch->in_walk) return false;
    for (const PlacedRun& run : batch->runs) {
      if (run.sequence != nullptr && run.sequence->in_walk) return false;
    }
  }
  return true;
}

StepJob StepRunner::Begin(SessionState* state, Step step) {
  state->last_step = step.step;
  ++counts_.steps_total;
  for (NewBatch& batch : step.new_batches) AddBatch(state, std::move(batch));
  StepJob job;
  job.state = state;
  job.result.step = step.step;
  job.advances = std::move(step.advance);
  for (const Advance& advance : job.advances) {
    job.batches.push_back(state->FindBatch(advance.batch));
  }
  return job;
}

void StepRunner::AddBatch(SessionState* state, NewBatch new_batch) {
  auto batch = std::make_unique<Batch>();
  batch->id = new_batch.batch;
  batch->order = next_order_++;
  batch->outputs = std::move(new_batch.outputs);
  absl::Span<const int32_t> pages = new_batch.pages;
  for (const RowRun& run : new_batch.runs) {
    const auto num_pages = static_cast<size_t>(NewPages(run));
    const absl::Span<const int32_t> pages_of_run = pages.subspan(0, num_pages);
    pages.remove_prefix(num_pages);
    const auto it = state->sequences.find(run.sequence);
    auto sequence = it == state->sequences.end() ? nullptr : it->second;
    batch->runs.push_back({run, sequence, batch->num_rows});
    batch->num_rows += run.count;
    if (sequence == nullptr) continue;
    sequence->num_scheduled = run.first_position + run.count;
    sequence->pages.Extend(state->pages->Take(pages_of_run));
    if (sequence->batches.empty() || sequence->batches.back() != batch.get()) {
      sequence->batches.push_back(batch.get());
    }
  }
  if (batch->live_rows() == 0) state->dead_batches.push_back(batch->id);
  state->last_batch = std::max(state->last_batch, batch->id);
  state->batches.emplace(batch->id, std::move(batch));
}

void StepRunner::Start(std::vector<StepJob> jobs) {
  Running running;
  running.walk = std::move(free_walks_.back());
  free_walks_.pop_back();
  running.start = now_();
  running.waited_at_start = waited_;
  std::vector<LayerWalk::Active> active;
  for (const StepJob& job : jobs) {
    for (size_t i = 0; i < job.batches.size(); ++i) {
      Batch* batch = job.batches[i];
      active.push_back({batch, job.advances[i].end_layer});
      batch->in_walk = true;
      for (const PlacedRun& run : batch->runs) {
        if (!run.live() || run.sequence->in_walk) continue;
        run.sequence->in_walk = true;
        running.sequences.push_back(run.sequence);
      }
    }
  }
  running.walk->Start(jobs.front().result.step, std::move(active));
  running.jobs = std::move(jobs);
  running_.push_back(std::move(running));
}

StepRunner::Progress StepRunner::Proceed(std::vector<StepJob>* finished) {
  for (auto it = running_.begin(); it != running_.end(); ++it) {
    switch (it->walk->Proceed()) {
      case LayerWalk::State::kWaiting:
        continue;
      case LayerWalk::State::kMoved:
        return Progress::kMoved;
      case LayerWalk::State::kDone:
        Running running = std::move(*it);
        running_.erase(it);
        *finished = Finish(std::move(running));
        return Progress::kMoved;
    }
  }
  return Progress::kAllWait;
}

std::optional<StepRunner::Clock::time_point> StepRunner::wake_time() const {
  std::optional<Clock::time_point> earliest;
  for (const Running& running : running_) {
    const Clock::time_point time = running.walk->wake_time();
    if (!earliest.has_value() || time < *earliest) earliest = time;
  }
  return earliest;
}

std::vector<StepJob> StepRunner::Finish(Running running) {
  FinishRows(&running);
  const Clock::time_point now = now_();
  const bool overlapped = running.start < last_end_;
  const auto busy = now - std::max(running.start, last_end_);
  const auto waited = waited_ - (overlapped ? waited_at_last_end_ : running.waited_at_start);
  last_end_ = now;
  waited_at_last_end_ = waited_;
  for (StepJob& job : running.jobs) {
    job.result.busy_us = Microseconds(busy);
    job.result.wait_us = Microseconds(waited);
    FinishJob(&job, running.walk->status());
  }
  for (const auto& sequence : running.sequences) sequence->in_walk = false;
  free_walks_.push_back(std::move(running.walk));
  return std::move(running.jobs);
}

// A row's output and where it goes.
struct StepRunner::Finished {
  StepJob* job;
  std::shared_ptr<Sequence> sequence;
  RowResult row;
};

// Computes the outputs of the batches that went through their last layer.
void StepRunner::FinishRows(Running* running) {
  LayerWalk& walk = *running->walk;
  std::deque<Finished> finished;  // results stay where they are while it grows
  std::vector<WantedOutput> wanted;
  for (StepJob& job : running->jobs) {
    for (const Batch* batch : job.batches) {
      if (batch->next_layer < model_.config().num_layers) continue;
      auto run = batch->runs.begin();
      for (const RowOutput& output : batch->outputs) {
        while (output.row >= run->end_row()) ++run;
        if (!run->live()) continue;
        const auto& sequence = run->sequence;
        finished.push_back({&job, sequence, {}});
        RowResult& row = finished.back().row;
        row.sequence = sequence->spec.sequence;
        row.position = run->rows.first_position + output.row - run->first_row;
        row.kind = output.kind;
        WantedOutput& want = wanted.emplace_back();
        want.pass_row = walk.plan().PassRow(batch, output.row);
        want.kind = output.kind;
        want.target = output.target;
        want.cancelled = &sequence->cancelled;
        want.result = &row;
        if (output.kind != RowOutputKind::kSample) continue;
        want.spec = &sequence->spec;
        want.adjustments = sequence->logit_adjustments.Next(sequence->spec);
      }
    }
  }
  if (wanted.empty()) return;
  ComputeOutputs(model_, context_, walk.workspace(), walk.x(), ids_with_token_, std::move(wanted));
  for (Finished& f : finished) {
    // Whoever was cancelled meanwhile may have no output, and is ended before the next half layer.
    if (f.sequence->ended || f.sequence->cancelled) continue;
    if (f.row.kind == RowOutputKind::kSample) {
      TakeSampled(f.job->state, *f.sequence, f.row);
    } else {
      ++counts_.scored_total;
    }
    f.job->result.rows.push_back(std::move(f.row));
  }
}

void StepRunner::TakeSampled(SessionState* state, Sequence& sequence, const RowResult& row) {
  ++counts_.sampled_total;
  if (row.token < 0) {
    const LogScope scope(FieldsOf(sequence.spec.tag));
    spdlog::warn("sequence {} ends: the logits at position {} held a NaN", row.sequence,
                 row.position);
    // What follows a token that could not be drawn cannot be computed.
    return End(state, sequence);
  }
  TANDEM_CHECK(sequence.num_tokens() == row.position + 1);
  sequence.spec.token_ids.push_back(row.token);
}

// Says where the batches stand and forgets finished ones.
void StepRunner::FinishJob(StepJob* job, const absl::Status& walk_status) {
  for (size_t i = 0; i < job->batches.size(); ++i) {
    Batch* batch = job->batches[i];
    batch->in_walk = false;
    job->result.batches.push_back({batch->id, batch->next_layer});
    if (batch->next_layer < job->advances[i].end_layer) job->result.status = walk_status;
    if (batch->next_layer < model_.config().num_layers) continue;
    for (const PlacedRun& run : batch->runs) {
      if (!run.live()) continue;
      run.sequence->pages.SetFull(run.rows.first_position / kPageTokens,
                                  run.end_position() / kPageTokens);
      std::vector<Batch*>& unfinished = run.sequence->batches;
      unfinished.erase(std::remove(unfinished.begin(), unfinished.end(), batch), unfinished.end());
    }
    std::deque<BatchId>& dead = job->state->dead_batches;
    dead.erase(std::remove(dead.begin(), dead.end(), batch->id), dead.end());
    job->state->batches.erase(batch->id);
  }
}

void StepRunner::End(SessionState* state, Sequence& sequence) {
  sequence.ended = true;
  sequence.pages.GiveBack();
  for (Batch* batch : sequence.batches) {
    if (batch->live_rows() > 0) continue;
    batch->hidden.reset();
    state->dead_batches.push_back(batch->id);
  }
  sequence.batches.clear();
  // The state may hold the last reference.
  const SequenceId id = sequence.spec.sequence;
  state->sequences.erase(id);
}

}  // namespace tandem
