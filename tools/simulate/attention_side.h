// Attention workers, simulated: a step's way through the layers, as attention_worker/engine.cc goes
// it, without arithmetic.
#ifndef TANDEM_TOOLS_SIMULATE_ATTENTION_SIDE_H_
#define TANDEM_TOOLS_SIMULATE_ATTENTION_SIDE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "common/placement.h"
#include "common/transport/attention_link.h"
#include "tools/simulate/cost_model.h"
#include "tools/simulate/event_queue.h"
#include "tools/simulate/expert_side.h"
#include "tools/simulate/routing.h"
#include "tools/workload/lengths.h"

namespace tandem::simulate {

// Where the time of steps went, from when a step was taken to its last output.
struct StepTimes {
  Nanos attention = 0;  // the engine worked for it: attention, router, shared experts, outputs
  // What it then waited for, by what the reply that came last had gone through.
  Nanos network = 0;
  Nanos queue = 0;    // until an expert worker began with it
  Nanos experts = 0;  // until it was done
  Nanos engine = 0;   // the engine had another step in hand
  Nanos sum() const { return attention + network + queue + experts + engine; }
};

class AttentionSide {
 public:
  struct Environment {
    EventQueue* events;
    const CostModel* costs;
    const Routing* routing;
    const Placement* placement;
    std::vector<std::unique_ptr<ExpertSide>>* experts;  // of worker id i + 1
  };

  AttentionSide(const Environment& environment, int number, uint64_t seed,
                std::function<void(StepResult)> on_result);
  AttentionSide(const AttentionSide&) = delete;

  void Open(const SequenceSpec& spec) { expanded_lengths_[spec.sequence] = spec.expanded_length; }
  void Cancel(SequenceId sequence);
  // What is known of a sequence that has ended stays: a run has not so many.
  void Release(SequenceId) {}
  void Run(Step step);

  Nanos busy() const { return busy_; }
  Nanos in_busy() const { return in_.busy(); }
  Nanos out_busy() const { return out_.busy(); }
  const StepTimes& step_times() const { return step_times_; }
  // In milliseconds, of steps with decode rows.
  const std::vector<double>& decode_steps_ms() const { return decode_steps_ms_; }
  int64_t layers() const { return layers_; }              // with experts, that steps went through
  int64_t expert_calls() const { return expert_calls_; }  // that they sent
  void ResetCounts();

 private:
  static constexpr size_t kMaxWalks = 2;

  struct RowBatchState {
    std::vector<RowRun> runs;
    std::vector<RowResult> outputs;
    bool decode = false;
  };
  enum class WalkState : uint8_t { kReady, kAway, kDone };
  // A step under way. The engine's time for the others is theirs.
  struct Walk {
    Step step;
    int layer = 0;
    int end_layer = 0;
    WalkState state = WalkState::kReady;
    int calls_out = 0;
    bool sharing = false;  // its shared experts are being computed
    Nanos begun = 0;
    Nanos idle_at_begin = 0;
    Nanos shared_done = 0;
    StepTimes times;
    StepResult result;
  };

  // Does the next thing, if the engine has nothing to do.
  void Work();
  bool TakeStep();
  void BeginLayer(Walk* walk);
  void Dispatch(Walk* walk);
  void OnReply(Walk* walk, const ExpertCall& call);
  void EndIfBack(Walk* walk);
  void NextLayer(Walk* walk);
  void FinishWalk(Walk* walk);
  void Occupy(Walk* walk, Nanos duration, std::function<void()> then);
  std::set<SequenceId> SequencesOf(const Step& step) const;
  LayerRows RowsOf(const Walk& walk) const;
  bool IsActive(const Advance& advance, int layer) const {
    return layer >= advance.first_layer && layer < advance.end_layer;
  }
  Nanos IdleSoFar() const;
  void AnswerInOrder();

  EventQueue& events_;
  const CostModel& costs_;
  const Routing& routing_;
  const Placement& placement_;
  std::vector<std::unique_ptr<ExpertSide>>& experts_;
  const std::function<void(StepResult)> on_result_;
  WorkloadRandom random_;

  std::map<SequenceId, int32_t> expanded_lengths_;
  std::map<BatchId, RowBatchState> batches_;
  std::deque<Step> queue_;
  std::list<Walk> walks_;  // oldest first
  bool engine_busy_ = false;
  Nanos idle_since_ = 0;
  Nanos idle_ = 0;  // while some step was under way
  Nanos last_answer_ = 0;
  Nanos idle_at_last_answer_ = 0;
  std::map<WorkerId, int64_t> work_out_;  // at expert workers, as ChooseHolders counts it
  uint64_t rotation_ = 0;
  Resource in_, out_;  // of its port
  std::vector<int32_t> row_experts_;

  Nanos busy_ = 0;
  StepTimes step_times_;
  std::vector<double> decode_steps_ms_;
  int64_t layers_ = 0;
  int64_t expert_calls_ = 0;
};

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_ATTENTION_SIDE_H_
