// What builds without CUDA have of it.
#include "absl/status/status.h"
#include "kernels/backend.h"

namespace tandem::kernels {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaOptions&) {
  return absl::FailedPreconditionError(
      "This build has no cuda backend: when it was configured, no CUDA toolkit was found or "
      "-DTANDEM_CUDA=off was given");
}

}  // namespace tandem::kernels
