// Walks the layers upwards once, with every batch that is active in a layer in one pass.
#ifndef TANDEM_ATTENTION_WORKER_LAYER_WALK_H_
#define TANDEM_ATTENTION_WORKER_LAYER_WALK_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "attention_worker/engine_counts.h"
#include "attention_worker/model.h"
#include "attention_worker/row_plan.h"
#include "attention_worker/sequence.h"

namespace tandem {

// Belongs to the engine thread. Rows of a pass lie in the workspace; what is left of them when the
// set of active rows changes or the walk ends goes into the batches' own memory.
class LayerWalk {
 public:
  // All must outlive the walk.
  LayerWalk(const AttentionModel* model, const ModelContext* context, EngineCounts* counts)
      : model_(*model), context_(*context), counts_(*counts) {}

  struct Active {
    Batch* batch = nullptr;  // stands at first_layer
    int32_t end_layer = 0;
  };
  // Takes each batch to its end_layer, or, with UNAVAILABLE, all of them at most to the layer that
  // could not be run; Batch::next_layer says where each stands. `end_cancelled` is called at every
  // layer boundary; it ends the sequences that were cancelled and says whether there were any.
  // `step` names the walk to expert workers.
  absl::Status Run(uint64_t step, std::vector<Active> active,
                   const std::function<bool()>& end_cancelled);

  // The rows of the last pass, as they left its last layer. Valid until the next Run.
  const RowPlan& plan() const { return plan_; }
  const TensorView& x() const { return pass_.x; }

 private:
  void LoadRows();
  void KeepRows();
  void EmbedPiece(const RowPlan::Piece& piece, const TensorView& x);
  void CopyRows(const TensorView& from, const TensorView& to);
  TensorView Hidden(Batch* batch);
  absl::Status RunLayer(int layer);

  const AttentionModel& model_;
  const ModelContext& context_;
  EngineCounts& counts_;
  RowPlan plan_;
  ModelPass pass_;
  std::vector<int32_t> iota_;  // 0, 1, 2, ...
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_LAYER_WALK_H_
