#include "kernels/cpu/integer_kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "hwy/aligned_allocator.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/vector_kernels.h"

namespace tandem::kernels::cpu {
namespace {

// What a thread keeps lies on the heap: thread_local memory itself would lie in the stack of every
// thread of the process, and those of libraries can be small.

// Rows that are multiplied at once over vectors.
constexpr int64_t kVectorMaxRows = 128;

}  // namespace
}  // namespace tandem::kernels::cpu

// ---- AVX2: bytes by pairs into 16 bits ----

HWY_PUSH_ATTRIBUTES("avx2")
namespace tandem::kernels::cpu {
namespace {
namespace avx2 {

struct Instructions {
  static constexpr int kVecOutputs = 8;
  static constexpr int kInt8Rows = 2, kInt4Rows = 2;
  static constexpr int kAccumulators = 8;
  static constexpr bool kStartsWithPairs = true;
  static constexpr bool kBytesAreOffset = false;  // DotBytes takes q itself
  using Sum = __m256i;
  using Bytes = __m256i;
  using Inputs = __m256i;
  using GroupSum = __m256i;
  using Factors = __m256i;

  // A sum as it stands: GCC would put off additions for as long as it can, and keep in memory what
  // there are no registers for. Likewise a broadcast stays where it is: it costs no more than a
  // load.
  static HWY_INLINE __m256i Pinned(__m256i sum) {
    asm("" : "+x"(sum));
    return sum;
  }

  static HWY_INLINE __m256i Load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static HWY_INLINE Sum LoadSum(const int32_t* from) { return Load(from); }
  static HWY_INLINE void StoreSum(Sum sum, int32_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum);
  }
  static HWY_INLINE Inputs Broadcast(const int8_t* four) {
    Inputs inputs;
    asm volatile("vpbroadcastd %1, %0"
                 : "=x"(inputs)
                 : "m"(*reinterpret_cast<const int32_t*>(four)));
    return inputs;
  }

  static HWY_INLINE Bytes LoadBytes(const uint8_t* from) {
    return _mm256_xor_si256(Load(from), _mm256_set1_epi8(-128));
  }
  // Magnitudes of x by weights with the signs of x: pairs of at most 2 * 127 * 127 in 16 bits.
  static HWY_INLINE Sum DotBytes(Sum sum, Bytes weights, Inputs x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weights, x));
    return Pinned(_mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
  }

  static HWY_INLINE void LoadNibbles(const uint8_t* from, Bytes* low, Bytes* high) {
    const __m256i lower_half = _mm256_set1_epi8(15);
    const __m256i bytes = Load(from);
    *low = _mm256_and_si256(bytes, lower_half);
    *high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), lower_half);
  }
  // Sixteen products of at most 15 * 127 and what they start from stay within 16 bits.
  static HWY_INLINE GroupSum StartGroup(const int32_t* pair) { return _mm256_set1_epi32(*pair); }
  static HWY_INLINE GroupSum DotNibbles(GroupSum sum, Bytes nibbles, Inputs x) {
    return Pinned(_mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles, x)));
  }
  static HWY_INLINE Factors LoadFactors(const uint8_t* from, int shift) {
    const __m256i bytes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m256i factors =
        _mm256_and_si256(_mm256_srli_epi32(bytes, shift), _mm256_set1_epi32(15));
    return _mm256_or_si256(factors, _mm256_slli_epi32(factors, 16));
  }
  static HWY_INLINE Sum AddGroup(Sum sum, GroupSum group, Factors factors) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(group, factors));
  }
};

#include "kernels/cpu/integer_kernels.inc"
#include "kernels/cpu/integer_many_rows_avx2.inc"

}  // namespace avx2
}  // namespace
}  // namespace tandem::kernels::cpu
HWY_POP_ATTRIBUTES

// ---- AVX-512 with VNNI: four bytes into 32 bits; AMX: tiles of them ----

