#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "hwy/targets.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/float_kernels.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/thread_pool.h"

namespace tandem::kernels {
namespace {

constexpr size_t kAlignment = 64;

// calloc rather than aligned_alloc: large blocks come zeroed from the system, untouched until used.
class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(void* block, size_t bytes) : Buffer(Aligned(block), bytes), block_(block) {}
  ~CpuBuffer() override { std::free(block_); }

 private:
  static void* Aligned(void* block) {
    const auto address = reinterpret_cast<uintptr_t>(block);
    return static_cast<std::byte*>(block) + (kAlignment - address % kAlignment) % kAlignment;
  }

  void* const block_;
};

// Ops are done when they return.
class CpuEvent final : public DeviceEvent {
 public:
  bool Reached() const override { return true; }
  void Wait() const override {}
  void WhenReached(std::function<void()> reached) override { reached(); }
};

int64_t UsableTargets() { return hwy::SupportedTargets() & HWY_TARGETS; }

class CpuBackend final : public Backend {
 public:
  CpuBackend(int num_threads, Numerics numerics)
      : order_(numerics == Numerics::kAuto ? cpu::FastestOrder() : cpu::FloatOrder::kBlock),
        pool_(num_threads) {}

  std::string Description() const override {
    const int64_t targets = UsableTargets();
    const int64_t best = targets & -targets;  // the lowest bit is the widest
    return absl::StrCat("cpu ", absl::AsciiStrToLower(hwy::TargetName(best)), ", ",
                        pool_.num_threads(), pool_.num_threads() == 1 ? " thread" : " threads");
  }
  std::string NumericsClass(Dtype mode, WeightFormat format) const override {
    const bool all_bf16 = mode == Dtype::kBF16 && format == WeightFormat::kBF16;
    return all_bf16 && order_ == cpu::FloatOrder::kPair ? "dpbf16-1" : "portable-1";
  }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    void* block = bytes > SIZE_MAX - kAlignment ? nullptr : std::calloc(bytes + kAlignment, 1);
    if (block == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("The system does not have ", bytes, " bytes of memory for the cpu backend"));
    }
    return std::make_unique<CpuBuffer>(block, bytes);
  }

  void Write(const void* from, const DeviceTensor& to) override {
    const auto* source = static_cast<const std::byte*>(from);
    const size_t row_bytes = static_cast<size_t>(to.width()) * DtypeBytes(to.dtype);
    CopyRows(source, row_bytes, cpu::Row(to, 0), to.row_stride_bytes(), to.rows(), row_bytes);
  }
  std::unique_ptr<DeviceEvent> Read(const DeviceTensor& from, void* to) override {
    auto* target = static_cast<std::byte*>(to);
    const size_t row_bytes = static_cast<size_t>(from.width()) * DtypeBytes(from.dtype);
    CopyRows(cpu::Row(from, 0), from.row_stride_bytes(), target, row_bytes, from.rows(), row_bytes);
    return std::make_unique<CpuEvent>();
  }

 private:
  static void CopyRows(const std::byte* from, size_t from_stride, std::byte* to, size_t to_stride,
                       int64_t rows, size_t row_bytes) {
    if (from_stride == row_bytes && to_stride == row_bytes) {
      row_bytes *= static_cast<size_t>(rows);
      rows = 1;
    }
    if (row_bytes == 0) return;
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(to + i * to_stride, from + i * from_stride, row_bytes);
  }
  void DoCopy(const DeviceTensor& from, const DeviceTensor& to) override {
    const size_t row_bytes = static_cast<size_t>(from.width()) * DtypeBytes(from.dtype);
    CopyRows(cpu::Row(from, 0), from.row_stride_bytes(), cpu::Row(to, 0), to.row_stride_bytes(),
             from.rows(), row_bytes);
  }

  absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(OwnedTensor tensor,
                                                                WeightFormat format,
                                                                PackedUnit* unit) override {
    const PackedLayout layout = cpu::Matrix::LayoutToPrepare(tensor.view, format);
    TANDEM_ASSIGN_OR_RETURN(cpu::WeightMemory memory,
                            cpu::WeightMemory::FindOrAllocate(layout, unit, pool_));
    cpu::Matrix matrix = cpu::Matrix::Prepare(tensor.view, format, order_, &memory, pool_);
    memory.KeepIn(unit);
    return std::make_unique<cpu::CpuLinear>(std::move(matrix), format);
  }
  absl::StatusOr<std::unique_ptr<KvUpWeight>> DoPrepareKvUp(OwnedTensor tensor,
                                                            const KvUpShape& shape,
                                                            WeightFormat format,
                                                            PackedUnit* unit) override {
    TANDEM_ASSIGN_OR_RETURN(std::vector<cpu::HeadMaps> maps,
                            cpu::PrepareHeadMaps(tensor.view, shape, format, order_, unit, pool_));
    return std::make_unique<cpu::CpuKvUp>(std::move(maps), shape, format);
  }
  absl::StatusOr<std::unique_ptr<EmbeddingWeight>> DoPrepareEmbedding(
      OwnedTensor tensor, WeightFormat format) override {
    return std::make_unique<cpu::CpuEmbedding>(std::move(tensor), format);
  }
  absl::StatusOr<std::unique_ptr<NormWeight>> DoPrepareNorm(OwnedTensor tensor,
                                                            WeightFormat format) override {
    return std::make_unique<cpu::CpuNorm>(std::move(tensor), format);
  }
  absl::StatusOr<std::unique_ptr<ExpertLayer>> DoPrepareExpertLayer(const ExpertLayerShape& shape,
                                                                    WeightFormat format) override {
    return std::make_unique<cpu::CpuExpertLayer>(shape, format, order_, &pool_);
  }

  void DoEmbed(const EmbedArgs& args) override { cpu::Embed(args, pool_); }
  void DoGatherRows(const GatherRowsArgs& args) override { cpu::GatherRows(args, pool_); }
  void DoRmsNorm(const RmsNormArgs& args) override { cpu::RmsNorm(args, pool_); }
  void DoLinear(const LinearArgs& args) override { cpu::Linear(args, pool_); }
  void DoSiluMul(const SiluMulArgs& args) override { cpu::SiluMul(args, pool_); }
  void DoAdd(const AddArgs& args) override { cpu::Add(args, pool_); }
  void DoRopeTable(const RopeTableArgs& args) override { cpu::RopeTable(args, pool_); }
  void DoRope(const RopeArgs& args) override { cpu::Rope(args, pool_); }
  void DoLatentAppend(const LatentAppendArgs& args) override { cpu::LatentAppend(args, pool_); }
  void DoMlaAbsorbQuery(const MlaAbsorbQueryArgs& args) override {
    cpu::MlaAbsorbQuery(args, pool_);
  }
  void DoMlaAbsorbed(const MlaAbsorbedArgs& args) override { cpu::MlaAbsorbed(args, pool_); }
  void DoMlaProjectValue(const MlaProjectValueArgs& args) override {
    cpu::MlaProjectValue(args, pool_);
  }
  void DoMlaExpanded(const MlaExpandedArgs& args) override { cpu::MlaExpanded(args, pool_); }
  void DoRoute(const RouteArgs& args) override { cpu::Route(args, pool_); }
  void DoExpertMlp(const ExpertMlpArgs& args) override { cpu::ExpertMlp(args, pool_); }
  void DoCombine(const CombineArgs& args) override { cpu::Combine(args, pool_); }
  void DoAdjustLogits(const AdjustLogitsArgs& args) override { cpu::AdjustLogits(args, pool_); }
  void DoSample(const SampleArgs& args) override { cpu::Sample(args, pool_); }
  void DoTopLogProbs(const TopLogProbsArgs& args) override { cpu::TopLogProbs(args, pool_); }
  void DoLogProb(const LogProbArgs& args) override { cpu::LogProb(args, pool_); }

  const cpu::FloatOrder order_;  // of bf16 by bf16
  cpu::ThreadPool pool_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int num_threads, Numerics numerics) {
  if (num_threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("The number of threads must not be negative, but is ", num_threads));
  }
  if (UsableTargets() == 0) {
    return absl::FailedPreconditionError(
        "The cpu backend needs a processor with AVX2, FMA and F16C");
  }
  return std::make_unique<CpuBackend>(num_threads, numerics);
}

}  // namespace tandem::kernels
