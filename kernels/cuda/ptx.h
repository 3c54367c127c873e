// What a kernel uses of CUDA beyond C++, each thing by one name that has two bodies: CUDA's, and
// for the host compiler that of the emulation (emulation/block.h), so that the very same .cu files
// run on a machine without a GPU.
#ifndef TANDEM_KERNELS_CUDA_PTX_H_
#define TANDEM_KERNELS_CUDA_PTX_H_

#include <cstddef>
#include <cstdint>

#if !defined(TANDEM_CUDA_EMULATION)
#include <cuda_runtime.h>
#else
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/flushed.h"
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

#if !defined(TANDEM_CUDA_EMULATION)

// The block's shared memory, of the size that the launch asked for.
__device__ inline std::byte* SharedMemory() {
  extern __shared__ __align__(16) unsigned char shared[];
  return reinterpret_cast<std::byte*>(shared);
}

// Before a loop whose number of rounds is known, so that what it indexes can stay in registers.
#define TANDEM_UNROLL _Pragma("unroll")
// Before a kernel's name: so few registers that a processor may have so many of its blocks at once.
#define TANDEM_BLOCKS_AT_ONCE(threads, blocks) __launch_bounds__((threads), (blocks))

// A macro, so that the emulation knows who waits where. All threads of the block come to it.
#define TANDEM_SYNC_THREADS() __syncthreads()

// The value, of 32 bits, of the lane whose number differs in the bits of `lanes`. All lanes of the
// warp call it.
#define TANDEM_SHUFFLE_XOR(value, lanes) \
  __shfl_xor_sync(::tandem::kernels::cuda::kAllLanes, (value), (lanes))

// All lanes of the warp come to it; what each wrote before is there for the others after it.
#define TANDEM_SYNC_WARP() __syncwarp()

__device__ inline float FusedMultiplyAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// Denormal operands and results count as zeros of their sign.
__device__ inline float FlushedMultiplyAdd(float a, float b, float c) {
  float sum;
  asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(sum) : "f"(a), "f"(b), "f"(c));
  return sum;
}
__device__ inline float FlushedAdd(float a, float b) {
  float sum;
  asm("add.rn.ftz.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
  return sum;
}
__device__ inline float Larger(float a, float b) { return a > b ? a : b; }
__device__ inline uint32_t BitsOf(float value) { return __float_as_uint(value); }
__device__ inline float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline float Infinity() { return __uint_as_float(0x7F800000u); }
__device__ inline float SquareRoot(float x) { return __fsqrt_rn(x); }
__device__ inline float Divide(float a, float b) { return __fdiv_rn(a, b); }
// To the nearest integer, ties to even.
__device__ inline float RoundToInteger(float x) { return rintf(x); }
__device__ inline double Ceiling(double x) { return ceil(x); }
__device__ inline double Logarithm(double x) { return log(x); }
// The upper 64 bits of the product's 128.
__device__ inline uint64_t HighOfProduct(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
// Adds as one step that no thread sees half of; returns what was there.
__device__ inline uint32_t AtomicAdd(uint32_t* sum, uint32_t value) {
  return atomicAdd(sum, value);
}

#else

inline std::byte* SharedMemory() { return emulation::SharedMemory(); }

#define TANDEM_UNROLL
#define TANDEM_BLOCKS_AT_ONCE(threads, blocks)
#define TANDEM_SYNC_THREADS() ::tandem::kernels::cuda::emulation::SyncThreads(__FILE__, __LINE__)
#define TANDEM_SHUFFLE_XOR(value, lanes) \
  ::tandem::kernels::cuda::ShuffleXor((value), (lanes), __FILE__, __LINE__)

#define TANDEM_SYNC_WARP()                                                                      \
  ::tandem::kernels::cuda::emulation::Exchange(::tandem::kernels::cuda::kAllLanes, 0, __FILE__, \
                                               __LINE__)

inline float FusedMultiplyAdd(float a, float b, float c) { return std::fma(a, b, c); }
inline float FlushedMultiplyAdd(float a, float b, float c) { return cpu::FlushedFma(a, b, c); }
inline float FlushedAdd(float a, float b) { return cpu::FlushedAdd(a, b); }
inline float Larger(float a, float b) { return a > b ? a : b; }
inline uint32_t BitsOf(float value) { return std::bit_cast<uint32_t>(value); }
inline float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float Infinity() { return std::numeric_limits<float>::infinity(); }
inline float SquareRoot(float x) { return std::sqrt(x); }
inline float Divide(float a, float b) { return a / b; }
inline float RoundToInteger(float x) { return std::nearbyint(x); }
inline double Ceiling(double x) { return std::ceil(x); }
inline double Logarithm(double x) { return std::log(x); }
inline uint64_t HighOfProduct(uint64_t a, uint64_t b) {
  __extension__ typedef unsigned __int128 Uint128;
  return static_cast<uint64_t>((static_cast<Uint128>(a) * b) >> 64);
}
inline uint32_t AtomicAdd(uint32_t* sum, uint32_t value) {
  const uint32_t before = *sum;
  *sum += value;
  return before;
}

template <typename T>
T ShuffleXor(T value, unsigned lanes, const char* file, int line) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  const emulation::LaneValues& values =
      emulation::Exchange(kAllLanes, std::bit_cast<uint32_t>(value), file, line);
  return std::bit_cast<T>(static_cast<uint32_t>(values[emulation::LaneIndex() ^ lanes]));
}

#endif

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_PTX_H_