HWY_PUSH_ATTRIBUTES("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace tandem::kernels::cpu {
namespace {
namespace vnni {

struct Instructions {
  static constexpr int kVecOutputs = 16;
  static constexpr int kInt8Rows = 12, kInt4Rows = 6;
  static constexpr int kAccumulators = 24;
  static constexpr bool kStartsWithPairs = false;
  static constexpr bool kBytesAreOffset = true;  // DotBytes takes q + 128
  using Sum = __m512i;
  using Bytes = __m512i;
  using Inputs = __m512i;
  using GroupSum = __m512i;
  using Factors = __m512i;
  struct ByteFactors {
    __m512i factor;  // in both halves of each output's 32 bits
    __m512i offset;  // 128 - 8 * factor in each byte
  };

  static HWY_INLINE __m512i Pinned(__m512i sum) {
    asm("" : "+v"(sum));
    return sum;
  }
  static HWY_INLINE Sum LoadSum(const int32_t* from) { return _mm512_loadu_si512(from); }
  static HWY_INLINE void StoreSum(Sum sum, int32_t* to) { _mm512_storeu_si512(to, sum); }
  static HWY_INLINE Inputs Broadcast(const int8_t* four) {
    int32_t bits;
    std::memcpy(&bits, four, sizeof(bits));
    return _mm512_set1_epi32(bits);
  }

  static HWY_INLINE Bytes LoadBytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static HWY_INLINE void StoreBytes(Bytes bytes, uint8_t* to) { _mm512_storeu_si512(to, bytes); }
  static HWY_INLINE Sum DotBytes(Sum sum, Bytes weights, Inputs x) {
    return Pinned(_mm512_dpbusd_epi32(sum, weights, x));
  }

  static HWY_INLINE void LoadNibbles(const uint8_t* from, Bytes* low, Bytes* high) {
    const __m512i lower_half = _mm512_set1_epi8(15);
    const __m512i bytes = LoadBytes(from);
    *low = _mm512_and_si512(bytes, lower_half);
    *high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), lower_half);
  }
  static HWY_INLINE GroupSum StartGroup(const int32_t* total) { return _mm512_set1_epi32(*total); }
  static HWY_INLINE GroupSum DotNibbles(GroupSum sum, Bytes nibbles, Inputs x) {
    return _mm512_dpbusd_epi32(sum, nibbles, x);
  }
  static HWY_INLINE Factors LoadFactors(const uint8_t* from, int shift) {
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm512_and_si512(_mm512_srli_epi32(bytes, shift), _mm512_set1_epi32(15));
  }
  // A group's sum, of at most 32 * 8 * 127, is what its lower 16 bits say.
  static HWY_INLINE Sum AddGroup(Sum sum, GroupSum group, Factors factors) {
    return Pinned(_mm512_dpwssd_epi32(sum, group, factors));
  }

  static HWY_INLINE ByteFactors LoadByteFactors(const uint8_t* from, int shift) {
    const __m512i factors = LoadFactors(from, shift);
    const __m512i factor = _mm512_or_si512(factors, _mm512_slli_epi32(factors, 16));
    const __m512i bytes = _mm512_or_si512(factor, _mm512_slli_epi32(factor, 8));
    const __m512i eight_times = _mm512_slli_epi16(bytes, 3);  // at most 120: stays in its byte
    return {factor, _mm512_sub_epi8(_mm512_set1_epi8(-128), eight_times)};
  }
  // Two nibbles a time: products of at most 225 do not reach into the upper byte.
  static HWY_INLINE Bytes Multiplied(Bytes nibbles, ByteFactors by) {
    return _mm512_add_epi8(_mm512_mullo_epi16(nibbles, by.factor), by.offset);
  }
};

#include "kernels/cpu/integer_kernels.inc"
#include "kernels/cpu/integer_many_rows.inc"
#include "kernels/cpu/integer_tiles.inc"

}  // namespace vnni
}  // namespace
}  // namespace tandem::kernels::cpu
HWY_POP_ATTRIBUTES

// ---- Emulated: the same instructions in plain C++ ----

namespace tandem::kernels::cpu {
namespace {
namespace emulated {

struct Instructions {
  static constexpr int kVecOutputs = 16;
  static constexpr int kInt8Rows = 12, kInt4Rows = 6;
  static constexpr int kAccumulators = 24;
  static constexpr bool kStartsWithPairs = false;
  static constexpr bool kBytesAreOffset = true;
  struct Sum {
    int32_t of[kVecOutputs];
  };
  struct Bytes {
    uint8_t of[kVecOutputs][4];
  };
  struct Inputs {
    int8_t of[4];
  };
  using GroupSum = Sum;
  using Factors = Sum;
  using ByteFactors = Sum;

