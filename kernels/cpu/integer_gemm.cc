#include "kernels/cpu/integer_gemm.h"

#include <algorithm>
#include <utility>

#include "hwy/aligned_allocator.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/integer_gemm.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

// float(sums) * scale, for sixteen outputs.
HWY_INLINE F32x16 Scaled(const int32_t* sums, F32x16 scale) {
  const hn::RebindToSigned<PartTag> integers;
  F32x16 r;
  for (int i = 0; i < kParts; ++i) {
    const auto sum = hn::LoadU(integers, sums + i * kPartLanes);
    r.part[i] = hn::Mul(hn::ConvertTo(PartTag(), sum), scale.part[i]);
  }
  return r;
}

template <typename T, bool kRound>
void StoreSumsTyped(const IntegerGemm& gemm, const int32_t* sums, int64_t first, int64_t rows,
                    int64_t n) {
  const int64_t count = std::min(kPanelOutputs, gemm.weight.layout.outputs - n);
  for (int64_t r = first; r < first + rows; ++r, sums += kPanelOutputs) {
    const F32x16 row_scale = SetLanes(gemm.x.scale(gemm.first_row + r));
    T* const out =
        reinterpret_cast<T*>(gemm.out.row(gemm.out_rows == nullptr ? r : gemm.out_rows[r])) + n;
    for (int64_t i = 0; i < count; i += kLanes) {
      F32x16 value = Scaled(sums + i, Mul(row_scale, LoadLanes(gemm.weight.scales() + n + i)));
      if constexpr (kRound) value = RoundTo<BF16>(value);
      if (count - i >= kLanes) {
        StoreLanes(value, out + i);
      } else {
        StoreSomeLanes(value, out + i, count - i);
      }
    }
  }
}

// Rows [first, first + rows) of the panel whose first output is n.
void StoreSumsImpl(const IntegerGemm& gemm, const int32_t* sums, int64_t first, int64_t rows,
                   int64_t n) {
  if (gemm.out.dtype == Dtype::kBF16)
    return StoreSumsTyped<BF16, false>(gemm, sums, first, rows, n);
  if (gemm.round_to_bf16) return StoreSumsTyped<float, true>(gemm, sums, first, rows, n);
  StoreSumsTyped<float, false>(gemm, sums, first, rows, n);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(StoreSumsImpl);

namespace {

std::vector<IntegerKernel>& KernelsInUse() {
  static std::vector<IntegerKernel> kernels = IntegerKernels();
  return kernels;
}

const IntegerKernel& KernelFor(int64_t rows) {
  for (const IntegerKernel& kernel : KernelsInUse()) {
    if (rows >= kernel.min_rows) return kernel;
  }
  return KernelsInUse().back();
}

// A thread's memory for the sums of a panel.
int32_t* SumsOf(int64_t rows) {
  constexpr int64_t kTileRows = 16;
  thread_local int64_t capacity = 0;
  thread_local hwy::AlignedFreeUniquePtr<int32_t[]> sums;
  if (capacity < rows) {
    capacity = CeilDiv(rows, kTileRows) * kTileRows;
    sums = hwy::AllocateAligned<int32_t>(capacity * kPanelOutputs);
    std::fill_n(sums.get(), capacity * kPanelOutputs, 0);
  }
  return sums.get();
}

}  // namespace

void MultiplyPanels(const IntegerGemm& gemm, int64_t begin, int64_t end) {
  const IntegerKernel& kernel = KernelFor(gemm.rows);
  int32_t* const sums = SumsOf(std::min(gemm.rows, kernel.max_rows));
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t row = 0; row < gemm.rows; row += kernel.max_rows) {
      const int64_t rows = std::min(kernel.max_rows, gemm.rows - row);
      kernel.run({gemm.weight.layout.format, gemm.weight.panel(panel), &gemm.x,
                  gemm.first_row + row, rows, sums});
      HWY_DYNAMIC_DISPATCH(StoreSumsImpl)(gemm, sums, row, rows, panel * kPanelOutputs);
    }
  }
}

std::vector<IntegerKernel> ExchangeIntegerKernels(std::vector<IntegerKernel> kernels) {
  return std::exchange(KernelsInUse(), std::move(kernels));
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE
