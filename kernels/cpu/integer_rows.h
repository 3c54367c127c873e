// Rows of activations as products with an IntegerWeight read them: int8 with one scale per row.
#ifndef TANDEM_KERNELS_CPU_INTEGER_ROWS_H_
#define TANDEM_KERNELS_CPU_INTEGER_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/tensor.h"
#include "hwy/aligned_allocator.h"
#include "kernels/cpu/integer_weight.h"

namespace tandem::kernels::cpu {

// x[i, k] is taken as scale[i] * q[i, k]: scale = max|x[i]| / 127, q = x * (127 / max|x[i]|) to
// nearest even. A row whose largest magnitude is below 2^-100 is zero; one with a NaN or an
// infinity has a NaN as its scale.
//
// Values lie block by block, [blocks][stored rows][128], so that what a product with one block of
// a panel reads of many rows lies together.
class IntegerRows {
 public:
  // Room for that many rows, with whatever values. Memory grows, and stays until destruction.
  void Resize(int64_t rows, int64_t inputs);
  // Quantizes row i. Rows may be set by different threads at once.
  void Set(int64_t i, const void* x, Dtype dtype);
  // Row i = row `from_row` of `from`, which has as many inputs.
  void Copy(int64_t i, const IntegerRows& from, int64_t from_row);

  int64_t blocks() const { return blocks_; }
  // Rows [row, ...) of a block, 128 bytes apart. Fifteen more may be read than there are.
  const int8_t* block(int64_t block, int64_t row) const {
    return values_.get() + (block * stored_rows_ + row) * kBlockInputs;
  }
  // From a row in a block to the same one in the next, in bytes.
  int64_t next_block() const { return stored_rows_ * kBlockInputs; }
  // For each of the block's groups of 32 inputs a pair of i16, the lower one first: -8 times the
  // sums of the values at k % 4 in {0, 1} and in {2, 3}. A row's four lie together.
  const int32_t* group_sums(int64_t block, int64_t row) const {
    return group_sums_.data() + (block * stored_rows_ + row) * kBlockGroups;
  }
  // The same, each pair as one sum.
  const int32_t* group_totals(int64_t block, int64_t row) const {
    return group_totals_.data() + (block * stored_rows_ + row) * kBlockGroups;
  }
  float scale(int64_t row) const { return scales_[row]; }
  // Of a row's values.
  int32_t sum(int64_t row) const { return sums_[row]; }

 private:
  int64_t inputs_ = 0;
  int64_t blocks_ = 0;
  int64_t stored_rows_ = 0;
  int64_t capacity_ = 0;  // of values_
  hwy::AlignedFreeUniquePtr<int8_t[]> values_;
  std::vector<int32_t> group_sums_;
  std::vector<int32_t> group_totals_;
  std::vector<int32_t> sums_;
  std::vector<float> scales_;
};

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_INTEGER_ROWS_H_
