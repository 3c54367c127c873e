// A linear map as the CPU keeps it, and rows of activations as products with it read them, in any
// format.
#ifndef TANDEM_KERNELS_CPU_MATRIX_H_
#define TANDEM_KERNELS_CPU_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mode.h"
#include "common/packed_unit.h"
#include "common/tensor.h"
#include "kernels/cpu/float_rows.h"
#include "kernels/cpu/float_weight.h"
#include "kernels/cpu/integer_rows.h"
#include "kernels/cpu/integer_weight.h"
#include "kernels/cpu/thread_pool.h"

namespace tandem::kernels::cpu {

// Has `layout` go on with a matrix packed as `next`, at a multiple of 64.
void Append(const PackedLayout& next, PackedLayout* layout);

// Memory for weights that come and go together: new and zeroed, or filled with what was made of
// them at an earlier start. New memory is NewHugeMemory.
class WeightMemory {
 public:
  // What `unit` (null: nothing) keeps in this layout, or new memory. RESOURCE_EXHAUSTED where the
  // system does not have it.
  static absl::StatusOr<WeightMemory> FindOrAllocate(PackedLayout layout, PackedUnit* unit,
                                                     ThreadPool& pool);
  // Whether all of it has its bytes already, which must not be written to.
  bool filled() const { return filled_; }
  // The next `bytes`, at a multiple of 64; all is given back with the last of them. Requires that
  // there are as many left, with what lies between them.
  std::shared_ptr<std::byte> Take(int64_t bytes);
  // Gives what it is filled with now to `unit` (null: nowhere), unless it came from there.
  void KeepIn(PackedUnit* unit) const;

 private:
  PackedLayout layout_;
  std::shared_ptr<std::byte> memory_;
  bool filled_ = false;
  int64_t taken_ = 0;
};

// As what rows are multiplied: floats of a dtype, or integers.
enum class RowKind : uint8_t { kF32, kBF16, kInt8 };

// [outputs, inputs], packed floats or integers.
class Matrix {
 public:
  Matrix() = default;
  // Of WeightMemory, for Prepare. Looks at the tensor's shape and dtype only.
  static PackedLayout LayoutToPrepare(const TensorView& tensor, WeightFormat format);
  // Does not look at the tensor's values where the memory is filled. `order`: of products of bf16
  // with bf16.
  static Matrix Prepare(const TensorView& tensor, WeightFormat format, FloatOrder order,
                        WeightMemory* memory, ThreadPool& pool);

  int64_t outputs() const;
  int64_t inputs() const;
  int64_t bytes() const;
  // Where outputs [i * kPanelOutputs, ...) lie.
  const std::byte* panel(int64_t i) const;
  // Its bytes. Owns the WeightMemory that they were taken from.
  const std::shared_ptr<const std::byte>& memory() const;
  // How rows of activations of `act` are multiplied by it. One for all matrices of a format.
  RowKind RowsFor(Dtype act) const;
  // Null where the format is none of integers, and the other way round.
  const IntegerWeight* integers() const { return std::get_if<IntegerWeight>(&values_); }
  const FloatWeight* floats() const { return std::get_if<FloatWeight>(&values_); }

 private:
  WeightFormat format_ = WeightFormat::kF32;
  std::variant<FloatWeight, IntegerWeight> values_;
};

// Rows as products read them: floats, or quantized.
class MatrixRows {
 public:
  // Room for that many rows, with whatever values. Memory grows, and stays until destruction.
  void Resize(RowKind kind, int64_t rows, int64_t inputs);
  // Rows may be set by different threads at once. For kBF16 values are rounded, which is for values
  // that are bf16 already.
  void Set(int64_t i, const void* x, Dtype dtype);
  // Row i = row `from_row` of `from`, which is of the same kind and inputs.
  void Copy(int64_t i, const MatrixRows& from, int64_t from_row);

  const IntegerRows& integers() const { return integers_; }
  const FloatRows& floats() const { return floats_; }

 private:
  bool are_integers_ = false;
  IntegerRows integers_;
  FloatRows floats_;
};

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_MATRIX_H_
