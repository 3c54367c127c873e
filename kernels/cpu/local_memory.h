// On the CPU, the device's memory is the host's and a weight lies as in the file: how kernels/cpu/
// comes to both.
#ifndef TANDEM_KERNELS_CPU_LOCAL_MEMORY_H_
#define TANDEM_KERNELS_CPU_LOCAL_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/tensor.h"
#include "kernels/device_access.h"
#include "kernels/weights.h"

namespace tandem::kernels::cpu {

inline std::byte* Row(const DeviceTensor& tensor, int64_t i) {
  return DeviceAccess::Address(tensor) + i * static_cast<int64_t>(tensor.row_stride_bytes());
}
template <typename T>
T* Data(const DeviceTensor& tensor) {
  return reinterpret_cast<T*>(DeviceAccess::Address(tensor));
}
// A rank-1 tensor of indices.
inline absl::Span<const int32_t> Ints(const DeviceTensor& tensor) {
  return {Data<const int32_t>(tensor), static_cast<size_t>(tensor.elements())};
}
inline TensorView View(const DeviceTensor& tensor) {
  TensorView view;
  static_cast<TensorLayout&>(view) = tensor;
  view.data = DeviceAccess::Address(tensor);
  return view;
}

// ---- weights, as they lie in the file or its converted copy ----

struct CpuLinear final : LinearWeight {
  CpuLinear(OwnedTensor tensor, WeightFormat format)
      : LinearWeight(format, tensor.view.dim(0), tensor.view.dim(1)), tensor(std::move(tensor)) {}
  const OwnedTensor tensor;
};
struct CpuKvUp final : KvUpWeight {
  CpuKvUp(OwnedTensor tensor, const KvUpShape& shape, WeightFormat format)
      : KvUpWeight(format, shape), tensor(std::move(tensor)) {}
  const OwnedTensor tensor;
};
struct CpuEmbedding final : EmbeddingWeight {
  CpuEmbedding(OwnedTensor tensor, WeightFormat format)
      : EmbeddingWeight(format, tensor.view.dim(0), tensor.view.dim(1)),
        tensor(std::move(tensor)) {}
  const OwnedTensor tensor;
};
struct CpuNorm final : NormWeight {
  CpuNorm(OwnedTensor tensor, WeightFormat format)
      : NormWeight(format, tensor.view.dim(0)), tensor(std::move(tensor)) {}
  const OwnedTensor tensor;
};

class CpuExpertLayer final : public ExpertLayer {
 public:
  CpuExpertLayer(const ExpertLayerShape& shape, WeightFormat format)
      : ExpertLayer(format, shape), experts_(shape.num_experts) {}

  // Requires that it is loaded.
  const ExpertTensors& expert(int id) const { return experts_[id]; }

 private:
  absl::StatusOr<int64_t> DoLoad(int expert, ExpertTensors tensors) override {
    const size_t bytes =
        tensors.gate.view.bytes() + tensors.up.view.bytes() + tensors.down.view.bytes();
    experts_[expert] = std::move(tensors);
    return static_cast<int64_t>(bytes);
  }
  void DoUnload(int expert) override { experts_[expert] = {}; }

  std::vector<ExpertTensors> experts_;
};

// The tensor of a weight that this backend has prepared.
inline const TensorView& View(const LinearWeight& weight) {
  return static_cast<const CpuLinear&>(weight).tensor.view;
}
inline const TensorView& View(const KvUpWeight& weight) {
  return static_cast<const CpuKvUp&>(weight).tensor.view;
}
inline const TensorView& View(const EmbeddingWeight& weight) {
  return static_cast<const CpuEmbedding&>(weight).tensor.view;
}
inline const TensorView& View(const NormWeight& weight) {
  return static_cast<const CpuNorm&>(weight).tensor.view;
}
inline const ExpertTensors& Expert(const ExpertLayer& layer, int id) {
  return static_cast<const CpuExpertLayer&>(layer).expert(id);
}

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_LOCAL_MEMORY_H_
