// A linear map as the CPU keeps it, rows of activations as products read them, and the products:
// the arithmetic of Linear and of every op that is defined by it, in any format.
#ifndef TANDEM_KERNELS_CPU_MATRIX_H_
#define TANDEM_KERNELS_CPU_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mode.h"
#include "common/packed_unit.h"
#include "common/tensor.h"
#include "kernels/cpu/integer_rows.h"
#include "kernels/cpu/integer_weight.h"
#include "kernels/cpu/thread_pool.h"

namespace tandem::kernels::cpu {

// What packed matrices look like in memory, one after the other, each at a multiple of 64.
struct PackedLayout {
  // Says everything that the bytes' meaning depends on: the order of one format's panels, shapes.
  std::string name;
  int64_t bytes = 0;  // 0: nothing is packed

  void Append(const PackedLayout& next);
};

// Memory for weights that come and go together: new and zeroed, or filled with what was made of
// them at an earlier start. It lies at the begin of a huge page and is in huge pages where the
// system has them.
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
  absl::Status Allocate();

  PackedLayout layout_;
  std::shared_ptr<std::byte> memory_;
  bool filled_ = false;
  int64_t taken_ = 0;
};

// [outputs, inputs]: f32 or bf16 as it lies in the file, or packed integers of its own memory.
class Matrix {
 public:
  Matrix() = default;
  // Of WeightMemory, for Prepare. Looks at the tensor's shape only.
  static PackedLayout LayoutToPrepare(const TensorView& tensor, WeightFormat format);
  // Does not look at the tensor's values where the memory is filled.
  static Matrix Prepare(OwnedTensor tensor, WeightFormat format, WeightMemory* memory,
                        ThreadPool& pool);

  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int64_t bytes() const;
  // Null where the format is none of integers, and the other way round.
  const IntegerWeight* integers() const { return std::get_if<IntegerWeight>(&values_); }
  const TensorView& floats() const { return std::get<OwnedTensor>(values_).view; }

 private:
  int64_t outputs_ = 0;
  int64_t inputs_ = 0;
  std::variant<OwnedTensor, IntegerWeight> values_;
};

// Rows as products with a format's matrices read them: widened to f32, or quantized.
class MatrixRows {
 public:
  // Room for that many rows, with whatever values. Memory grows, and stays until destruction.
  void Resize(WeightFormat format, int64_t rows, int64_t inputs);
  // Rows may be set by different threads at once.
  void Set(int64_t i, const void* x, Dtype dtype);
  // Row i = row `from_row` of `from`, which is of the same format and inputs.
  void Copy(int64_t i, const MatrixRows& from, int64_t from_row);

  const IntegerRows& integers() const { return integers_; }
  const float* floats(int64_t row) const { return floats_.data() + row * stride(); }
  int64_t stride() const;  // of `floats`, in elements

 private:
  bool are_integers_ = false;
  int64_t inputs_ = 0;
  IntegerRows integers_;
  std::vector<float> floats_;
};

// out[i, n] = round(sum_k x[first_row + i, k] * weight[n, k]) for `rows` rows, as
// kernels/ops/dense.h says for the format.
struct Product {
  const Matrix& weight;
  const MatrixRows& x;
  int64_t first_row;
  int64_t rows;
  TensorView out;                     // [*, outputs] f32 or bf16; rounded where bf16
  const int32_t* out_rows = nullptr;  // [rows] row of `out` that row i goes to; null: i
  bool round_to_bf16 = false;         // round also where out is f32
};

// Computes outputs [begin, end) of a product on the calling thread. `begin` is a multiple of
// kPanelOutputs, `end` is one or the last.
void Multiply(const Product& product, int64_t begin, int64_t end);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_MATRIX_H_
