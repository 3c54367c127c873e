// What both forms of attention share: sums down columns, and the running softmax over a page.
// Per Highway target, like kernels/cpu/lanes.h.
#if defined(TANDEM_KERNELS_CPU_MLA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_KERNELS_CPU_MLA_INL_H_
#undef TANDEM_KERNELS_CPU_MLA_INL_H_
#else
#define TANDEM_KERNELS_CPU_MLA_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/lanes.h"
#include "kernels/ops/mla.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

// Columns of sixteen whose sums for `kRows` rows are held in registers at once. Every sum has its
// own accumulator, so this decides speed only.
template <int kRows>
constexpr int ChunksOfTile() {
  if (kRows == 1) return 4;
  return HWY_CAP_GE512 ? (kRows <= 6 ? 4 : 2) : 1;
}

// ColumnSums for kChunks * 16 columns.
template <int kRows, int kChunks, typename T>
HWY_INLINE void ColumnTile(const float* HWY_RESTRICT a, int64_t a_stride, const T* HWY_RESTRICT b,
                           int64_t b_stride, const int64_t (&n)[kRows], float* HWY_RESTRICT out,
                           int64_t out_stride) {
  F32x16 sums[kRows][kChunks];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kChunks; ++c) sums[r][c] = ZeroLanes();
  }
  for (int64_t j = 0; j < n[0]; ++j) {
    F32x16 row[kChunks];
    for (int c = 0; c < kChunks; ++c) row[c] = LoadLanes(b + j * b_stride + c * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const F32x16 factor = SetLanes(a[r * a_stride + j]);
      for (int c = 0; c < kChunks; ++c) sums[r][c] = MulAdd(factor, row[c], sums[r][c]);
    }
  }
  for (int r = 1; r < kRows; ++r) {
    for (int64_t j = n[0]; j < n[r]; ++j) {
      const F32x16 factor = SetLanes(a[r * a_stride + j]);
      for (int c = 0; c < kChunks; ++c) {
        sums[r][c] = MulAdd(factor, LoadLanes(b + j * b_stride + c * kLanes), sums[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kChunks; ++c) StoreLanes(sums[r][c], out + r * out_stride + c * kLanes);
  }
}

// out[r][i] = sum_j a[r][j] * b[j][i] for r < kRows and i < width (a multiple of 8), by fused
// multiply-add, j in [0, n[r]) ascending, from zero. n[0] is the least of them.
template <int kRows, typename T>
HWY_INLINE void ColumnSums(const float* HWY_RESTRICT a, int64_t a_stride, const T* HWY_RESTRICT b,
                           int64_t b_stride, const int64_t (&n)[kRows], int64_t width,
                           float* HWY_RESTRICT out, int64_t out_stride) {
  constexpr int kChunks = ChunksOfTile<kRows>();
  int64_t i = 0;
  for (; i + kChunks * kLanes <= width; i += kChunks * kLanes) {
    ColumnTile<kRows, kChunks>(a, a_stride, b + i, b_stride, n, out + i, out_stride);
  }
  for (; i + kLanes <= width; i += kLanes) {
    ColumnTile<kRows, 1>(a, a_stride, b + i, b_stride, n, out + i, out_stride);
  }
  if (i == width) return;
  for (int r = 0; r < kRows; ++r) {
    F32x16 sum = ZeroLanes();
    for (int64_t j = 0; j < n[r]; ++j) {
      sum = MulAdd(SetLanes(a[r * a_stride + j]), LoadLowLanes(b + j * b_stride + i), sum);
    }
    StoreSomeLanes(sum, out + r * out_stride + i, width - i);
  }
}

// As above, with as many terms for every row.
template <int kRows, typename T>
HWY_INLINE void ColumnSums(const float* HWY_RESTRICT a, int64_t a_stride, const T* HWY_RESTRICT b,
                           int64_t b_stride, int64_t n, int64_t width, float* HWY_RESTRICT out,
                           int64_t out_stride) {
  int64_t each[kRows];
  std::fill_n(each, kRows, n);
  ColumnSums<kRows>(a, a_stride, b, b_stride, each, width, out, out_stride);
}

// What the softmax of one query has seen so far.
struct RunningSoftmax {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;
};

HWY_INLINE float LargestLane(F32x16 v) {
  float largest = hn::GetLane(hn::MaxOfLanes(PartTag(), v.part[0]));
  for (int i = 1; i < kParts; ++i) {
    largest = std::max(largest, hn::GetLane(hn::MaxOfLanes(PartTag(), v.part[i])));
  }
  return largest;
}

// Takes up a page for `kRows` queries, of which query r sees the first visible[r] in [1,
// kPageTokens] keys. On entry scores[r][j] are the keys' scores, anything beyond visible[r]; on
// return they are the weights p_j, zero beyond. factors[r] is for everything that query r summed
// before. Step by step for all queries, so that none waits for its own last result.
template <int kRows>
HWY_INLINE void TakeUpPage(float* HWY_RESTRICT scores, const int64_t (&visible)[kRows],
                           RunningSoftmax (&states)[kRows], float (&factors)[kRows]) {
  static_assert(kPageTokens % kLanes == 0, "a page is whole vectors");
  static_assert(kRows <= kLanes);
  float old_max[kLanes] = {}, new_max[kLanes] = {}, sums[kLanes] = {}, page_sums[kLanes] = {};
  for (int r = 0; r < kRows; ++r) {
    float* const row = scores + r * kPageTokens;
    std::fill(row + visible[r], row + kPageTokens, -std::numeric_limits<float>::infinity());
    F32x16 lanes_max = LoadLanes(row);
    for (int j = kLanes; j < kPageTokens; j += kLanes) {
      lanes_max = Max(lanes_max, LoadLanes(row + j));
    }
    old_max[r] = states[r].max;
    new_max[r] = std::max(old_max[r], LargestLane(lanes_max));
    sums[r] = states[r].sum;
  }
  F32x16 lane_sums[kRows];
  for (int r = 0; r < kRows; ++r) {
    float* const row = scores + r * kPageTokens;
    const F32x16 max = SetLanes(new_max[r]);
    lane_sums[r] = ZeroLanes();
    for (int j = 0; j < kPageTokens; j += kLanes) {
      const F32x16 weights = Exp(Sub(LoadLanes(row + j), max));
      lane_sums[r] = Add(lane_sums[r], weights);
      StoreLanes(weights, row + j);
    }
  }
  for (int r = 0; r < kRows; ++r) page_sums[r] = Fold(lane_sums[r]);
  float scale[kLanes];
  StoreLanes(Exp(Sub(LoadLanes(old_max), LoadLanes(new_max))), scale);
  for (int r = 0; r < kRows; ++r) {
    // Where both are infinite their difference is no number.
    if (new_max[r] == old_max[r]) scale[r] = 1.0f;
  }
  StoreLanes(MulAdd(LoadLanes(sums), LoadLanes(scale), LoadLanes(page_sums)), sums);
  for (int r = 0; r < kRows; ++r) {
    factors[r] = scale[r];
    states[r] = {new_max[r], sums[r]};
  }
}

// numerator = fused(numerator * factor + page), `width` a multiple of 16.
HWY_INLINE void TakeUpValues(const float* HWY_RESTRICT page, float factor, int64_t width,
                             float* HWY_RESTRICT numerator) {
  const F32x16 scale = SetLanes(factor);
  for (int64_t i = 0; i < width; i += kLanes) {
    StoreLanes(MulAdd(LoadLanes(numerator + i), scale, LoadLanes(page + i)), numerator + i);
  }
}

// out = round(numerator / sum), `width` a multiple of 8; the numerator's memory a multiple of 16.
template <typename T>
HWY_INLINE void StoreQuotient(const float* HWY_RESTRICT numerator, float sum, int64_t width,
                              T* HWY_RESTRICT out) {
  const F32x16 divisor = SetLanes(sum);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    StoreLanes(Div(LoadLanes(numerator + i), divisor), out + i);
  }
  if (i < width) StoreSomeLanes(Div(LoadLanes(numerator + i), divisor), out + i, width - i);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_KERNELS_CPU_MLA_INL_H_
