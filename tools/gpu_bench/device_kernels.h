// Kernels that measure a GPU instead of computing with it, and functions of the device one by one.
#ifndef TANDEM_TOOLS_GPU_BENCH_DEVICE_KERNELS_H_
#define TANDEM_TOOLS_GPU_BENCH_DEVICE_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"

namespace tandem::gpu_bench {

using kernels::cuda::Stream;

// Reads `bytes`, a multiple of 16, once; writes next to nothing to `out`, a float.
void ReadMemory(Stream stream, const std::byte* memory, size_t bytes, float* out);
// Fused multiply-adds, by `blocks` blocks, without memory. Returns how many; `out` as above.
int64_t MultiplyAndAdd(Stream stream, int64_t blocks, int64_t rounds, float* out);
// The same by tensor cores, of bf16.
int64_t MultiplyTilesOfBf16(Stream stream, int64_t blocks, int64_t rounds, float* out);

// Of each of `count` elements, in device memory.
void Exponentials(Stream stream, const float* x, int64_t count, float* out);
void FlushedMultiplyAdds(Stream stream, const float* a, const float* b, const float* c,
                         int64_t count, float* out);
void Logarithms(Stream stream, const double* x, int64_t count, double* out);

}  // namespace tandem::gpu_bench

#endif  // TANDEM_TOOLS_GPU_BENCH_DEVICE_KERNELS_H_
