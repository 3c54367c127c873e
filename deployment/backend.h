// The one place where a device is chosen.
#ifndef TANDEM_DEPLOYMENT_BACKEND_H_
#define TANDEM_DEPLOYMENT_BACKEND_H_

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "common/mode.h"
#include "kernels/backend.h"

namespace tandem {

// What a process computes with.
struct BackendOptions {
  std::string device = "cpu";
  int threads = 0;             // of the CPU, 0: one per core that this process may use
  std::string weights;         // their format; empty: the mode's
  std::string packed_weights;  // where those are kept that are packed; empty: beside the checkpoint
  std::string numerics = "auto";

  // --device, --threads, --weights, --packed-weights and --numerics; `when` begins their
  // descriptions: "with --model: ".
  void AddTo(CLI::App& app, const std::string& when = "");
};

// INVALID_ARGUMENT for a device that this build has not, or other numerics; otherwise the device's
// own errors.
absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const BackendOptions& options);

// What decides a result's bits besides the mode: the backend's class, and the format of the weights
// where it is not the mode's. Classes never mix within a deployment.
std::string NumericsClass(const kernels::Backend& backend, Dtype mode, WeightFormat format);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_BACKEND_H_
