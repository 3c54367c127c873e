// The ops of kernels/backend.h on a GPU: all in one stream, so one after the other in the order of
// the calls. What an op needs of memory besides its tensors it takes for the time of the call: what
// comes next in the stream may have it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_weights.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/expert_mlp.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mla_absorbed.h"
#include "kernels/cuda/mla_expanded.h"
#include "kernels/cuda/rope_ops.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/sample.h"
#include "kernels/device_access.h"

namespace tandem::kernels {
namespace cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<DeviceMemory> memory, Numerics numerics)
      : memory_(std::move(memory)),
        stream_(memory_->stream()),
        bf16_order_(numerics == Numerics::kAuto ? SumOrder::kTensor : SumOrder::kBlock) {}

  std::string Description() const override {
    return absl::StrCat("cuda ", memory_->gpu().name, ", ", memory_->bytes() >> 20, " MiB");
  }
  std::string NumericsClass(Dtype mode, WeightFormat format) const override {
    if (OrderOf(mode, format) == SumOrder::kBlock) return "portable-1";
    return absl::StrCat("tensor-", memory_->gpu().architecture, "-1");
  }

  bool Has(WeightFormat format) const override { return !IsInteger(format); }
  bool MakesUpWeights() const override { return true; }
  std::optional<int64_t> MemoryBytes() const override {
    return static_cast<int64_t>(memory_->bytes());
  }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    return memory_->TakeZeroed(bytes);
  }
  void Write(const void* from, const DeviceTensor& to) override { memory_->Write(from, to); }
  std::unique_ptr<DeviceEvent> Read(const DeviceTensor& from, void* to) override {
    return memory_->Read(from, to);
  }

 private:
  void DoCopy(const DeviceTensor& from, const DeviceTensor& to) override {
    memory_->Copy(from, to);
  }

  SumOrder OrderOf(Dtype act, WeightFormat format) const {
    return act == Dtype::kBF16 && format == WeightFormat::kBF16 ? bf16_order_ : SumOrder::kBlock;
  }

  absl::Status Require(WeightFormat format) const {
    if (Has(format)) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrCat(
        "The cuda backend has no ", WeightFormatName(format), " weights, but f32 and bf16"));
  }
  template <typename Kind, typename... Arguments>
  absl::StatusOr<std::unique_ptr<Kind>> Prepare(const OwnedTensor& tensor, WeightFormat format,
                                                const Arguments&... arguments) {
    TANDEM_RETURN_IF_ERROR(Require(format));
    TANDEM_ASSIGN_OR_RETURN(DeviceCopy copy, DeviceCopy::Of(tensor, memory_.get()));
    return std::make_unique<CudaWeight<Kind>>(std::move(copy), format, arguments...);
  }
  absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(OwnedTensor tensor,
                                                                WeightFormat format,
                                                                PackedUnit*) override {
    return Prepare<LinearWeight>(tensor, format, tensor.view.dim(0), tensor.view.dim(1));
  }
  absl::StatusOr<std::unique_ptr<KvUpWeight>> DoPrepareKvUp(OwnedTensor tensor,
                                                            const KvUpShape& shape,
                                                            WeightFormat format,
                                                            PackedUnit*) override {
    return Prepare<KvUpWeight>(tensor, format, shape);
  }
  absl::StatusOr<std::unique_ptr<EmbeddingWeight>> DoPrepareEmbedding(
      OwnedTensor tensor, WeightFormat format) override {
    return Prepare<EmbeddingWeight>(tensor, format, tensor.view.dim(0), tensor.view.dim(1));
  }
  absl::StatusOr<std::unique_ptr<NormWeight>> DoPrepareNorm(OwnedTensor tensor,
                                                            WeightFormat format) override {
    return Prepare<NormWeight>(tensor, format, tensor.view.dim(0));
  }
  absl::StatusOr<std::unique_ptr<ExpertLayer>> DoPrepareExpertLayer(const ExpertLayerShape& shape,
                                                                    WeightFormat format) override {
    TANDEM_RETURN_IF_ERROR(Require(format));
    return CudaExpertLayer::Create(shape, format, memory_.get());
  }

  void DoEmbed(const EmbedArgs& args) override {
    cuda::Embed(stream_, TensorOf(args.table), args.ids, args.out);
  }
  void DoGatherRows(const GatherRowsArgs& args) override {
    cuda::GatherRows(stream_, args.x, args.rows, args.out);
  }
  void DoRmsNorm(const RmsNormArgs& args) override {
    cuda::RmsNorm(stream_, args.x, TensorOf(args.weight), args.eps, args.out);
  }
  void DoLinear(const LinearArgs& args) override {
    cuda::Linear(stream_, args.x, TensorOf(args.weight), args.out,
                 OrderOf(args.x.dtype, args.weight.format()));
  }
  void DoSiluMul(const SiluMulArgs& args) override {
    cuda::SiluMul(stream_, args.gate, args.up, args.out);
  }
  void DoAdd(const AddArgs& args) override { cuda::Add(stream_, args.a, args.b, args.out); }

  void DoRopeTable(const RopeTableArgs& args) override {
    cuda::RopeTable(stream_, args.positions, args.frequencies, args.factor, args.out);
  }
  void DoRope(const RopeArgs& args) override { cuda::Rope(stream_, args.x, args.cos_sin); }
  void DoLatentAppend(const LatentAppendArgs& args) override {
    cuda::LatentAppend(stream_,
                       {args.kv_a, TensorOf(args.norm_weight), args.cos_sin, args.pages,
                        args.page_ids, args.slots},
                       args.eps);
  }
  void DoMlaAbsorbQuery(const MlaAbsorbQueryArgs& args) override {
    cuda::MlaAbsorbQuery(stream_, args.q, TensorOf(args.kv_up), args.kv_up.shape(), args.q_latent);
  }
  void DoMlaAbsorbed(const MlaAbsorbedArgs& args) override {
    const MlaAbsorbedTensors tensors = {
        args.q_latent,     args.q,       args.pages, args.page_tables,
        args.table_of_row, args.lengths, args.out};
    const MlaAbsorbedSplit split = SplitMlaAbsorbed(tensors);
    const Scratch scratch(memory_.get(), MlaAbsorbedScratchBytes(tensors, split));
    cuda::MlaAbsorbed(stream_, tensors, args.scale, split, scratch.memory());
  }
  void DoMlaProjectValue(const MlaProjectValueArgs& args) override {
    cuda::MlaProjectValue(stream_, args.latent, TensorOf(args.kv_up), args.kv_up.shape(), args.out);
  }
  void DoMlaExpanded(const MlaExpandedArgs& args) override {
    const MlaExpandedTensors tensors = {args.q,
                                        TensorOf(args.kv_up),
                                        args.pages,
                                        args.page_table,
                                        args.positions,
                                        args.out,
                                        args.kv_up.shape(),
                                        args.num_tokens,
                                        args.scale,
                                        OrderOf(args.q.dtype, args.kv_up.format())};
    const Scratch scratch(memory_.get(), MlaExpandedScratchBytes(tensors));
    cuda::MlaExpanded(stream_, tensors, scratch.memory());
  }

  void DoRoute(const RouteArgs& args) override {
    const TensorLayout layout(Dtype::kF32, {args.x.rows(), args.weight.outputs()});
    const Scratch scratch(memory_.get(), layout.bytes());
    const DeviceTensor logits = DeviceAccess::Tensor(scratch.memory(), layout);
    cuda::Linear(stream_, args.x, TensorOf(args.weight), logits,
                 OrderOf(args.x.dtype, args.weight.format()));
    const RouteChoice choice = {args.top_k, args.num_groups, args.top_groups, args.normalize,
                                args.scaling};
    cuda::ChooseExperts(stream_, logits, choice, args.expert_ids, args.weights);
  }
  void DoExpertMlp(const ExpertMlpArgs& args) override {
    const auto& layer = static_cast<const CudaExpertLayer&>(args.experts);
    const ExpertLayerShape& shape = layer.shape();
    const ExpertMlpTensors tensors = {
        args.x,          layer.pointers(), shape.intermediate, args.route_experts,
        args.route_rows, args.out};
    const Scratch scratch(memory_.get(), ExpertMlpScratchBytes(args.out.rows(), shape.num_experts,
                                                               shape.intermediate, args.x.dtype));
    cuda::ExpertMlp(stream_, tensors, OrderOf(args.x.dtype, layer.format()), scratch.memory());
  }
  void DoCombine(const CombineArgs& args) override {
    cuda::Combine(stream_, args.expert_rows, args.offsets, args.weights, args.out);
  }

  void DoAdjustLogits(const AdjustLogitsArgs& args) override { cuda::AdjustLogits(stream_, args); }
  void DoSample(const SampleArgs& args) override { cuda::Sample(stream_, args); }
  void DoTopLogProbs(const TopLogProbsArgs& args) override { cuda::TopLogProbs(stream_, args); }
  void DoLogProb(const LogProbArgs& args) override { cuda::LogProb(stream_, args); }

  // Memory of one call. Without any the process ends, as it does for a pass's own tensors.
  class Scratch {
   public:
    Scratch(DeviceMemory* memory, size_t bytes) {
      auto buffer = memory->Take(bytes);
      if (!buffer.ok()) {
        std::fprintf(stderr, "%s\n", std::string(buffer.status().message()).c_str());
        std::abort();
      }
      buffer_ = *std::move(buffer);
    }
    std::byte* memory() const {
      return DeviceAccess::Address(
          buffer_->Tensor(Dtype::kU8, {static_cast<int64_t>(buffer_->bytes())}));
    }

   private:
    std::unique_ptr<Buffer> buffer_;
  };

  const std::unique_ptr<DeviceMemory> memory_;
  const Stream stream_;
  const SumOrder bf16_order_;  // of products of bf16 with bf16
};

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<cuda::DeviceMemory> memory,
                          cuda::DeviceMemory::Open(options.memory_bytes));
  return std::make_unique<cuda::CudaBackend>(std::move(memory), options.numerics);
}

}  // namespace tandem::kernels
