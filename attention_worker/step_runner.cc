#include "attention_worker/step_runner.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <utility>

#include "attention_worker/row_outputs.h"
#include "common/check.h"

namespace tandem {

using Clock = std::chrono::steady_clock;

StepRunner::StepRunner(kernels::Backend* backend, const AttentionModel* model,
                       ExpertDispatcher* dispatcher, LatentCache* cache,
                       std::vector<uint8_t> ids_with_token, EngineCounts* counts)
    : model_(*model),
      cache_(*cache),
      ids_with_token_(std::move(ids_with_token)),
      counts_(*counts),
      workspace_(backend),
      expert_rows_(backend),
      context_{backend, dispatcher, cache, &workspace_, &expert_rows_},
      walk_(model, &context_, counts) {}

Job StepRunner::Begin(SessionState* state, Step step) {
  state->last_step = step.step;
  ++counts_.steps_total;
  for (NewBatch& batch : step.new_batches) AddBatch(state, std::move(batch));
  Job job;
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
  for (const RowRun& run : new_batch.runs) {
    const auto it = state->sequences.find(run.sequence);
    auto sequence = it == state->sequences.end() ? nullptr : it->second;
    batch->runs.push_back(
        {sequence, batch->num_rows, run.first_position, run.count, run.last_sampled});
    batch->num_rows += run.count;
    if (sequence == nullptr) continue;
    sequence->num_scheduled = run.first_position + run.count;
    auto pages = cache_.pool().TryReserve(
        static_cast<int>(PagesFor(sequence->num_scheduled) - sequence->pages.num_pages()));
    TANDEM_CHECK(pages.has_value());
    sequence->pages.Extend(*std::move(pages));
    if (sequence->batches.empty() || sequence->batches.back() != batch.get()) {
      sequence->batches.push_back(batch.get());
    }
  }
  if (batch->live_rows() == 0) state->dead_batches.push_back(batch->id);
  state->last_batch = std::max(state->last_batch, batch->id);
  state->batches.emplace(batch->id, std::move(batch));
}

void StepRunner::Run(std::vector<Job>* jobs, const std::function<bool()>& end_cancelled) {
  const Clock::time_point start = Clock::now();
  std::vector<LayerWalk::Active> active;
  for (const Job& job : *jobs) {
    for (size_t i = 0; i < job.batches.size(); ++i) {
      active.push_back({job.batches[i], job.advances[i].end_layer});
    }
  }
  const absl::Status status = walk_.Run(++num_walks_, std::move(active), end_cancelled);
  FinishRows(jobs, end_cancelled);
  const auto elapsed = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
  for (Job& job : *jobs) {
    job.result.compute_us = elapsed.count();
    FinishJob(&job, status);
  }
}

// A row's output and where it goes.
struct StepRunner::Finished {
  Job* job;
  Sequence* sequence;
  RowResult row;
};

// Computes the outputs of the batches that went through their last layer.
void StepRunner::FinishRows(std::vector<Job>* jobs, const std::function<bool()>& end_cancelled) {
  std::deque<Finished> finished;  // results stay where they are while it grows
  std::vector<WantedOutput> wanted;
  for (Job& job : *jobs) {
    for (const Batch* batch : job.batches) {
      if (batch->next_layer < model_.config().num_layers) continue;
      auto run = batch->runs.begin();
      for (const RowOutput& output : batch->outputs) {
        while (output.row >= run->first_row + run->num_rows) ++run;
        if (!run->live()) continue;
        Sequence* sequence = run->sequence.get();
        finished.push_back({&job, sequence, {}});
        RowResult& row = finished.back().row;
        row.sequence = sequence->spec.sequence;
        row.position = run->first_position + output.row - run->first_row;
        row.kind = output.kind;
        wanted.push_back({walk_.plan().PassRow(batch, output.row), output.kind, output.target,
                          sequence->spec.mask_ids_without_token, sequence->spec.sampling,
                          &sequence->cancelled, &row});
      }
    }
  }
  if (wanted.empty()) return;
  ComputeOutputs(model_, context_, walk_.x(), ids_with_token_, std::move(wanted));
  end_cancelled();
  for (Finished& f : finished) {
    if (f.sequence->ended) continue;
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
  // What follows a token that could not be drawn cannot be computed.
  if (row.token < 0) return End(state, sequence);
  TANDEM_CHECK(sequence.num_tokens() == row.position + 1);
  sequence.spec.token_ids.push_back(row.token);
}

// Says where the batches stand and forgets finished ones.
void StepRunner::FinishJob(Job* job, const absl::Status& walk_status) {
  for (size_t i = 0; i < job->batches.size(); ++i) {
    Batch* batch = job->batches[i];
    job->result.batches.push_back({batch->id, batch->next_layer});
    if (batch->next_layer < job->advances[i].end_layer) job->result.status = walk_status;
    if (batch->next_layer < model_.config().num_layers) continue;
    for (const Batch::Run& run : batch->runs) {
      if (!run.live()) continue;
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
