// The routed experts that an expert worker holds.
#ifndef TANDEM_EXPERT_WORKER_LOADED_EXPERTS_H_
#define TANDEM_EXPERT_WORKER_LOADED_EXPERTS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/checkpoint/checkpoint.h"
#include "common/placement.h"
#include "kernels/ops/moe.h"

namespace tandem {

// A table of (layer, expert) that only grows. Thread-safe: experts can be used while others load.
class LoadedExperts {
 public:
  // `checkpoint` must outlive the table. `mode`: see Checkpoint::Load.
  LoadedExperts(const Checkpoint* checkpoint, Dtype mode);

  // Maps the weights of every expert that `placement` gives to `self` and that is not loaded, and
  // nothing else; reports the share done. Blocks.
  //   INVALID_ARGUMENT  the placement is for a model of another shape
  absl::Status Load(const Placement& placement, WorkerId self,
                    const std::function<void(float)>& progress);

  // INVALID_ARGUMENT for a layer without experts or an expert that the model has not, NOT_FOUND for
  // one that is not loaded.
  absl::Status Check(int64_t layer, absl::Span<const int32_t> experts) const;

  // By expert id. Only experts for which Check was OK may be read.
  absl::Span<const kernels::ExpertWeights> Layer(int64_t layer) const;

  int64_t num_loaded() const { return num_loaded_; }

 private:
  struct Id {
    int layer;
    int expert;
  };

  std::vector<Id> Missing(const Placement& placement, WorkerId self) const;
  size_t IndexOf(int64_t layer, int64_t expert) const {
    return static_cast<size_t>(layer * config_.num_experts + expert);
  }

  const Checkpoint* const checkpoint_;
  const ModelConfig& config_;
  const Dtype mode_;
  std::mutex loading_;                               // one Load at a time
  std::vector<kernels::ExpertWeights> weights_;      // [num_layers * num_experts]; never resized
  std::vector<std::shared_ptr<const void>> memory_;  // of loaded weights; guarded by loading_
  // [num_layers * num_experts]; set after the entry of weights_, which is never changed again
  std::unique_ptr<std::atomic<bool>[]> loaded_;
  std::atomic<int64_t> num_loaded_{0};
};

}  // namespace tandem

#endif  // TANDEM_EXPERT_WORKER_LOADED_EXPERTS_H_
