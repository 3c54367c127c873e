// Weights in the GPU's memory, as a checkpoint has them: f32 or bf16, rows side by side.
#ifndef TANDEM_KERNELS_CUDA_CUDA_WEIGHTS_H_
#define TANDEM_KERNELS_CUDA_CUDA_WEIGHTS_H_

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/device_tensor.h"
#include "kernels/weights.h"

namespace tandem::kernels::cuda {

// A tensor that owns its memory.
struct DeviceCopy {
  std::unique_ptr<Buffer> memory;
  DeviceTensor tensor;

  // Of a tensor of rank 1 or 2, or made up as it says. RESOURCE_EXHAUSTED where the device has no
  // memory for it.
  static absl::StatusOr<DeviceCopy> Of(const OwnedTensor& owned, DeviceMemory* memory);
};

// A weight of a kind (LinearWeight, ...) that is one tensor.
template <typename Kind>
class CudaWeight final : public Kind {
 public:
  template <typename... Arguments>
  explicit CudaWeight(DeviceCopy copy, const Arguments&... arguments)
      : Kind(arguments...), copy_(std::move(copy)) {}

  const DeviceTensor& tensor() const { return copy_.tensor; }

 private:
  const DeviceCopy copy_;
};

// Requires that `weight` is of the CUDA backend.
template <typename Kind>
const DeviceTensor& TensorOf(const Kind& weight) {
  return static_cast<const CudaWeight<Kind>&>(weight).tensor();
}

class CudaExpertLayer final : public ExpertLayer {
 public:
  static absl::StatusOr<std::unique_ptr<CudaExpertLayer>> Create(const ExpertLayerShape& shape,
                                                                 WeightFormat format,
                                                                 DeviceMemory* memory);

  // [num_experts, sizeof(ExpertPointers)] u8: ExpertPointers, of those that are loaded.
  const DeviceTensor& pointers() const { return pointers_; }

 private:
  CudaExpertLayer(const ExpertLayerShape& shape, WeightFormat format, DeviceMemory* memory,
                  std::unique_ptr<Buffer> pointers);

  absl::StatusOr<int64_t> DoLoad(int expert, ExpertTensors tensors, PackedUnit* unit) override;
  void DoUnload(int expert) override;
  void PutPointers(int expert);

  struct Matrices {
    DeviceCopy gate, up, down;
  };

  DeviceMemory& memory_;
  const std::unique_ptr<Buffer> pointers_memory_;
  const DeviceTensor pointers_;
  std::vector<Matrices> experts_;  // each changed by whoever loads or unloads it
};

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_CUDA_WEIGHTS_H_
