// A backend whose ops are done when they return, so that a test may look at memory that it has in
// common with the device.
#ifndef TANDEM_TESTS_KERNELS_SYNCHRONOUS_BACKEND_H_
#define TANDEM_TESTS_KERNELS_SYNCHRONOUS_BACKEND_H_

#include <memory>
#include <string>
#include <utility>

#include "kernels/backend.h"

namespace tandem::kernels {

class SynchronousBackend final : public Backend {
 public:
  explicit SynchronousBackend(std::unique_ptr<Backend> backend)
      : backend_(std::move(backend)), byte_(*backend_->Allocate(1)) {}

  std::string Description() const override { return backend_->Description(); }
  std::string NumericsClass(Dtype mode, WeightFormat format) const override {
    return backend_->NumericsClass(mode, format);
  }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    auto buffer = backend_->Allocate(bytes);
    Finish();
    return buffer;
  }
  void Write(const void* from, const DeviceTensor& to) override {
    backend_->Write(from, to);
    Finish();
  }
  std::unique_ptr<DeviceEvent> Read(const DeviceTensor& from, void* to) override {
    auto event = backend_->Read(from, to);
    event->Wait();
    return event;
  }

 private:
  void Finish() {
    char byte = 0;
    backend_->Read(byte_->Tensor(Dtype::kU8, {1}), &byte)->Wait();
  }

  void DoCopy(const DeviceTensor& from, const DeviceTensor& to) override {
    backend_->Copy(from, to);
    Finish();
  }
  absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(OwnedTensor tensor,
                                                                WeightFormat format,
                                                                PackedUnit* unit) override {
    return backend_->PrepareLinear(std::move(tensor), format, unit);
  }
  absl::StatusOr<std::unique_ptr<KvUpWeight>> DoPrepareKvUp(OwnedTensor tensor,
                                                            const KvUpShape& shape,
                                                            WeightFormat format,
                                                            PackedUnit* unit) override {
    return backend_->PrepareKvUp(std::move(tensor), shape, format, unit);
  }
  absl::StatusOr<std::unique_ptr<EmbeddingWeight>> DoPrepareEmbedding(
      OwnedTensor tensor, WeightFormat format) override {
    return backend_->PrepareEmbedding(std::move(tensor), format);
  }
  absl::StatusOr<std::unique_ptr<NormWeight>> DoPrepareNorm(OwnedTensor tensor,
                                                            WeightFormat format) override {
    return backend_->PrepareNorm(std::move(tensor), format);
  }
  absl::StatusOr<std::unique_ptr<ExpertLayer>> DoPrepareExpertLayer(const ExpertLayerShape& shape,
                                                                    WeightFormat format) override {
    return backend_->PrepareExpertLayer(shape, format);
  }

#define TANDEM_SYNCHRONOUS_OP(Op)              \
  void Do##Op(const Op##Args& args) override { \
    backend_->Op(args);                        \
    Finish();                                  \
  }
  TANDEM_SYNCHRONOUS_OP(Embed)
  TANDEM_SYNCHRONOUS_OP(GatherRows)
  TANDEM_SYNCHRONOUS_OP(RmsNorm)
  TANDEM_SYNCHRONOUS_OP(Linear)
  TANDEM_SYNCHRONOUS_OP(SiluMul)
  TANDEM_SYNCHRONOUS_OP(Add)
  TANDEM_SYNCHRONOUS_OP(RopeTable)
  TANDEM_SYNCHRONOUS_OP(Rope)
  TANDEM_SYNCHRONOUS_OP(LatentAppend)
  TANDEM_SYNCHRONOUS_OP(MlaAbsorbQuery)
  TANDEM_SYNCHRONOUS_OP(MlaAbsorbed)
  TANDEM_SYNCHRONOUS_OP(MlaProjectValue)
  TANDEM_SYNCHRONOUS_OP(MlaExpanded)
  TANDEM_SYNCHRONOUS_OP(Route)
  TANDEM_SYNCHRONOUS_OP(ExpertMlp)
  TANDEM_SYNCHRONOUS_OP(Combine)
  TANDEM_SYNCHRONOUS_OP(AdjustLogits)
  TANDEM_SYNCHRONOUS_OP(Sample)
  TANDEM_SYNCHRONOUS_OP(TopLogProbs)
  TANDEM_SYNCHRONOUS_OP(LogProb)
#undef TANDEM_SYNCHRONOUS_OP

  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<Buffer> byte_;
};

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_SYNCHRONOUS_BACKEND_H_
