#include "kernels/cpu/float_kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "kernels/cpu/flushed.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/vector_kernels.h"

namespace tandem::kernels::cpu {
namespace {

// Denormal numbers count as zero while it runs.
template <void (*kRun)(const FloatPanelProduct&)>
HWY_NOINLINE void RunFlushed(const FloatPanelProduct& product) {
  constexpr unsigned int kFlushResults = 1u << 15, kTakeAsZero = 1u << 6;
  const unsigned int before = _mm_getcsr();
  _mm_setcsr(before | kFlushResults | kTakeAsZero);
  kRun(product);
  _mm_setcsr(before);
}

}  // namespace
}  // namespace tandem::kernels::cpu

// ---- AVX2 ----

HWY_PUSH_ATTRIBUTES("avx2,fma")
namespace tandem::kernels::cpu {
namespace {
namespace avx2 {

struct Instructions {
  static constexpr int kVecOutputs = 8;
  static constexpr int kAccumulators = 12;
  static constexpr int kTileRows = 6, kTileVecs = 2;
  using Vec = __m256;

  static HWY_INLINE Vec Zero() { return _mm256_setzero_ps(); }
  static HWY_INLINE Vec Load(const void* from) {
    return _mm256_loadu_ps(static_cast<const float*>(from));
  }
  static HWY_INLINE void Store(Vec v, float* to) { _mm256_storeu_ps(to, v); }
  static HWY_INLINE Vec Broadcast(const std::byte* four) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(four));
  }
  static HWY_INLINE Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static HWY_INLINE Vec MulAdd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  // The lower and the upper bf16 of each 32 bits, widened.
  static HWY_INLINE Vec LoadEven(const std::byte* pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(Load(pairs)), 16));
  }
  static HWY_INLINE Vec LoadOdd(const std::byte* pairs) {
    const __m256i upper_half = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(Load(pairs)), upper_half));
  }
};

#include "kernels/cpu/float_kernels.inc"

}  // namespace avx2
}  // namespace
}  // namespace tandem::kernels::cpu
HWY_POP_ATTRIBUTES

// ---- AVX-512, with BF16 where it is; AMX ----

HWY_PUSH_ATTRIBUTES("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace tandem::kernels::cpu {
namespace {
namespace avx512 {

struct Instructions {
  static constexpr int kVecOutputs = 16;
  static constexpr int kAccumulators = 24;
  static constexpr int kTileRows = 12, kTileVecs = 2;
  using Vec = __m512;

  static HWY_INLINE Vec Zero() { return _mm512_setzero_ps(); }
  static HWY_INLINE Vec Load(const void* from) { return _mm512_loadu_ps(from); }
  static HWY_INLINE void Store(Vec v, float* to) { _mm512_storeu_ps(to, v); }
  static HWY_INLINE Vec Broadcast(const std::byte* four) {
    float value;
    std::memcpy(&value, four, sizeof(value));
    return _mm512_set1_ps(value);
  }
  static HWY_INLINE Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static HWY_INLINE Vec MulAdd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static HWY_INLINE Vec LoadEven(const std::byte* pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16));
  }
  static HWY_INLINE Vec LoadOdd(const std::byte* pairs) {
    const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), upper_half));
  }
  // sum += a_odd * b_odd, then sum += a_even * b_even, each fused.
  static HWY_INLINE Vec DotPairs(Vec sum, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};

#include "kernels/cpu/float_kernels.inc"
#include "kernels/cpu/float_pairs.inc"
#include "kernels/cpu/float_tiles.inc"

}  // namespace avx512
}  // namespace
}  // namespace tandem::kernels::cpu
HWY_POP_ATTRIBUTES

// ---- Emulated: the same instructions in plain C++ ----

namespace tandem::kernels::cpu {
namespace {
namespace emulated {

struct Instructions {
  static constexpr int kVecOutputs = 16;
  static constexpr int kAccumulators = 24;
  static constexpr int kTileRows = 12, kTileVecs = 2;
  struct Vec {
    float of[kVecOutputs];
  };

