// What a kernel uses of CUDA beyond C++, each thing by one name that has two bodies: CUDA's, and
// for the host compiler that of the emulation (emulation/block.h), so that the very same .cu files
// run on a machine without a GPU.
#ifndef TANDEM_KERNELS_CUDA_PTX_H_
#define TANDEM_KERNELS_CUDA_PTX_H_

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <bit>
#include <cmath>

#include "kernels/cuda/emulation/block.h"

#define __global__
#define __device__
#define __host__
#define threadIdx (::tandem::kernels::cuda::emulation::ThreadIndex())
#define blockIdx (::tandem::kernels::cuda::emulation::BlockIndex())
#define blockDim (::tandem::kernels::cuda::emulation::BlockExtent())
#define gridDim (::tandem::kernels::cuda::emulation::GridExtent())
#endif

namespace tandem::kernels::cuda {

inline constexpr uint32_t kAllLanes = 0xFFFFFFFF;

#if defined(__CUDACC__)

// The block's shared memory, of the size that the launch asked for.
__device__ inline std::byte* SharedMemory() {
  extern __shared__ __align__(16) unsigned char shared[];
  return reinterpret_cast<std::byte*>(shared);
}

// A macro, so that the emulation knows who waits where. All threads of the block come to it.
#define TANDEM_SYNC_THREADS() __syncthreads()

// The value of the lane whose number differs in the bits of `lanes`. All lanes of the warp call it.
#define TANDEM_SHUFFLE_XOR(value, lanes) \
  __shfl_xor_sync(::tandem::kernels::cuda::kAllLanes, (value), (lanes))

__device__ inline float FusedMultiplyAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline uint32_t BitsOf(float value) { return __float_as_uint(value); }
__device__ inline float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline float Exp(float x) { return expf(x); }
__device__ inline double Cosine(double x) { return cos(x); }
__device__ inline double Sine(double x) { return sin(x); }
__device__ inline float SquareRoot(float x) { return __fsqrt_rn(x); }
__device__ inline float Divide(float a, float b) { return __fdiv_rn(a, b); }

#else

inline std::byte* SharedMemory() { return emulation::SharedMemory(); }

#define TANDEM_SYNC_THREADS() ::tandem::kernels::cuda::emulation::SyncThreads(__FILE__, __LINE__)
#define TANDEM_SHUFFLE_XOR(value, lanes) \
  ::tandem::kernels::cuda::ShuffleXor((value), (lanes), __FILE__, __LINE__)

inline float FusedMultiplyAdd(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t BitsOf(float value) { return std::bit_cast<uint32_t>(value); }
inline float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float Exp(float x) { return std::exp(x); }
inline double Cosine(double x) { return std::cos(x); }
inline double Sine(double x) { return std::sin(x); }
inline float SquareRoot(float x) { return std::sqrt(x); }
inline float Divide(float a, float b) { return a / b; }

inline float ShuffleXor(float value, unsigned lanes, const char* file, int line) {
  const unsigned lane =
      (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % emulation::kWarpLanes;
  return FloatOf(static_cast<uint32_t>(
      emulation::Exchange(kAllLanes, BitsOf(value), file, line)[lane ^ lanes]));
}

#endif

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_PTX_H_
