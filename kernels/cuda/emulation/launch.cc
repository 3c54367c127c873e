#include "kernels/cuda/launch.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "kernels/cuda/emulation/work_queue.h"

namespace tandem::kernels::cuda {

namespace {

void Run(uint64_t seed, const emulation::LaunchShape& shape, const std::function<void()>& kernel) {
  const absl::Status status = emulation::RunKernel(shape, seed, kernel);
  if (status.ok()) return;
  std::fprintf(stderr, "a kernel went wrong: %s\n", std::string(status.message()).c_str());
  std::abort();
}

}  // namespace

void RunOrDie(Stream stream, const emulation::LaunchShape& shape, std::function<void()> kernel) {
  if (stream.queue == nullptr) return Run(stream.seed, shape, kernel);
  stream.queue->Add([=, kernel = std::move(kernel)] {
    // Each launch of a stream in another order.
    thread_local uint64_t launches = 0;
    Run(stream.seed + launches++, shape, kernel);
  });
}

}  // namespace tandem::kernels::cuda
