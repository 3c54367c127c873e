// What is the same for every backend: arguments are checked, then the device takes them.
#include "kernels/backend.h"

#include <utility>

#include "kernels/check_args.h"
#include "kernels/device_access.h"

namespace tandem::kernels {

DeviceTensor Buffer::Tensor(Dtype dtype, std::initializer_list<int64_t> dims,
                            size_t offset_bytes) const {
  const TensorLayout layout(dtype, dims);
  TANDEM_CHECK(offset_bytes <= bytes_ && layout.bytes() <= bytes_ - offset_bytes);
  return DeviceAccess::Tensor(static_cast<std::byte*>(address_) + offset_bytes, layout);
}

void Backend::Copy(const DeviceTensor& from, const DeviceTensor& to) {
  CheckCopy(from, to);
  DoCopy(from, to);
}

absl::StatusOr<std::unique_ptr<LinearWeight>> Backend::PrepareLinear(OwnedTensor tensor,
                                                                     WeightFormat format,
                                                                     PackedUnit* unit) {
  CheckLinearTensor(tensor.view, format);
  return DoPrepareLinear(std::move(tensor), format, unit);
}
absl::StatusOr<std::unique_ptr<KvUpWeight>> Backend::PrepareKvUp(OwnedTensor tensor,
                                                                 const KvUpShape& shape,
                                                                 WeightFormat format,
                                                                 PackedUnit* unit) {
  CheckKvUpTensor(tensor.view, shape, format);
  return DoPrepareKvUp(std::move(tensor), shape, format, unit);
}
absl::StatusOr<std::unique_ptr<EmbeddingWeight>> Backend::PrepareEmbedding(OwnedTensor tensor,
                                                                           WeightFormat format) {
  CheckEmbeddingTensor(tensor.view, format);
  return DoPrepareEmbedding(std::move(tensor), format);
}
absl::StatusOr<std::unique_ptr<NormWeight>> Backend::PrepareNorm(OwnedTensor tensor,
                                                                 WeightFormat format) {
  CheckNormTensor(tensor.view, format);
  return DoPrepareNorm(std::move(tensor), format);
}
absl::StatusOr<std::unique_ptr<ExpertLayer>> Backend::PrepareExpertLayer(
    const ExpertLayerShape& shape, WeightFormat format) {
  CheckExpertLayerShape(shape);
  return DoPrepareExpertLayer(shape, format);
}
absl::StatusOr<int64_t> ExpertLayer::Load(int expert, ExpertTensors tensors, PackedUnit* unit) {
  CheckExpertTensors(tensors, shape_, format());
  TANDEM_CHECK(expert >= 0 && expert < shape_.num_experts);
  return DoLoad(expert, std::move(tensors), unit);
}
void ExpertLayer::Unload(int expert) {
  TANDEM_CHECK(expert >= 0 && expert < shape_.num_experts);
  DoUnload(expert);
}

#define TANDEM_CHECKED_OP(Op)              \
  void Backend::Op(const Op##Args& args) { \
    CheckArgs(args);                       \
    Do##Op(args);                          \
  }
TANDEM_CHECKED_OP(Embed)
TANDEM_CHECKED_OP(GatherRows)
TANDEM_CHECKED_OP(RmsNorm)
TANDEM_CHECKED_OP(Linear)
TANDEM_CHECKED_OP(SiluMul)
TANDEM_CHECKED_OP(Add)
TANDEM_CHECKED_OP(RopeTable)
TANDEM_CHECKED_OP(Rope)
TANDEM_CHECKED_OP(LatentAppend)
TANDEM_CHECKED_OP(MlaAbsorbQuery)
TANDEM_CHECKED_OP(MlaAbsorbed)
TANDEM_CHECKED_OP(MlaProjectValue)
TANDEM_CHECKED_OP(MlaExpanded)
TANDEM_CHECKED_OP(Route)
TANDEM_CHECKED_OP(ExpertMlp)
TANDEM_CHECKED_OP(Combine)
TANDEM_CHECKED_OP(AdjustLogits)
TANDEM_CHECKED_OP(Sample)
TANDEM_CHECKED_OP(TopLogProbs)
TANDEM_CHECKED_OP(LogProb)
#undef TANDEM_CHECKED_OP

}  // namespace tandem::kernels
