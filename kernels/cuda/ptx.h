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
#include <cstring>
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

// Starts to copy 16 bytes, aligned to 16, from device memory to shared memory, where they are for
// this thread once it has waited for them, and for others when they have met after that.
__device__ inline void CopyAsync16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
// The copies that this thread has started since the last call are a group.
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the last `kLeft` groups.
template <int kLeft>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four tiles of 8 rows of 8 values of 16 bits from shared memory: lanes 8 i to 8 i + 7 each name a
// row of tile i, aligned to 16 bytes; then lane l has values 2 (l % 4) and one further of row l / 4
// of each tile. All lanes of the warp call it.
__device__ inline void LoadTiles(uint32_t (&tiles)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
#define TANDEM_LOAD_TILES(tiles, row) ::tandem::kernels::cuda::LoadTiles((tiles), (row))

// sums += a b for a of 16 by 16 values of bf16 and b of 16 by 8, in the tensor core's own order.
// Each as LoadTiles gives its tiles, of b's transpose: of a those of rows 0 and 8 at column 0, then
// at column 8; of b those of rows 0 and 8. Of the sums a lane has, in rows l / 4 and 8 further,
// columns 2 (l % 4) and one further. All lanes of the warp call it.
__device__ inline void MultiplyTiles(float (&sums)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#define TANDEM_MULTIPLY_TILES(sums, a, b) ::tandem::kernels::cuda::MultiplyTiles((sums), (a), (b))

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

inline void CopyAsync16(void* to, const void* from) { emulation::StartCopy(to, from, 16); }
inline void CommitCopies() { emulation::CommitCopies(); }
template <int kLeft>
void WaitForCopies() {
  emulation::WaitForCopies(kLeft);
}

inline void LoadTiles(uint32_t (&tiles)[4], const void* row, const char* file, int line) {
  const unsigned lane = emulation::LaneIndex();
  const emulation::LaneValues& rows =
      emulation::Exchange(kAllLanes, emulation::SharedAddress(row, 16), file, line);
  for (unsigned i = 0; i < 4; ++i) {
    std::memcpy(&tiles[i], emulation::SharedMemory() + rows[8 * i + lane / 4] + lane % 4 * 4, 4);
  }
}
#define TANDEM_LOAD_TILES(tiles, row) \
  ::tandem::kernels::cuda::LoadTiles((tiles), (row), __FILE__, __LINE__)

// Each sum once: the products are added to it in double, inputs ascending, and it is rounded.
inline void MultiplyTiles(float (&sums)[4], const uint32_t (&a)[4], const uint32_t* b,
                          const char* file, int line) {
  const auto exchange = [&](uint32_t low, uint32_t high) -> emulation::LaneValues {
    return emulation::Exchange(kAllLanes, uint64_t{high} << 32 | low, file, line);
  };
  const emulation::LaneValues a_left = exchange(a[0], a[1]), a_right = exchange(a[2], a[3]);
  const emulation::LaneValues b_all = exchange(b[0], b[1]);
  // Of 4 values that a lane gave, in their order.
  const auto value = [](uint64_t values, unsigned i) {
    const auto bits = static_cast<uint32_t>(values >> 16 * i & 0xFFFF);
    return static_cast<double>(FloatOf(bits << 16));
  };
  const unsigned lane = emulation::LaneIndex();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned column = lane % 4 * 2 + i % 2;
    double sum = sums[i];
    for (unsigned k = 0; k < 16; ++k) {
      const emulation::LaneValues& a_half = k < 8 ? a_left : a_right;
      const double of_a = value(a_half[lane / 4 * 4 + k % 8 / 2], i / 2 * 2 + k % 2);
      sum += of_a * value(b_all[column * 4 + k % 8 / 2], k / 8 * 2 + k % 2);
    }
    sums[i] = static_cast<float>(sum);
  }
}
#define TANDEM_MULTIPLY_TILES(sums, a, b) \
  ::tandem::kernels::cuda::MultiplyTiles((sums), (a), (b), __FILE__, __LINE__)

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
