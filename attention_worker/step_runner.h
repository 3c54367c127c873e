// Runs steps: makes their batches, walks the layers with all of those that come together, answers
// them. Two walks may be under way at once: while one waits for its experts, the other goes on.
#ifndef TANDEM_ATTENTION_WORKER_STEP_RUNNER_H_
#define TANDEM_ATTENTION_WORKER_STEP_RUNNER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "attention_worker/engine_counts.h"
#include "attention_worker/layer_times.h"
#include "attention_worker/layer_walk.h"
#include "attention_worker/model.h"
#include "attention_worker/sequence.h"
#include "common/transport/attention_link.h"

namespace tandem {

// One session's step on its way.
struct StepJob {
  SessionState* state = nullptr;
  std::vector<Advance> advances;
  std::vector<Batch*> batches;  // of the advances
  StepResult result;
};

// Belongs to the engine's thread, which it never blocks but by the device's own work.
class StepRunner {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kMaxWalks = AttentionLink::kMaxOutstandingSteps;

  // `ids_with_token` [vocab] u8 or empty: what masked draws may take. All pointers must outlive the
  // runner. `experts_changed`: see RoutedExperts::Begin. `now`: for what results say of times, and
  // `layer_times`, which may be null.
  StepRunner(const AttentionModel* model, ModelContext context,
             kernels::DeviceTensor ids_with_token, EngineCounts* counts,
             std::function<void()> experts_changed, std::function<Clock::time_point()> now,
             LayerTimes* layer_times);

  // Whether a step can be begun beside what is under way: there is a free walk, and no sequence of
  // the step is in another.
  bool CanBegin(const SessionState& state, const Step& step) const;
  bool HasFreeWalk() const { return running_.size() < kMaxWalks; }
  bool idle() const { return running_.empty(); }

  // Makes the new batches of a step and takes their pages. Requires ValidateStep to be OK.
  StepJob Begin(SessionState* state, Step step);
  // Starts a walk with jobs of different sessions. Requires a free walk.
  void Start(std::vector<StepJob> jobs);

  enum class Progress { kMoved, kAllWait };
  // Half a layer of the oldest walk that can go on, or the end of one, whose jobs are then in
  // `finished`, with their results. The caller ends sequences between calls.
  Progress Proceed(std::vector<StepJob>* finished);
  // When a walk that waits has something to do although nothing has changed; none: no walk.
  std::optional<Clock::time_point> wake_time() const;
  // The engine's thread had nothing to do but wait for experts for so long.
  void AddWait(Clock::duration time) { waited_ += time; }

  // Ends a sequence: from now on its rows are dead, and its pages are free. Never within half a
  // layer.
  void End(SessionState* state, Sequence& sequence);

 private:
  struct Running {
    std::unique_ptr<LayerWalk> walk;
    std::vector<StepJob> jobs;
    std::vector<std::shared_ptr<Sequence>> sequences;  // of the jobs, marked as in_walk
    Clock::time_point start;
    Clock::duration waited_at_start;
  };
  struct Finished;

  void AddBatch(SessionState* state, NewBatch new_batch);
  std::vector<StepJob> Finish(Running running);
  void FinishRows(Running* running);
  void TakeSampled(SessionState* state, Sequence& sequence, const RowResult& row);
  void FinishJob(StepJob* job, const absl::Status& walk_status);

  const AttentionModel& model_;
  const ModelContext context_;
  const kernels::DeviceTensor ids_with_token_;
  EngineCounts& counts_;
  const std::function<Clock::time_point()> now_;
  std::vector<std::unique_ptr<LayerWalk>> free_walks_;
  std::vector<Running> running_;  // oldest first
  uint64_t next_order_ = 1;

  Clock::duration waited_{};  // in all
  Clock::time_point last_end_;
  Clock::duration waited_at_last_end_{};
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_STEP_RUNNER_H_
