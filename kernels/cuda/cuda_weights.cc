#include "kernels/cuda/cuda_weights.h"

#include <array>

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/expert_mlp.h"
#include "kernels/cuda/made_up.h"
#include "kernels/device_access.h"

namespace tandem::kernels::cuda {

absl::StatusOr<DeviceCopy> DeviceCopy::Of(const OwnedTensor& owned, DeviceMemory* memory) {
  const TensorView& tensor = owned.view;
  DeviceCopy copy;
  TANDEM_ASSIGN_OR_RETURN(copy.memory, memory->Take(tensor.bytes()));
  copy.tensor = tensor.rank == 1
                    ? copy.memory->Tensor(tensor.dtype, {tensor.dim(0)})
                    : copy.memory->Tensor(tensor.dtype, {tensor.dim(0), tensor.dim(1)});
  if (owned.made_up.has_value()) {
    MakeUpValues(memory->stream(), *owned.made_up, copy.tensor);
    return copy;
  }
  for (int64_t row = 0; row < tensor.rows(); ++row) {
    if (tensor.row_stride == tensor.width()) {
      memory->Write(tensor.data, copy.tensor);
      break;
    }
    memory->Write(tensor.row(row), copy.tensor.slice_rows(row, 1));
  }
  return copy;
}

absl::StatusOr<std::unique_ptr<CudaExpertLayer>> CudaExpertLayer::Create(
    const ExpertLayerShape& shape, WeightFormat format, DeviceMemory* memory) {
  const size_t bytes = static_cast<size_t>(shape.num_experts) * sizeof(ExpertPointers);
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Buffer> pointers, memory->TakeZeroed(bytes));
  return std::unique_ptr<CudaExpertLayer>(
      new CudaExpertLayer(shape, format, memory, std::move(pointers)));
}

CudaExpertLayer::CudaExpertLayer(const ExpertLayerShape& shape, WeightFormat format,
                                 DeviceMemory* memory, std::unique_ptr<Buffer> pointers)
    : ExpertLayer(format, shape),
      memory_(*memory),
      pointers_memory_(std::move(pointers)),
      pointers_(pointers_memory_->Tensor(Dtype::kU8,
                                         {shape.num_experts, int64_t{sizeof(ExpertPointers)}})),
      experts_(shape.num_experts) {}

absl::StatusOr<int64_t> CudaExpertLayer::DoLoad(int expert, ExpertTensors tensors, PackedUnit*) {
  Matrices matrices;
  TANDEM_ASSIGN_OR_RETURN(matrices.gate, DeviceCopy::Of(tensors.gate, &memory_));
  TANDEM_ASSIGN_OR_RETURN(matrices.up, DeviceCopy::Of(tensors.up, &memory_));
  TANDEM_ASSIGN_OR_RETURN(matrices.down, DeviceCopy::Of(tensors.down, &memory_));
  experts_[expert] = std::move(matrices);
  PutPointers(expert);
  return static_cast<int64_t>(tensors.gate.view.bytes() + tensors.up.view.bytes() +
                              tensors.down.view.bytes());
}

void CudaExpertLayer::DoUnload(int expert) {
  experts_[expert] = {};
  PutPointers(expert);
}

void CudaExpertLayer::PutPointers(int expert) {
  const Matrices& matrices = experts_[expert];
  const auto pointer = [](const DeviceCopy& copy) {
    return ExpertPointers::Matrix{DeviceAccess::Address(copy.tensor),
                                  copy.tensor.dtype == Dtype::kF32};
  };
  const ExpertPointers pointers = {pointer(matrices.gate), pointer(matrices.up),
                                   pointer(matrices.down)};
  memory_.Write(&pointers, pointers_.slice_rows(expert, 1));
}

}  // namespace tandem::kernels::cuda
