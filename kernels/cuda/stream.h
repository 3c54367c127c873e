// The order in which a device does what it is asked: CUDA's streams, or those of the emulation.
#ifndef TANDEM_KERNELS_CUDA_STREAM_H_
#define TANDEM_KERNELS_CUDA_STREAM_H_

#include <cstdint>

#if !defined(TANDEM_CUDA_EMULATION)
#include <cuda_runtime_api.h>
#endif

namespace tandem::kernels::cuda {

#if defined(TANDEM_CUDA_EMULATION)

namespace emulation {
class WorkQueue;
}

// What is started in it is done by a thread of its own, in order; without a queue at once, by the
// caller.
struct Stream {
  uint64_t seed = 0;  // draws the order in which threads and blocks take turns
  emulation::WorkQueue* queue = nullptr;
};

#else

using Stream = cudaStream_t;

#endif

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_STREAM_H_