  static Vec Zero() { return {}; }
  static Vec Load(const void* from) {
    Vec v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void Store(Vec v, float* to) { std::memcpy(to, &v, sizeof(v)); }
  static Vec Broadcast(const std::byte* four) {
    Vec v;
    for (float& value : v.of) std::memcpy(&value, four, sizeof(value));
    return v;
  }
  static Vec Add(Vec a, Vec b) {
    for (int n = 0; n < kVecOutputs; ++n) a.of[n] = FlushedAdd(a.of[n], b.of[n]);
    return a;
  }
  static Vec MulAdd(Vec a, Vec b, Vec c) {
    for (int n = 0; n < kVecOutputs; ++n) c.of[n] = FlushedFma(a.of[n], b.of[n], c.of[n]);
    return c;
  }
  static Vec LoadHalves(const std::byte* pairs, int odd) {
    Vec v;
    for (int n = 0; n < kVecOutputs; ++n) {
      v.of[n] = LoadElement(pairs, Dtype::kBF16, 2 * n + odd);
    }
    return v;
  }
  static Vec LoadEven(const std::byte* pairs) { return LoadHalves(pairs, 0); }
  static Vec LoadOdd(const std::byte* pairs) { return LoadHalves(pairs, 1); }
  static Vec DotPairs(Vec sum, Vec a, Vec b) {
    for (int n = 0; n < kVecOutputs; ++n) {
      for (const int half : {1, 0}) {
        sum.of[n] = FlushedFma(LoadElement(&a.of[n], Dtype::kBF16, half),
                               LoadElement(&b.of[n], Dtype::kBF16, half), sum.of[n]);
      }
    }
    return sum;
  }
};

using Tiles = EmulatedTiles;

#include "kernels/cpu/float_kernels.inc"
#include "kernels/cpu/float_pairs.inc"
#include "kernels/cpu/float_tiles.inc"

}  // namespace emulated

std::vector<FloatKernel>& KernelsInUse() {
  static std::vector<FloatKernel> kernels = FloatKernels();
  return kernels;
}

const FloatKernel* Find(FloatOrder order, Dtype rows_dtype) {
  for (const FloatKernel& kernel : KernelsInUse()) {
    if (kernel.order == order && kernel.rows_dtype == rows_dtype) return &kernel;
  }
  return nullptr;
}

}  // namespace

std::vector<FloatKernel> FloatKernels(bool emulated) {
  constexpr FloatOrder kBlock = FloatOrder::kBlock, kPair = FloatOrder::kPair;
  constexpr Dtype kF32 = Dtype::kF32, kBF16 = Dtype::kBF16;
  if (emulated) {
    return {{"emulated amx", kBlock, kBF16, emulated::RunTiles},
            {"emulated dpbf16", kPair, kBF16, emulated::RunPairs},
            {"emulated fma", kBlock, kF32, emulated::RunFma}};
  }
  std::vector<FloatKernel> kernels;
  const bool avx512 = HasAvx512();
  if (avx512 && HasTiles(TileType::kBF16)) {
    kernels.push_back({"amx", kBlock, kBF16, avx512::RunTiles});
  }
  if (avx512 && __builtin_cpu_supports("avx512bf16")) {
    kernels.push_back({"dpbf16", kPair, kBF16, RunFlushed<avx512::RunPairs>});
  }
  if (avx512) {
    kernels.push_back({"avx512", kBlock, kF32, RunFlushed<avx512::RunFma>});
  }
  kernels.push_back({"avx2", kBlock, kF32, RunFlushed<avx2::RunFma>});
  return kernels;
}

FloatOrder FastestOrder() { return KernelsInUse().front().order; }

bool TakesBF16Rows(FloatOrder order) { return Find(order, Dtype::kBF16) != nullptr; }

const FloatKernel& FloatKernelFor(FloatOrder order, Dtype rows_dtype) {
  const FloatKernel* const kernel = Find(order, rows_dtype);
  TANDEM_CHECK(kernel != nullptr);
  return *kernel;
}

std::vector<FloatKernel> ExchangeFloatKernels(std::vector<FloatKernel> kernels) {
  return std::exchange(KernelsInUse(), std::move(kernels));
}

}  // namespace tandem::kernels::cpu
