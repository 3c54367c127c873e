// What becomes of a failed call of CUDA's: nothing on the device can be trusted after it.
#ifndef TANDEM_KERNELS_CUDA_REQUIRE_H_
#define TANDEM_KERNELS_CUDA_REQUIRE_H_

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

namespace tandem::kernels::cuda {

// Ends the process, with CUDA's own words, unless `call` went well.
inline void Require(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
  std::abort();
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_REQUIRE_H_
