// What the engine knows of a session's sequences and batches. But for the flags that a cancel sets,
// all of it belongs to the engine thread.
#ifndef TANDEM_ATTENTION_WORKER_SEQUENCE_H_
#define TANDEM_ATTENTION_WORKER_SEQUENCE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "attention_worker/logit_adjustments.h"
#include "attention_worker/page_pool.h"
#include "common/transport/attention_link.h"
#include "kernels/backend.h"

namespace tandem {

struct Batch;

struct Sequence {
  SequenceSpec spec;    // token_ids grow by what is drawn
  absl::Status usable;  // not OK: no row of it can be run, and why

  PageLease pages;
  int32_t num_scheduled = 0;    // positions [0, num_scheduled) are in batches
  std::vector<Batch*> batches;  // unfinished ones that hold its rows, oldest first
  bool ended = false;           // its rows are dead, its pages given back
  bool in_walk = false;         // a walk through the layers is under way with rows of it
  LogitAdjustments logit_adjustments;

  // Set by Cancel, from any thread.
  std::atomic<bool> cancelled = false;
  std::atomic<int64_t> layers_at_cancel = 0;  // the engine's layers_total then

  int32_t num_tokens() const { return static_cast<int32_t>(spec.token_ids.size()); }
};

// How many pages a run is the first to put rows into.
inline int64_t NewPages(const RowRun& run) {
  return PagesFor(int64_t{run.first_position} + run.count) - PagesFor(run.first_position);
}

// A run of rows and where it lies, in a batch or in a pass.
struct PlacedRun {
  RowRun rows;
  std::shared_ptr<Sequence> sequence;  // null: ended before the run came
  int32_t first_row = 0;

  bool live() const { return sequence != nullptr && !sequence->ended; }
  int32_t end_position() const { return rows.first_position + rows.count; }
  int32_t end_row() const { return first_row + rows.count; }
  // The `count` rows from the `first` one on, lying from row `place` on.
  PlacedRun Part(int32_t first, int32_t count, int32_t place) const {
    PlacedRun part = *this;
    part.rows.first_position += first;
    part.rows.count = count;
    part.first_row = place;
    return part;
  }
};

// A batch that has not gone through all layers.
struct Batch {
  BatchId id = 0;
  uint64_t order = 0;  // counts the engine's batches: earlier rows of a sequence have the lower one
  std::vector<PlacedRun> runs;
  std::vector<RowOutput> outputs;
  int32_t num_rows = 0;
  int32_t next_layer = 0;
  bool in_walk = false;  // as Sequence's
  // [num_rows, hidden] act: the residual stream between passes; null until kept.
  std::unique_ptr<kernels::Buffer> hidden;

  int64_t live_rows() const {
    int64_t n = 0;
    for (const PlacedRun& run : runs) n += run.live() ? run.rows.count : 0;
    return n;
  }
};

// What a step is judged by.
struct SessionState {
  std::unique_ptr<SessionPages> pages;  // null once the session is over
  absl::flat_hash_map<SequenceId, std::shared_ptr<Sequence>> sequences;  // open ones
  SequenceId last_opened = 0;
  std::map<BatchId, std::unique_ptr<Batch>> batches;  // unfinished
  BatchId last_batch = 0;
  std::deque<BatchId> dead_batches;  // batches that died whole, oldest first
  StepId last_step = 0;
  std::deque<StepResult> history;  // of the last steps that were answered, oldest first
  // Steps on their way, in the order in which they came and are answered.
  struct StepInFlight {
    StepId step = 0;
    bool counted = true;  // among the session's outstanding steps
    std::optional<StepResult> result;
  };
  std::deque<StepInFlight> in_flight;

  // Null for one that has ended or was never opened.
  Sequence* FindSequence(SequenceId id) const {
    const auto it = sequences.find(id);
    return it == sequences.end() ? nullptr : it->second.get();
  }
  // Null for one that is finished or was never there.
  Batch* FindBatch(BatchId id) const {
    const auto it = batches.find(id);
    return it == batches.end() ? nullptr : it->second.get();
  }
  const StepResult* FindResult(StepId id) const {
    for (const StepResult& result : history) {
      if (result.step == id) return &result;
    }
    return nullptr;
  }
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_SEQUENCE_H_
