// Starting kernels, by CUDA or by the emulation.
#ifndef TANDEM_KERNELS_CUDA_LAUNCH_H_
#define TANDEM_KERNELS_CUDA_LAUNCH_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "common/check.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/stream.h"

#if !defined(TANDEM_CUDA_EMULATION)
#include "kernels/cuda/require.h"
#endif

namespace tandem::kernels::cuda {

#if !defined(TANDEM_CUDA_EMULATION)

// Starts blocks [0, blocks), of which there are some, of `threads` threads. Ends the process if
// CUDA does not take the launch; for what goes wrong in the kernel there is RequireNoError.
template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, void (*kernel)(Parameters...), int64_t blocks, int threads,
            size_t shared_bytes, const Arguments&... arguments) {
  constexpr size_t kSharedUnasked = 48 << 10;  // a kernel may have more only if it is allowed to
  TANDEM_CHECK(blocks > 0 && blocks < int64_t{1} << 31);
  if (shared_bytes > kSharedUnasked) {  // as much as there is: other threads may launch it too
    int most_bytes = 0;
    Require(cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
            "cudaDeviceGetAttribute");
    Require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes),
            "cudaFuncSetAttribute");
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, stream>>>(
      arguments...);
  Require(cudaGetLastError(), "a kernel's launch");
}

#else

// Runs the kernel, in the stream's thread if it has one. Ends the process, with a sentence, if CUDA
// would not take the launch or threads wait for what never comes.
void RunOrDie(Stream stream, const emulation::LaunchShape& shape, std::function<void()> kernel);

template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, void (*kernel)(Parameters...), int64_t blocks, int threads,
            size_t shared_bytes, const Arguments&... arguments) {
  TANDEM_CHECK(blocks > 0 && blocks < int64_t{1} << 31);
  RunOrDie(
      stream,
      {{static_cast<unsigned>(blocks), 1, 1}, {static_cast<unsigned>(threads), 1, 1}, shared_bytes},
      [=] { kernel(arguments...); });
}

#endif

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_LAUNCH_H_
