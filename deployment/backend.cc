#include "deployment/backend.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/machine.h"
#include "common/status.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr char kDevices[] = "cpu, cuda or auto";

absl::StatusOr<kernels::Numerics> ParseNumerics(const std::string& name) {
  if (name == "auto") return kernels::Numerics::kAuto;
  if (name == "portable") return kernels::Numerics::kPortable;
  return absl::InvalidArgumentError(
      absl::StrCat("--numerics is \"", name, "\", but must be auto or portable"));
}

}  // namespace

void BackendOptions::AddTo(CommandLine& app, const std::string& when) {
  app.AddOption("--device", device,
                absl::StrCat(when, "what to compute on: ", kDevices,
                             ", which is a GPU where there is one"))
      .ShowDefault();
  app.AddOption("--gpu-memory", gpu_memory_bytes,
                absl::StrCat(when,
                             "with --device cuda: how much of the GPU's memory to take, such as "
                             "38GiB; default: what is free, but a sixteenth"))
      .ByteSize()
      .Range(int64_t{1}, int64_t{1} << 50);
  app.AddOption("--threads", threads,
                absl::StrCat(when, "compute threads, 0 for one per usable core"))
      .Range(0, 1024);
  app.AddOption(
      "--weights", weights,
      absl::StrCat(when,
                   "format of the weights, f32, bf16, int8 or int4, or auto: in one process, the "
                   "best that fits into memory; default: --dtype's"));
  app.AddOption("--packed-weights", packed_weights,
                absl::StrCat(when,
                             "folder that keeps packed weights for the next start, or off; "
                             "default: beside the checkpoint"));
  app.AddOption("--numerics", numerics,
                absl::StrCat(when,
                             "how bf16 is multiplied by bf16: auto, the fastest way of this "
                             "machine, or portable, to the same bits on every machine"))
      .ShowDefault();
}

absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const BackendOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(const kernels::Numerics numerics, ParseNumerics(options.numerics));
  const bool any = options.device == "auto";
  if (options.device == "cuda" || any) {
    auto cuda =
        kernels::CreateCudaBackend({static_cast<size_t>(options.gpu_memory_bytes), numerics});
    // Who says how much of a GPU wants no CPU.
    if (cuda.ok() || !any || options.gpu_memory_bytes > 0) return cuda;
    spdlog::info("--device auto is cpu: {}", std::string(cuda.status().message()));
  }
  if (options.device == "cpu" || any) {
    if (options.threads > 0) return kernels::CreateCpuBackend(options.threads, numerics);
    const MachineLimits limits = ReadMachineLimits();
    spdlog::info("compute threads: {}, by {}", limits.cpus, limits.cpus_from);
    return kernels::CreateCpuBackend(limits.cpus, numerics);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device is \"", options.device, "\", but must be ", kDevices));
}

MachineLimits LimitsOf(const kernels::Backend& backend) {
  MachineLimits limits = ReadMachineLimits();
  if (const std::optional<int64_t> bytes = backend.MemoryBytes()) {
    limits.memory_bytes = *bytes;
    limits.memory_from = backend.Description();
  }
  return limits;
}

std::string NumericsClass(const kernels::Backend& backend, Dtype mode, WeightFormat format) {
  std::string of_backend = backend.NumericsClass(mode, format);
  if (format == DefaultWeightFormat(mode)) return of_backend;
  return absl::StrCat(of_backend, " with ", WeightFormatName(format), " weights");
}

}  // namespace tandem
