#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cstddef>

#include "kernels/cpu/bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

// Rows by outputs whose sums are held in registers at once. Every sum has its own accumulator, so
// the tile's shape decides speed only. With few rows memory is the limit, and more weight rows read
// side by side come faster: the wide tile.
#if HWY_CAP_GE512
constexpr int kTileRows = 4;
constexpr int kTileOutputs = 4;
constexpr int kWideTileRows = 2;
constexpr int kWideTileOutputs = 8;
#else
constexpr int kTileRows = 2;
constexpr int kTileOutputs = 3;
constexpr int kWideTileRows = 1;
constexpr int kWideTileOutputs = 6;
#endif
// Widened rows that stay in the second-level cache while the weights pass by.
constexpr int64_t kRowBlockBytes = 256 << 10;

// sums[r][n] = x row r . weight row n, in lane order.
template <int kRows, int kOutputs, typename W>
HWY_INLINE void Tile(const float* HWY_RESTRICT x, int64_t x_stride, const W* HWY_RESTRICT w,
                     int64_t w_stride, int64_t k, float (&sums)[kRows][kOutputs]) {
  F32x16 acc[kRows][kOutputs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) acc[r][n] = ZeroLanes();
  }
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    F32x16 column[kOutputs];
    for (int n = 0; n < kOutputs; ++n) column[n] = LoadLanes(w + n * w_stride + i);
    for (int r = 0; r < kRows; ++r) {
      const F32x16 row = LoadLanes(x + r * x_stride + i);
      for (int n = 0; n < kOutputs; ++n) acc[r][n] = MulAdd(row, column[n], acc[r][n]);
    }
  }
  if (i < k) {
    F32x16 column[kOutputs];
    for (int n = 0; n < kOutputs; ++n) column[n] = LoadLowLanes(w + n * w_stride + i);
    for (int r = 0; r < kRows; ++r) {
      const F32x16 row = LoadLowLanes(x + r * x_stride + i);
      for (int n = 0; n < kOutputs; ++n) acc[r][n] = MulAdd(row, column[n], acc[r][n]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) sums[r][n] = Fold(acc[r][n]);
  }
}

template <int kRows, int kOutputs, typename W>
HWY_NOINLINE void TileToOut(const Gemm& gemm, int64_t row, int64_t n) {
  float sums[kRows][kOutputs];
  const int64_t w_stride = gemm.weight.row_stride;
  Tile<kRows, kOutputs>(gemm.x + row * gemm.x_stride, gemm.x_stride,
                        reinterpret_cast<const W*>(gemm.weight.row(n)), w_stride, gemm.k, sums);
  for (int r = 0; r < kRows; ++r) {
    std::byte* out = gemm.out.row(row + r);
    for (int j = 0; j < kOutputs; ++j) {
      const float sum = gemm.round_to_bf16 ? WidenBF16(RoundToBF16(sums[r][j])) : sums[r][j];
      StoreElement(sum, out, gemm.out.dtype, n + j);
    }
  }
}

// What is left of the rows, fewer than a whole tile.
template <int kRows, int kOutputs, typename W>
void RestOfRows(const Gemm& gemm, int64_t row, int64_t count, int64_t n) {
  if constexpr (kRows > 0) {
    if (count == kRows) return TileToOut<kRows, kOutputs, W>(gemm, row, n);
    RestOfRows<kRows - 1, kOutputs, W>(gemm, row, count, n);
  }
}

// All rows of [row_begin, row_end) times whole tiles of outputs from n on; returns where they end.
template <int kRows, int kOutputs, typename W>
int64_t Sweep(const Gemm& gemm, int64_t row_begin, int64_t row_end, int64_t n, int64_t n_end) {
  for (; n + kOutputs <= n_end; n += kOutputs) {
    int64_t row = row_begin;
    for (; row + kRows <= row_end; row += kRows) TileToOut<kRows, kOutputs, W>(gemm, row, n);
    RestOfRows<kRows - 1, kOutputs, W>(gemm, row, row_end - row, n);
  }
  return n;
}

template <typename W>
void GemmRangeTyped(const Gemm& gemm, int64_t n_begin, int64_t n_end) {
  const int64_t fitting = kRowBlockBytes / (gemm.k * static_cast<int64_t>(sizeof(float)));
  const int64_t block = std::max<int64_t>(8, fitting / kTileRows * kTileRows);
  for (int64_t row = 0; row < gemm.rows; row += block) {
    const int64_t row_end = std::min(row + block, gemm.rows);
    int64_t n = n_begin;
    if (row_end - row <= kWideTileRows) {
      n = Sweep<kWideTileRows, kWideTileOutputs, W>(gemm, row, row_end, n, n_end);
    }
    n = Sweep<kTileRows, kTileOutputs, W>(gemm, row, row_end, n, n_end);
    Sweep<kTileRows, 1, W>(gemm, row, row_end, n, n_end);
  }
}

void GemmRangeImpl(const Gemm& gemm, int64_t n_begin, int64_t n_end) {
  if (gemm.weight.dtype == Dtype::kF32) {
    GemmRangeTyped<float>(gemm, n_begin, n_end);
  } else {
    GemmRangeTyped<BF16>(gemm, n_begin, n_end);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(GemmRangeImpl);

void GemmRange(const Gemm& gemm, int64_t n_begin, int64_t n_end) {
  HWY_DYNAMIC_DISPATCH(GemmRangeImpl)(gemm, n_begin, n_end);
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE
