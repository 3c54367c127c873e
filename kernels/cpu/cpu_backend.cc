#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "hwy/targets.h"
#include "kernels/backend.h"
#include "kernels/cpu/check_args.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/thread_pool.h"

namespace tandem::kernels {
namespace {

constexpr size_t kAlignment = 64;

// calloc rather than aligned_alloc: large blocks come zeroed from the system, untouched until used.
class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(void* block, size_t bytes) : block_(block), bytes_(bytes) {
    const auto address = reinterpret_cast<uintptr_t>(block);
    data_ = static_cast<std::byte*>(block) + (kAlignment - address % kAlignment) % kAlignment;
  }
  ~CpuBuffer() override { std::free(block_); }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

  void* data() const override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  void* block_;
  std::byte* data_;
  size_t bytes_;
};

int64_t UsableTargets() { return hwy::SupportedTargets() & HWY_TARGETS; }

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int num_threads) : pool_(num_threads) {}

  std::string Description() const override {
    const int64_t targets = UsableTargets();
    const int64_t best = targets & -targets;  // the lowest bit is the widest
    return absl::StrCat("cpu ", absl::AsciiStrToLower(hwy::TargetName(best)), ", ",
                        pool_.num_threads(), pool_.num_threads() == 1 ? " thread" : " threads");
  }
  std::string NumericsClass() const override { return "cpu-1"; }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    void* block = bytes > SIZE_MAX - kAlignment ? nullptr : std::calloc(bytes + kAlignment, 1);
    if (block == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("The system does not have ", bytes, " bytes of memory for the cpu backend"));
    }
    return std::make_unique<CpuBuffer>(block, bytes);
  }

  void CopyToHost(const TensorView& from, void* to) override {
    const size_t row_bytes = from.width() * DtypeBytes(from.dtype);
    auto* target = static_cast<std::byte*>(to);
    for (int64_t i = 0; i < from.rows(); ++i) {
      std::memcpy(target + i * row_bytes, from.row(i), row_bytes);
    }
  }
  void CopyFromHost(const void* from, const TensorView& to) override {
    const size_t row_bytes = to.width() * DtypeBytes(to.dtype);
    const auto* source = static_cast<const std::byte*>(from);
    for (int64_t i = 0; i < to.rows(); ++i) {
      std::memcpy(to.row(i), source + i * row_bytes, row_bytes);
    }
  }
  void Synchronize() override {}

  void Embed(const EmbedArgs& args) override { Run(cpu::Embed, args); }
  void RmsNorm(const RmsNormArgs& args) override { Run(cpu::RmsNorm, args); }
  void Linear(const LinearArgs& args) override { Run(cpu::Linear, args); }
  void SiluMul(const SiluMulArgs& args) override { Run(cpu::SiluMul, args); }
  void Add(const AddArgs& args) override { Run(cpu::Add, args); }

  void RopeTable(const RopeTableArgs& args) override { Run(cpu::RopeTable, args); }
  void Rope(const RopeArgs& args) override { Run(cpu::Rope, args); }
  void LatentAppend(const LatentAppendArgs& args) override { Run(cpu::LatentAppend, args); }
  void MlaAbsorbQuery(const MlaAbsorbQueryArgs& args) override { Run(cpu::MlaAbsorbQuery, args); }
  void MlaDecode(const MlaDecodeArgs& args) override { Run(cpu::MlaDecode, args); }
  void MlaProjectValue(const MlaProjectValueArgs& args) override {
    Run(cpu::MlaProjectValue, args);
  }
  void MlaPrefill(const MlaPrefillArgs& args) override { Run(cpu::MlaPrefill, args); }

  void Route(const RouteArgs& args) override { Run(cpu::Route, args); }
  void ExpertMlp(const ExpertMlpArgs& args) override { Run(cpu::ExpertMlp, args); }
  void Combine(const CombineArgs& args) override { Run(cpu::Combine, args); }

  void Sample(const SampleArgs& args) override { Run(cpu::Sample, args); }
  void LogProb(const LogProbArgs& args) override { Run(cpu::LogProb, args); }

 private:
  template <typename Args>
  void Run(void (*op)(const Args&, cpu::ThreadPool&), const Args& args) {
    cpu::CheckArgs(args);
    op(args, pool_);
  }

  cpu::ThreadPool pool_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int num_threads) {
  if (num_threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("The number of threads must not be negative, but is ", num_threads));
  }
  if (UsableTargets() == 0) {
    return absl::FailedPreconditionError(
        "The cpu backend needs a processor with AVX2, FMA and F16C");
  }
  return std::make_unique<CpuBackend>(num_threads);
}

}  // namespace tandem::kernels
