// The one place where a device is chosen.
#ifndef TANDEM_DEPLOYMENT_BACKEND_H_
#define TANDEM_DEPLOYMENT_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/command_line.h"
#include "common/machine.h"
#include "common/mode.h"
#include "kernels/backend.h"

namespace tandem {

// What a process computes with.
struct BackendOptions {
  std::string device = "cpu";
  int64_t gpu_memory_bytes = 0;  // 0: what is free, but a sixteenth
  int threads = 0;               // of the CPU, 0: one per core that this process may use
  std::string weights;           // their format; empty: the mode's
  std::string packed_weights;  // where those are kept that are packed; empty: beside the checkpoint
  std::string numerics = "auto";

  // --device, --gpu-memory, --threads, --weights, --packed-weights and --numerics; `when` begins
  // their descriptions: "with --model: ".
  void AddTo(CommandLine& app, const std::string& when = "");
};

// "auto" is the GPU, where the build and the machine have one, and otherwise the CPU.
// INVALID_ARGUMENT for an unknown device or other numerics; otherwise the device's own errors.
absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const BackendOptions& options);

// This machine's limits, with the memory that the backend computes in.
MachineLimits LimitsOf(const kernels::Backend& backend);

// What decides a result's bits besides the mode: the backend's class, and the format of the weights
// where it is not the mode's. Classes never mix within a deployment.
std::string NumericsClass(const kernels::Backend& backend, Dtype mode, WeightFormat format);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_BACKEND_H_
