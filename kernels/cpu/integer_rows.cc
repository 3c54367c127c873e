#include "kernels/cpu/integer_rows.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "common/check.h"
#include "hwy/base.h"
#include "kernels/cpu/scratch.h"

HWY_PUSH_ATTRIBUTES("avx2")
namespace tandem::kernels::cpu {
namespace {

HWY_INLINE __m256 LoadEight(const float* from) { return _mm256_loadu_ps(from); }
HWY_INLINE __m256 LoadEight(const BF16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// The bits of the largest magnitude; those of a NaN or an infinity are above every number's.
template <typename T>
uint32_t LargestMagnitudeBits(const T* x, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i largest = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(LoadEight(x + i)), magnitude);
    largest = _mm256_max_epi32(largest, bits);
  }
  uint32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), largest);
  return *std::max_element(lanes, lanes + 8);
}

// Eight values at a time; `count`, a multiple of 8, at most kBlockInputs.
template <typename T>
void QuantizeBlock(const T* x, int64_t count, float factor, int8_t* to) {
  const __m256 f = _mm256_set1_ps(factor);
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(LoadEight(x + i), f));
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), _mm_packs_epi16(words, words));
  }
}

// The sums of a group's 32 values at k % 4 in {0, 1} (first) and in {2, 3} (second).
struct PairSums {
  int first;
  int second;
};
PairSums SumGroup(const int8_t* q) {
  const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), values);
  __m128i sums = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4E));
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xB1));
  const auto both = static_cast<uint32_t>(_mm_cvtsi128_si32(sums));
  return {static_cast<int16_t>(both & 0xFFFF), static_cast<int16_t>(both >> 16)};
}

}  // namespace
}  // namespace tandem::kernels::cpu
HWY_POP_ATTRIBUTES

namespace tandem::kernels::cpu {
namespace {

// What a product may read beyond the last row: the rest of a tile of 16.
constexpr int64_t kSpareRows = 15;

int32_t TimesMinusEight(PairSums sums) {
  const auto first = static_cast<uint16_t>(-8 * sums.first);
  const auto second = static_cast<uint16_t>(-8 * sums.second);
  return static_cast<int32_t>(static_cast<uint32_t>(second) << 16 | first);
}

}  // namespace

void IntegerRows::Resize(int64_t rows, int64_t inputs) {
  inputs_ = inputs;
  blocks_ = CeilDiv(inputs, kBlockInputs);
  stored_rows_ = rows + kSpareRows;
  const int64_t size = blocks_ * stored_rows_ * kBlockInputs;
  if (capacity_ < size) {
    values_ = hwy::AllocateAligned<int8_t>(size);
    TANDEM_CHECK(values_ != nullptr);
    capacity_ = size;
    std::memset(values_.get(), 0, size);  // rows to spare are read
  }
  Grown(group_sums_, blocks_ * stored_rows_ * kBlockGroups);
  Grown(group_totals_, blocks_ * stored_rows_ * kBlockGroups);
  Grown(sums_, stored_rows_);
  Grown(scales_, stored_rows_);
}

void IntegerRows::Set(int64_t i, const void* x, Dtype dtype) {
  const bool wide = dtype == Dtype::kF32;
  const uint32_t bits = wide ? LargestMagnitudeBits(static_cast<const float*>(x), inputs_)
                             : LargestMagnitudeBits(static_cast<const BF16*>(x), inputs_);
  const auto largest = std::bit_cast<float>(bits);
  const bool finite = largest <= std::numeric_limits<float>::max();
  const bool zero = !finite || largest < 0x1p-100f;
  scales_[i] = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : largest / 127.0f;
  const float factor = 127.0f / largest;
  int32_t sum = 0;
  for (int64_t b = 0; b < blocks_; ++b) {
    int8_t* const to = values_.get() + (b * stored_rows_ + i) * kBlockInputs;
    const int64_t first = b * kBlockInputs;
    const int64_t count = zero ? 0 : std::min(kBlockInputs, inputs_ - first);
    if (count < kBlockInputs) std::memset(to, 0, kBlockInputs);
    if (count > 0 && wide) {
      QuantizeBlock(static_cast<const float*>(x) + first, count, factor, to);
    } else if (count > 0) {
      QuantizeBlock(static_cast<const BF16*>(x) + first, count, factor, to);
    }
    for (int64_t group = 0; group < kBlockGroups; ++group) {
      const PairSums sums = SumGroup(to + group * kGroupInputs);
      const int64_t at = (b * stored_rows_ + i) * kBlockGroups + group;
      group_sums_[at] = TimesMinusEight(sums);
      group_totals_[at] = -8 * (sums.first + sums.second);
      sum += sums.first + sums.second;
    }
  }
  sums_[i] = sum;
}

void IntegerRows::Copy(int64_t i, const IntegerRows& from, int64_t from_row) {
  for (int64_t b = 0; b < blocks_; ++b) {
    std::memcpy(values_.get() + (b * stored_rows_ + i) * kBlockInputs, from.block(b, from_row),
                kBlockInputs);
    const int64_t at = (b * stored_rows_ + i) * kBlockGroups;
    std::copy_n(from.group_sums(b, from_row), kBlockGroups, &group_sums_[at]);
    std::copy_n(from.group_totals(b, from_row), kBlockGroups, &group_totals_[at]);
  }
  sums_[i] = from.sums_[from_row];
  scales_[i] = from.scales_[from_row];
}

}  // namespace tandem::kernels::cpu
