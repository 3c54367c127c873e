// The routed experts that an expert worker holds.
#ifndef TANDEM_EXPERT_WORKER_LOADED_EXPERTS_H_
#define TANDEM_EXPERT_WORKER_LOADED_EXPERTS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/checkpoint/checkpoint.h"
#include "common/mode.h"
#include "common/mutex.h"
#include "common/packed_unit.h"
#include "common/placement.h"
#include "kernels/backend.h"

namespace tandem {

// Gives an expert's weights as another worker has packed them, the layout's bytes at a multiple of
// the page size, so that nothing is read of the checkpoint. Null: it is to be read.
using ExpertFetch = std::function<std::shared_ptr<const std::byte>(int layer, int expert,
                                                                   const PackedLayout& layout)>;

// Thread-safe: experts can be used while others are loaded or let go.
class LoadedExperts {
 public:
  // With nothing loaded. `checkpoint` and `backend` must outlive the table.
  static absl::StatusOr<std::unique_ptr<LoadedExperts>> Create(const Checkpoint* checkpoint,
                                                               kernels::Backend* backend,
                                                               WeightFormat format);

  // Prepares the weights of every expert that `placement` gives to `self` and that is not loaded,
  // and nothing else; reports the share done. From then on the placement's version is in use.
  // Blocks. Before each expert `may_go_on` is asked; what it says ends the loading, and what was
  // loaded by then stays until the next Retire or DropUnwanted; the version is not in use then.
  // `fetch` is asked for each, where the device packs. Each function may be null.
  //   INVALID_ARGUMENT    the placement is for a model of another shape
  //   RESOURCE_EXHAUSTED  the device has no memory for them
  absl::Status Load(const Placement& placement, WorkerId self,
                    const std::function<void(float)>& progress,
                    const std::function<absl::Status()>& may_go_on = nullptr,
                    const ExpertFetch& fetch = nullptr);

  // Placements below `oldest_in_use`, and those of another gateway's life, are used no more:
  // experts that no version in use gives to this worker are let go, and work under an older version
  // is refused. Does nothing unless one is loaded that is not below. Waits until nobody uses any
  // (Use), so for one call of an op at most.
  void Retire(PlacementVersion oldest_in_use);

  // Lets go of what no version in use gives to this worker. Waits likewise.
  void DropUnwanted();

  // While it lives, no expert is let go. Not for long.
  std::shared_lock<std::shared_mutex> Use() const {
    return std::shared_lock<std::shared_mutex>(in_use_);
  }
  // FAILED_PRECONDITION for a version that has been retired. Requires Use.
  absl::Status CheckVersion(PlacementVersion version) const;
  // INVALID_ARGUMENT for a layer without experts or an expert that the model has not, NOT_FOUND for
  // one that is not loaded. Certain only within Use.
  absl::Status Check(int64_t layer, absl::Span<const int32_t> experts) const;
  // An expert's weights for another worker; they stay while they are owned, though the expert goes.
  //   INVALID_ARGUMENT  as Check
  //   NOT_FOUND         it is not loaded, or the device does not pack
  absl::StatusOr<PackedBytes> Packed(int64_t layer, int32_t expert) const;
  // The checkpoint's tensors of an expert.
  static std::vector<std::string> TensorNames(int layer, int expert);
  // Names what is packed of them.
  static std::string UnitName(int layer, int expert);
  // Requires a layer with experts. Only experts for which Check was OK may be used.
  const kernels::ExpertLayer& Layer(int64_t layer) const { return *layers_[layer]; }
  // By layer of the model; null where it is dense.
  std::vector<const kernels::ExpertLayer*> Layers() const;

  int64_t num_loaded() const { return num_loaded_; }
  int64_t num_loads() const { return num_loads_; }  // ever
  // [num_layers * num_experts], by layer.
  std::vector<bool> Loaded() const;
  // Of the weights that are loaded, on the device or mapped.
  int64_t bytes() const { return bytes_; }

 private:
  struct Id {
    int layer;
    int expert;
  };

  LoadedExperts(const Checkpoint* checkpoint, WeightFormat format);

  absl::Status LoadThese(const std::vector<Id>& missing, int64_t total_bytes,
                         const std::function<void(float)>& progress,
                         const std::function<absl::Status()>& may_go_on, const ExpertFetch& fetch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  // Its tensors without data.
  absl::StatusOr<kernels::ExpertTensors> Outline(const Id& id) const;
  // Returns the bytes that the device holds for it.
  absl::StatusOr<int64_t> LoadOne(const Id& id, CheckpointLoader& loader, const ExpertFetch& fetch);
  void UnloadUnwanted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  size_t IndexOf(int64_t layer, int64_t expert) const {
    return static_cast<size_t>(layer * config_.num_experts + expert);
  }

  const Checkpoint* const checkpoint_;
  const ModelConfig& config_;
  const WeightFormat format_;
  std::vector<std::unique_ptr<kernels::ExpertLayer>> layers_;  // null where dense

  Mutex changing_;  // one Load or Retire at a time
  // The experts that each version in use gives to this worker.
  std::map<PlacementVersion, std::vector<bool>> in_use_versions_ ABSL_GUARDED_BY(changing_);
  std::vector<int64_t> bytes_of_ ABSL_GUARDED_BY(changing_);  // [num_layers * num_experts]

  mutable std::shared_mutex in_use_;  // exclusive while experts are let go
  PlacementVersion floor_;            // guarded by in_use_
  // [num_layers * num_experts]; set after the expert is there, cleared before it goes.
  std::unique_ptr<std::atomic<bool>[]> loaded_;
  std::atomic<int64_t> num_loaded_{0};
  std::atomic<int64_t> num_loads_{0};
  std::atomic<int64_t> bytes_{0};
};

}  // namespace tandem

#endif  // TANDEM_EXPERT_WORKER_LOADED_EXPERTS_H_
