#include "kernels/cpu/product.h"

#include <algorithm>

#include "common/check.h"
#include "hwy/aligned_allocator.h"
#include "kernels/cpu/float_kernels.h"
#include "kernels/cpu/integer_kernels.h"
#include "kernels/cpu/prefetch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/product.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

// The value of sixteen outputs from n on, of row r of the product, by their sums.
HWY_INLINE F32x16 ValueOf(const Product&, const float* sums, int64_t, int64_t) {
  return LoadLanes(sums);
}
HWY_INLINE F32x16 ValueOf(const Product& product, const int32_t* sums, int64_t r, int64_t n) {
  const hn::RebindToSigned<PartTag> integers;
  const F32x16 row_scale = SetLanes(product.x.integers().scale(product.first_row + r));
  const F32x16 scale = Mul(row_scale, LoadLanes(product.weight.integers()->scales() + n));
  F32x16 value;
  for (int i = 0; i < kParts; ++i) {
    const auto sum = hn::LoadU(integers, sums + i * kPartLanes);
    value.part[i] = hn::Mul(hn::ConvertTo(PartTag(), sum), scale.part[i]);
  }
  return value;
}

template <typename Sum, typename T, bool kRound>
void StoreSumsAs(const Product& product, const Sum* sums, int64_t first, int64_t rows, int64_t n) {
  const int64_t count = std::min(kPanelOutputs, product.weight.outputs() - n);
  for (int64_t r = first; r < first + rows; ++r, sums += kPanelOutputs) {
    const int64_t out_row = product.out_rows == nullptr ? r : product.out_rows[r];
    T* const out = reinterpret_cast<T*>(product.out.row(out_row)) + n - product.first_output;
    for (int64_t i = 0; i < count; i += kLanes) {
      F32x16 value = ValueOf(product, sums + i, r, n + i);
      if constexpr (kRound) value = RoundTo<BF16>(value);
      if (count - i >= kLanes) {
        StoreLanes(value, out + i);
      } else {
        StoreSomeLanes(value, out + i, count - i);
      }
    }
  }
}

template <typename Sum>
void StoreSumsOf(const Product& product, const Sum* sums, int64_t first, int64_t rows, int64_t n) {
  if (product.out.dtype == Dtype::kBF16) {
    StoreSumsAs<Sum, BF16, false>(product, sums, first, rows, n);
  } else if (product.round_to_bf16) {
    StoreSumsAs<Sum, float, true>(product, sums, first, rows, n);
  } else {
    StoreSumsAs<Sum, float, false>(product, sums, first, rows, n);
  }
}

// Rows [first, first + rows) of the panel whose first output is n.
void StoreFloatSums(const Product& product, const float* sums, int64_t first, int64_t rows,
                    int64_t n) {
  StoreSumsOf(product, sums, first, rows, n);
}
void StoreIntegerSums(const Product& product, const int32_t* sums, int64_t first, int64_t rows,
                      int64_t n) {
  StoreSumsOf(product, sums, first, rows, n);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(StoreFloatSums);
HWY_EXPORT(StoreIntegerSums);

namespace {

// A thread's memory for the sums of a panel, of 16 rows at least.
template <typename Sum>
Sum* SumsOf(int64_t rows) {
  constexpr int64_t kTileRows = 16;
  thread_local int64_t capacity = 0;
  thread_local hwy::AlignedFreeUniquePtr<Sum[]> sums;
  if (capacity < rows) {
    capacity = CeilDiv(rows, kTileRows) * kTileRows;
    sums = hwy::AllocateAligned<Sum>(capacity * kPanelOutputs);
    TANDEM_CHECK(sums != nullptr);
    std::fill_n(sums.get(), capacity * kPanelOutputs, Sum{0});
  }
  return sums.get();
}

// Calls run(panel, next, row, rows) for all panels, `max_rows` rows at a time: these stay in the
// second-level cache while the panels pass by. `next`: what is read after the panel.
template <typename Run>
void ForEachPanel(const Product& product, int64_t begin, int64_t end, int64_t max_rows, Run run) {
  const int64_t end_panel = CeilDiv(end, kPanelOutputs);
  for (int64_t row = 0; row < product.rows; row += max_rows) {
    for (int64_t panel = begin / kPanelOutputs; panel < end_panel; ++panel) {
      const bool is_last = row + max_rows >= product.rows;
      const std::byte* const next = panel + 1 < end_panel ? product.weight.panel(panel + 1)
                                    : is_last             ? product.next
                                              : product.weight.panel(begin / kPanelOutputs);
      run(panel, next, row, std::min(max_rows, product.rows - row));
    }
  }
}

// How many rows of floats are multiplied at once.
int64_t RowsAtOnce(const FloatRows& x) {
  constexpr int64_t kCachedBytes = 512 << 10, kLeastRows = 64, kMostRows = 256;
  const int64_t fitting = kCachedBytes / (x.blocks() * x.row_bytes());
  return std::clamp(fitting / 32 * 32, kLeastRows, kMostRows);
}

void MultiplyIntegers(const IntegerWeight& weight, const Product& product, int64_t begin,
                      int64_t end) {
  constexpr int64_t kFloatsOfLine = 64 / sizeof(float);
  const IntegerKernel& kernel = IntegerKernelFor(product.rows);
  auto* const sums = SumsOf<int32_t>(std::min(product.rows, kernel.max_rows));
  const auto run = [&](int64_t panel, const std::byte* next, int64_t row, int64_t rows) {
    for (int64_t n = 0; n < kPanelOutputs; n += kFloatsOfLine) {
      PrefetchLine(weight.scales() + panel * kPanelOutputs + n);
    }
    kernel.run({weight.layout.format, weight.panel(panel), &product.x.integers(),
                product.first_row + row, rows, sums, reinterpret_cast<const uint8_t*>(next)});
    HWY_DYNAMIC_DISPATCH(StoreIntegerSums)(product, sums, row, rows, panel * kPanelOutputs);
  };
  ForEachPanel(product, begin, end, kernel.max_rows, run);
}

void MultiplyFloats(const FloatWeight& weight, const Product& product, int64_t begin, int64_t end) {
  const FloatRows& x = product.x.floats();
  const FloatOrder order = x.dtype() == Dtype::kBF16 ? weight.order : FloatOrder::kBlock;
  const FloatKernel& kernel = FloatKernelFor(order, x.dtype());
  const int64_t max_rows = RowsAtOnce(x);
  auto* const sums = SumsOf<float>(std::min(product.rows, max_rows));
  const auto run = [&](int64_t panel, const std::byte* next, int64_t row, int64_t rows) {
    kernel.run(
        {weight.layout.dtype, weight.panel(panel), &x, product.first_row + row, rows, sums, next});
    HWY_DYNAMIC_DISPATCH(StoreFloatSums)(product, sums, row, rows, panel * kPanelOutputs);
  };
  ForEachPanel(product, begin, end, max_rows, run);
}

}  // namespace

void Multiply(const Product& product, int64_t begin, int64_t end) {
  TANDEM_CHECK(begin % kPanelOutputs == 0);
  if (const IntegerWeight* const weight = product.weight.integers(); weight != nullptr) {
    MultiplyIntegers(*weight, product, begin, end);
  } else {
    MultiplyFloats(*product.weight.floats(), product, begin, end);
  }
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE
