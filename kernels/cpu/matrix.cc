#include "kernels/cpu/matrix.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/huge_memory.h"
#include "common/status.h"
#include "kernels/cpu/float_kernels.h"

namespace tandem::kernels::cpu {
namespace {

constexpr int64_t kAlignment = 64;

IntegerWeight Quantize(const TensorView& source, WeightFormat format, WeightMemory* memory,
                       ThreadPool& pool) {
  const IntegerLayout layout(format, source.dim(0), source.dim(1));
  std::shared_ptr<std::byte> packed = memory->Take(layout.bytes());
  if (memory->filled()) return IntegerWeight{layout, std::move(packed)};
  pool.ParallelFor(layout.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) QuantizePanel(source, layout, i, packed.get());
  });
  return IntegerWeight{layout, std::move(packed)};
}

FloatWeight Pack(const TensorView& source, FloatOrder order, WeightMemory* memory,
                 ThreadPool& pool) {
  const FloatLayout layout(source.dtype, source.dim(0), source.dim(1));
  std::shared_ptr<std::byte> packed = memory->Take(layout.bytes());
  if (memory->filled()) return FloatWeight{layout, order, std::move(packed)};
  pool.ParallelFor(layout.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) PackPanel(source, layout, i, packed.get());
  });
  return FloatWeight{layout, order, std::move(packed)};
}

}  // namespace

void Append(const PackedLayout& next, PackedLayout* layout) {
  if (next.bytes == 0) return;
  absl::StrAppend(&layout->name, layout->name.empty() ? "" : ", ", next.name);
  layout->bytes = CeilDiv(layout->bytes, kAlignment) * kAlignment + next.bytes;
}

absl::StatusOr<WeightMemory> WeightMemory::FindOrAllocate(PackedLayout layout, PackedUnit* unit,
                                                          ThreadPool& pool) {
  WeightMemory memory;
  memory.layout_ = std::move(layout);
  if (memory.layout_.bytes == 0) return memory;
  std::shared_ptr<const std::byte> kept;
  if (unit != nullptr) {
    kept = unit->Find(memory.layout_.name, memory.layout_.bytes, [&](int64_t count, auto fn) {
      pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) fn(i);
      });
    });
  }
  if (kept == nullptr) {
    memory.memory_ = NewHugeMemory(memory.layout_.bytes);
    if (memory.memory_ != nullptr) return memory;
    return absl::ResourceExhaustedError(absl::StrCat(
        "The system does not have ", memory.layout_.bytes, " bytes of memory for weights"));
  }
  memory.memory_ = std::const_pointer_cast<std::byte>(kept);
  memory.filled_ = true;
  return memory;
}

std::shared_ptr<std::byte> WeightMemory::Take(int64_t bytes) {
  TANDEM_CHECK(bytes <= layout_.bytes - taken_);
  std::shared_ptr<std::byte> taken(memory_, memory_.get() + taken_);
  taken_ += CeilDiv(bytes, kAlignment) * kAlignment;
  return taken;
}

void WeightMemory::KeepIn(PackedUnit* unit) const {
  if (unit == nullptr || filled_ || layout_.bytes == 0) return;
  unit->Keep(layout_.name, memory_, layout_.bytes);
}

PackedLayout Matrix::LayoutToPrepare(const TensorView& tensor, WeightFormat format) {
  const std::string shape = absl::StrCat(" [", tensor.dim(0), ", ", tensor.dim(1), "]");
  if (IsInteger(format)) {
    const IntegerLayout layout(format, tensor.dim(0), tensor.dim(1));
    return {absl::StrCat(WeightFormatName(format), " ", kIntegerLayoutVersion, shape),
            layout.bytes()};
  }
  const FloatLayout layout(tensor.dtype, tensor.dim(0), tensor.dim(1));
  return {absl::StrCat(DtypeName(tensor.dtype), " ", kFloatLayoutVersion, shape), layout.bytes()};
}

Matrix Matrix::Prepare(const TensorView& tensor, WeightFormat format, FloatOrder order,
                       WeightMemory* memory, ThreadPool& pool) {
  Matrix matrix;
  matrix.format_ = format;
  if (IsInteger(format)) {
    matrix.values_ = Quantize(tensor, format, memory, pool);
  } else {
    matrix.values_ = Pack(tensor, order, memory, pool);
  }
  return matrix;
}

int64_t Matrix::outputs() const {
  return std::visit([](const auto& weight) { return weight.layout.outputs; }, values_);
}

int64_t Matrix::inputs() const {
  return std::visit([](const auto& weight) { return weight.layout.inputs; }, values_);
}

int64_t Matrix::bytes() const {
  return std::visit([](const auto& weight) { return weight.layout.bytes(); }, values_);
}

const std::byte* Matrix::panel(int64_t i) const {
  if (integers() != nullptr) return reinterpret_cast<const std::byte*>(integers()->panel(i));
  return floats()->panel(i);
}

const std::shared_ptr<const std::byte>& Matrix::memory() const {
  return integers() != nullptr ? integers()->memory : floats()->memory;
}

RowKind Matrix::RowsFor(Dtype act) const {
  if (integers() != nullptr) return RowKind::kInt8;
  const bool all_bf16 = act == Dtype::kBF16 && format_ == WeightFormat::kBF16;
  return all_bf16 && TakesBF16Rows(floats()->order) ? RowKind::kBF16 : RowKind::kF32;
}

void MatrixRows::Resize(RowKind kind, int64_t rows, int64_t inputs) {
  are_integers_ = kind == RowKind::kInt8;
  if (are_integers_) return integers_.Resize(rows, inputs);
  floats_.Resize(kind == RowKind::kBF16 ? Dtype::kBF16 : Dtype::kF32, rows, inputs);
}

void MatrixRows::Set(int64_t i, const void* x, Dtype dtype) {
  if (are_integers_) return integers_.Set(i, x, dtype);
  floats_.Set(i, x, dtype);
}

void MatrixRows::Copy(int64_t i, const MatrixRows& from, int64_t from_row) {
  if (are_integers_) return integers_.Copy(i, from.integers_, from_row);
  floats_.Copy(i, from.floats_, from_row);
}

}  // namespace tandem::kernels::cpu
