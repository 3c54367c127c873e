#include "tools/gpu_bench/device_kernels.h"

#include <algorithm>

#include "kernels/cuda/exp.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/rows.h"

namespace tandem::gpu_bench {

using namespace kernels::cuda;  // NOLINT: what kernels are written in

namespace {

constexpr int kChains = 16;  // of dependent multiply-adds in a thread, enough to hide their latency

struct alignas(16) Sixteen {
  float a, b, c, d;
};

__global__ void ReadKernel(const Sixteen* memory, int64_t count, float* out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  float a = 0, b = 0, c = 0, d = 0;
  TANDEM_UNROLL
  for (int64_t i = ThreadOfAll(); i < count; i += step) {
    const Sixteen x = memory[i];
    a += x.a;
    b += x.b;
    c += x.c;
    d += x.d;
  }
  if (a + b + c + d == 1e30f) *out = a;  // never, which the compiler cannot know
}

__global__ void MultiplyKernel(int64_t rounds, float factor, float* out) {
  float sums[kChains];
  TANDEM_UNROLL
  for (int i = 0; i < kChains; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  for (int64_t round = 0; round < rounds; ++round) {
    TANDEM_UNROLL
    for (float& sum : sums) sum = FusedMultiplyAdd(sum, factor, 0.25f);
  }
  float all = 0;
  TANDEM_UNROLL
  for (const float sum : sums) all += sum;
  if (all == 1e30f) *out = all;
}

constexpr int kTileChains = 8;  // of a warp, likewise

__global__ void TilesKernel(int64_t rounds, float* out) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t a[4] = {lane, lane + 1, lane + 2, lane + 3}, b[2] = {lane + 4, lane + 5};  // tiny
  float sums[kTileChains][4] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    TANDEM_UNROLL
    for (int i = 0; i < kTileChains; ++i) {
      TANDEM_MULTIPLY_TILES(sums[i], a, b);
    }
  }
  float all = 0;
  TANDEM_UNROLL
  for (int i = 0; i < kTileChains; ++i) all += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  if (all == 1e30f) *out = all;
}

struct ExpOp {
  const float* x;
  float* out;
  __device__ void operator()(int64_t, int64_t i) const { out[i] = PortableExp(x[i]); }
};
struct FlushedOp {
  const float *a, *b, *c;
  float* out;
  __device__ void operator()(int64_t, int64_t i) const {
    out[i] = FlushedMultiplyAdd(a[i], b[i], c[i]);
  }
};
struct LogOp {
  const double* x;
  double* out;
  __device__ void operator()(int64_t, int64_t i) const { out[i] = Logarithm(x[i]); }
};

}  // namespace

void ReadMemory(Stream stream, const std::byte* memory, size_t bytes, float* out) {
  constexpr int64_t kMostBlocks = 132 * 16;
  const auto count = static_cast<int64_t>(bytes / sizeof(Sixteen));
  Launch(stream, ReadKernel, std::min(kMostBlocks, (count + kThreads - 1) / kThreads), kThreads, 0,
         reinterpret_cast<const Sixteen*>(memory), count, out);
}

int64_t MultiplyAndAdd(Stream stream, int64_t blocks, int64_t rounds, float* out) {
  Launch(stream, MultiplyKernel, blocks, kThreads, 0, rounds, 0.75f, out);
  return blocks * kThreads * rounds * kChains;
}

int64_t MultiplyTilesOfBf16(Stream stream, int64_t blocks, int64_t rounds, float* out) {
  constexpr int64_t kOfTile = 16 * 8 * 16;
  Launch(stream, TilesKernel, blocks, kThreads, 0, rounds, out);
  return blocks * kThreads / 32 * rounds * kTileChains * kOfTile;
}

void Exponentials(Stream stream, const float* x, int64_t count, float* out) {
  LaunchForElements(stream, 1, count, ExpOp{x, out});
}
void FlushedMultiplyAdds(Stream stream, const float* a, const float* b, const float* c,
                         int64_t count, float* out) {
  LaunchForElements(stream, 1, count, FlushedOp{a, b, c, out});
}
void Logarithms(Stream stream, const double* x, int64_t count, double* out) {
  LaunchForElements(stream, 1, count, LogOp{x, out});
}

}  // namespace tandem::gpu_bench
