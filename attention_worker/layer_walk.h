// Walks the layers upwards once, with every batch that is active in a layer in one pass.
#ifndef TANDEM_ATTENTION_WORKER_LAYER_WALK_H_
#define TANDEM_ATTENTION_WORKER_LAYER_WALK_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "attention_worker/engine_counts.h"
#include "attention_worker/layer_times.h"
#include "attention_worker/model.h"
#include "attention_worker/pass_inputs.h"
#include "attention_worker/row_plan.h"
#include "attention_worker/sequence.h"
#include "attention_worker/workspace.h"
#include "common/request_tag.h"

namespace tandem {

// A state machine that never blocks: it is advanced half a layer at a time, and while its experts
// are away, the engine's thread does other things. Rows of a pass lie in the workspace; what is
// left of them when the set of active rows changes or the walk ends goes into the batches' own
// memory. Belongs to the engine's thread; used for one walk after the other.
class LayerWalk {
 public:
  // All must outlive the walk. `experts_changed`: see RoutedExperts::Begin. `clock`: what measures
  // its layers.
  LayerWalk(const AttentionModel* model, const ModelContext* context, EngineCounts* counts,
            std::function<void()> experts_changed, LayerClock clock);

  struct Active {
    Batch* batch = nullptr;  // stands at first_layer
    int32_t end_layer = 0;
  };
  // Begins a walk that takes each batch to its end_layer. `step` names it to expert workers.
  void Start(StepId step, std::vector<Active> active);

  enum class State {
    kMoved,    // there is more to do at once
    kWaiting,  // for experts: until `experts_changed` or wake_time(), nothing can be done
    kDone,     // status() says how it ended; Batch::next_layer where each batch stands
  };
  // The next half of a layer. Requires a walk that is not done. Sequences that were ended since the
  // last call are left out from the next layer on; where all have ended, experts are not waited
  // for.
  State Proceed();

  RoutedExperts::Clock::time_point wake_time() const { return in_flight_.experts->wake_time(); }

  // OK, or UNAVAILABLE: all batches stand at most at the layer that could not be run.
  const absl::Status& status() const { return status_; }
  // The rows of the last pass, as they left its last layer. Valid until the next Start.
  const RowPlan& plan() const { return plan_; }
  const kernels::DeviceTensor& x() const { return pass_.x; }
  Workspace* workspace() { return &workspace_; }

 private:
  std::vector<const RequestTag*> Tags() const;  // of the pass's sequences
  bool BeginPass();
  void EndPass();
  void LeaveLayer();
  State Finish(absl::Status status);
  kernels::DeviceTensor Hidden(Batch* batch);

  const AttentionModel& model_;
  const ModelContext& context_;
  EngineCounts& counts_;
  LayerClock clock_;
  Workspace workspace_;
  PassInputs inputs_;

  std::vector<Active> active_;
  absl::Status status_;

  // Of the pass that is under way, if one is.
  bool in_pass_ = false;
  RowPlan plan_;
  ModelPass pass_;
  std::vector<Batch*> batches_;
  int32_t layer_ = 0;
  int32_t end_layer_ = 0;  // to which nothing changes
  bool in_layer_ = false;  // between its two halves
  LayerInFlight in_flight_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_LAYER_WALK_H_
