#include "kernels/cpu/float_rows.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/float_rows.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

// A row into its places, `stride_bytes` from block to block.
template <typename From, typename To>
void ScatterRow(const From* from, int64_t inputs, std::byte* to, int64_t stride_bytes) {
  for (int64_t k = 0; k < inputs; k += kFloatBlockInputs, to += stride_bytes) {
    auto* const block = reinterpret_cast<To*>(to);
    for (int64_t i = 0; i < kFloatBlockInputs; i += kLanes) {
      const int64_t count = std::clamp<int64_t>(inputs - k - i, 0, kLanes);
      const From* const values = from + k + i;
      StoreLanes(count == kLanes ? LoadLanes(values) : LoadSomeLanes(values, count), block + i);
    }
  }
}

void WidenIntoBlocks(const BF16* from, int64_t inputs, std::byte* to, int64_t stride_bytes) {
  ScatterRow<BF16, float>(from, inputs, to, stride_bytes);
}
void RoundIntoBlocks(const float* from, int64_t inputs, std::byte* to, int64_t stride_bytes) {
  ScatterRow<float, BF16>(from, inputs, to, stride_bytes);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(WidenIntoBlocks);
HWY_EXPORT(RoundIntoBlocks);

namespace {

// What a product may read beyond the last row: the rest of a tile of 16.
constexpr int64_t kSpareRows = 15;

}  // namespace

void FloatRows::Resize(Dtype dtype, int64_t rows, int64_t inputs) {
  dtype_ = dtype;
  inputs_ = inputs;
  blocks_ = CeilDiv(inputs, kFloatBlockInputs);
  stored_rows_ = rows + kSpareRows;
  const int64_t size = blocks_ * stored_rows_ * row_bytes();
  if (capacity_ >= size) return;
  values_ = hwy::AllocateAligned<std::byte>(size);
  TANDEM_CHECK(values_ != nullptr);
  capacity_ = size;
  std::memset(values_.get(), 0, size);  // rows to spare are read
}

void FloatRows::Set(int64_t i, const void* x, Dtype dtype) {
  std::byte* const to = Place(0, i);
  const int64_t stride_bytes = stored_rows_ * row_bytes();
  if (dtype != dtype_) {
    if (dtype == Dtype::kBF16) {
      HWY_DYNAMIC_DISPATCH(WidenIntoBlocks)
      (static_cast<const BF16*>(x), inputs_, to, stride_bytes);
    } else {
      HWY_DYNAMIC_DISPATCH(RoundIntoBlocks)
      (static_cast<const float*>(x), inputs_, to, stride_bytes);
    }
    return;
  }
  const auto* from = static_cast<const std::byte*>(x);
  const std::byte* const end = from + inputs_ * static_cast<int64_t>(DtypeBytes(dtype));
  for (int64_t b = 0; b < blocks_; ++b, from += row_bytes()) {
    const int64_t count = std::min<int64_t>(row_bytes(), end - from);
    std::memcpy(Place(b, i), from, static_cast<size_t>(count));
    std::memset(Place(b, i) + count, 0, static_cast<size_t>(row_bytes() - count));
  }
}

void FloatRows::Copy(int64_t i, const FloatRows& from, int64_t from_row) {
  for (int64_t b = 0; b < blocks_; ++b) {
    std::memcpy(Place(b, i), from.block(b, from_row), static_cast<size_t>(row_bytes()));
  }
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE
