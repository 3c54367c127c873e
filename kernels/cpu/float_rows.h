// Rows of activations as products with a FloatWeight read them.
#ifndef TANDEM_KERNELS_CPU_FLOAT_ROWS_H_
#define TANDEM_KERNELS_CPU_FLOAT_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "common/tensor.h"
#include "hwy/aligned_allocator.h"
#include "kernels/cpu/float_weight.h"

namespace tandem::kernels::cpu {

// Values lie block by block, [blocks][stored rows][32], so that what a product with one block of a
// panel reads of many rows lies together. Beyond the inputs they are zero.
class FloatRows {
 public:
  // Room for that many rows of f32 or bf16, with whatever values. Memory grows, and stays until
  // destruction.
  void Resize(Dtype dtype, int64_t rows, int64_t inputs);
  // Row i = x, widened or rounded where the dtypes differ. Rows may be set by different threads at
  // once.
  void Set(int64_t i, const void* x, Dtype dtype);
  // Row i = row `from_row` of `from`, which is of the same dtype and inputs.
  void Copy(int64_t i, const FloatRows& from, int64_t from_row);

  Dtype dtype() const { return dtype_; }
  int64_t blocks() const { return blocks_; }
  // Of a row in a block, and so between rows.
  int64_t row_bytes() const { return kFloatBlockInputs * static_cast<int64_t>(DtypeBytes(dtype_)); }
  // Rows [row, ...) of a block. Fifteen more may be read than there are.
  const std::byte* block(int64_t block, int64_t row) const {
    return values_.get() + (block * stored_rows_ + row) * row_bytes();
  }

 private:
  std::byte* Place(int64_t block, int64_t row) {
    return values_.get() + (block * stored_rows_ + row) * row_bytes();
  }

  Dtype dtype_ = Dtype::kF32;
  int64_t inputs_ = 0;
  int64_t blocks_ = 0;
  int64_t stored_rows_ = 0;
  int64_t capacity_ = 0;  // bytes of values_
  hwy::AlignedFreeUniquePtr<std::byte[]> values_;
};

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_FLOAT_ROWS_H_
