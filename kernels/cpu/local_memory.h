// On the CPU, the device's memory is the host's, and what is not a matrix lies as in the file: how
// kernels/cpu/ comes to both.
#ifndef TANDEM_KERNELS_CPU_LOCAL_MEMORY_H_
#define TANDEM_KERNELS_CPU_LOCAL_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/status.h"
#include "common/tensor.h"
#include "kernels/cpu/head_maps.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/thread_pool.h"
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

// ---- weights ----

struct CpuLinear final : LinearWeight {
  CpuLinear(Matrix matrix, WeightFormat format)
      : LinearWeight(format, matrix.outputs(), matrix.inputs()), matrix(std::move(matrix)) {}
  const Matrix matrix;
};
struct CpuKvUp final : KvUpWeight {
  CpuKvUp(std::vector<HeadMaps> maps, const KvUpShape& shape, WeightFormat format)
      : KvUpWeight(format, shape), maps(std::move(maps)) {}
  const std::vector<HeadMaps> maps;  // one per head
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

struct ExpertMatrices {
  Matrix gate;  // [intermediate, hidden]
  Matrix up;    // [intermediate, hidden]
  Matrix down;  // [hidden, intermediate]
};

class CpuExpertLayer final : public ExpertLayer {
 public:
  // `pool`, which must outlive it, prepares the experts. `order`: see Matrix.
  CpuExpertLayer(const ExpertLayerShape& shape, WeightFormat format, FloatOrder order,
                 ThreadPool* pool)
      : ExpertLayer(format, shape), order_(order), pool_(*pool), experts_(shape.num_experts) {}

  // Requires that it is loaded.
  const ExpertMatrices& expert(int id) const { return experts_[id]; }

  PackedLayout LayoutOf(const ExpertTensors& tensors) const override {
    PackedLayout layout;
    for (const OwnedTensor* tensor : {&tensors.gate, &tensors.up, &tensors.down}) {
      Append(Matrix::LayoutToPrepare(tensor->view, format()), &layout);
    }
    return layout;
  }
  std::shared_ptr<const std::byte> Packed(int expert) const override {
    return experts_[expert].gate.memory();  // the first that was taken
  }

 private:
  absl::StatusOr<int64_t> DoLoad(int expert, ExpertTensors tensors, PackedUnit* unit) override {
    TANDEM_ASSIGN_OR_RETURN(WeightMemory memory,
                            WeightMemory::FindOrAllocate(LayoutOf(tensors), unit, pool_));
    const auto prepare = [&](const OwnedTensor& tensor) {
      return Matrix::Prepare(tensor.view, format(), order_, &memory, pool_);
    };
    ExpertMatrices& loaded = experts_[expert];
    loaded = {prepare(tensors.gate), prepare(tensors.up), prepare(tensors.down)};
    memory.KeepIn(unit);
    return loaded.gate.bytes() + loaded.up.bytes() + loaded.down.bytes();
  }
  void DoUnload(int expert) override { experts_[expert] = {}; }

  const FloatOrder order_;
  ThreadPool& pool_;
  std::vector<ExpertMatrices> experts_;
};

// What this backend has prepared.
inline const Matrix& MatrixOf(const LinearWeight& weight) {
  return static_cast<const CpuLinear&>(weight).matrix;
}
inline const std::vector<HeadMaps>& MapsOf(const KvUpWeight& weight) {
  return static_cast<const CpuKvUp&>(weight).maps;
}
inline const TensorView& View(const EmbeddingWeight& weight) {
  return static_cast<const CpuEmbedding&>(weight).tensor.view;
}
inline const TensorView& View(const NormWeight& weight) {
  return static_cast<const CpuNorm&>(weight).tensor.view;
}
inline const ExpertMatrices& Expert(const ExpertLayer& layer, int id) {
  return static_cast<const CpuExpertLayer&>(layer).expert(id);
}

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_LOCAL_MEMORY_H_
