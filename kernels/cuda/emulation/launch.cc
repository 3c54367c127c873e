#include "kernels/cuda/launch.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace tandem::kernels::cuda {

void RunOrDie(Stream stream, const emulation::LaunchShape& shape,
              absl::FunctionRef<void()> kernel) {
  const absl::Status status = emulation::RunKernel(shape, stream.seed, kernel);
  if (status.ok()) return;
  std::fprintf(stderr, "a kernel went wrong: %s\n", std::string(status.message()).c_str());
  std::abort();
}

}  // namespace tandem::kernels::cuda