  template <typename T>
  static T Load(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static Sum LoadSum(const int32_t* from) { return Load<Sum>(from); }
  static void StoreSum(Sum sum, int32_t* to) { std::memcpy(to, &sum, sizeof(sum)); }
  static Inputs Broadcast(const int8_t* four) { return Load<Inputs>(four); }

  static Bytes LoadBytes(const uint8_t* from) { return Load<Bytes>(from); }
  static void StoreBytes(Bytes bytes, uint8_t* to) { std::memcpy(to, &bytes, sizeof(bytes)); }
  static Sum DotBytes(Sum sum, Bytes weights, Inputs x) {
    for (int n = 0; n < kVecOutputs; ++n) {
      for (int k = 0; k < 4; ++k) sum.of[n] += weights.of[n][k] * x.of[k];
    }
    return sum;
  }

  static void LoadNibbles(const uint8_t* from, Bytes* low, Bytes* high) {
    const Bytes bytes = LoadBytes(from);
    for (int n = 0; n < kVecOutputs; ++n) {
      for (int k = 0; k < 4; ++k) {
        low->of[n][k] = bytes.of[n][k] & 15;
        high->of[n][k] = bytes.of[n][k] >> 4;
      }
    }
  }
  static GroupSum StartGroup(const int32_t* total) {
    GroupSum sum;
    std::fill_n(sum.of, kVecOutputs, *total);
    return sum;
  }
  static GroupSum DotNibbles(GroupSum sum, Bytes nibbles, Inputs x) {
    return DotBytes(sum, nibbles, x);
  }
  static Factors LoadFactors(const uint8_t* from, int shift) {
    Factors factors;
    for (int n = 0; n < kVecOutputs; ++n) factors.of[n] = from[n] >> shift & 15;
    return factors;
  }
  static Sum AddGroup(Sum sum, GroupSum group, Factors factors) {
    for (int n = 0; n < kVecOutputs; ++n) {
      sum.of[n] += static_cast<int16_t>(group.of[n]) * factors.of[n];
    }
    return sum;
  }

  static ByteFactors LoadByteFactors(const uint8_t* from, int shift) {
    return LoadFactors(from, shift);
  }
  static Bytes Multiplied(Bytes nibbles, ByteFactors by) {
    for (int n = 0; n < kVecOutputs; ++n) {
      for (uint8_t& byte : nibbles.of[n]) {
        byte = static_cast<uint8_t>((byte - 8) * by.of[n] + 128);
      }
    }
    return nibbles;
  }
};

using Tiles = EmulatedTiles;

#include "kernels/cpu/integer_kernels.inc"
#include "kernels/cpu/integer_many_rows.inc"
#include "kernels/cpu/integer_tiles.inc"

}  // namespace emulated

std::vector<IntegerKernel>& KernelsInUse() {
  static std::vector<IntegerKernel> kernels = IntegerKernels();
  return kernels;
}

}  // namespace

std::vector<IntegerKernel> IntegerKernels(bool emulated) {
  constexpr int64_t kTileMinRows = 5, kTileMaxRows = 512;
  constexpr int64_t kUnpackMinRows = 30, kAvx2ManyMinRows = 10;
  if (emulated) {
    return {{"emulated amx", emulated::RunTiles, kTileMinRows, kTileMaxRows},
            {"emulated vnni, many rows", emulated::RunUnpacked, kUnpackMinRows, kVectorMaxRows},
            {"emulated vnni", emulated::RunVectors, 1, kVectorMaxRows}};
  }
  std::vector<IntegerKernel> kernels;
  const bool vnni = HasAvx512() && __builtin_cpu_supports("avx512vnni");
  if (vnni && HasTiles(TileType::kInt8)) {
    kernels.push_back({"amx", vnni::RunTiles, kTileMinRows, kTileMaxRows});
  }
  if (vnni) {
    kernels.push_back({"vnni, many rows", vnni::RunUnpacked, kUnpackMinRows, kVectorMaxRows});
    // On Zen 4 one row of int4 reads memory by a fifth faster over AVX2 (docs/performance.md).
    const int64_t min_rows = __builtin_cpu_is("amd") ? 2 : 1;
    kernels.push_back({"vnni", vnni::RunVectors, min_rows, kVectorMaxRows});
  }
  kernels.push_back({"avx2, many rows", avx2::RunManyRows, kAvx2ManyMinRows, kVectorMaxRows});
  kernels.push_back({"avx2", avx2::RunVectors, 1, kVectorMaxRows});
  return kernels;
}

const IntegerKernel& IntegerKernelFor(int64_t rows) {
  for (const IntegerKernel& kernel : KernelsInUse()) {
    if (rows >= kernel.min_rows) return kernel;
  }
  return KernelsInUse().back();
}

std::vector<IntegerKernel> ExchangeIntegerKernels(std::vector<IntegerKernel> kernels) {
  return std::exchange(KernelsInUse(), std::move(kernels));
}

}  // namespace tandem::kernels::cpu
