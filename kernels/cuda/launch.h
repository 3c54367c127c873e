// Starting kernels, by CUDA or by the emulation.
#ifndef TANDEM_KERNELS_CUDA_LAUNCH_H_
#define TANDEM_KERNELS_CUDA_LAUNCH_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/ptx.h"

namespace tandem::kernels::cuda {

#if defined(__CUDACC__)

using Stream = cudaStream_t;

// Starts blocks [0, blocks) of `threads` threads. What is wrong with it shows at the next
// synchronisation of the stream, as CUDA has it.
template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, void (*kernel)(Parameters...), int64_t blocks, int threads,
            size_t shared_bytes, const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, stream>>>(
      arguments...);
}

#else

// The order in which threads and blocks take turns.
struct Stream {
  uint64_t seed = 0;
};

// Ends the process, with a sentence, if threads wait for what never comes.
void RunOrDie(Stream stream, const emulation::LaunchShape& shape, absl::FunctionRef<void()> kernel);

template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, void (*kernel)(Parameters...), int64_t blocks, int threads,
            size_t shared_bytes, const Arguments&... arguments) {
  RunOrDie(
      stream,
      {{static_cast<unsigned>(blocks), 1, 1}, {static_cast<unsigned>(threads), 1, 1}, shared_bytes},
      [&] { kernel(arguments...); });
}

#endif

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_LAUNCH_H_
