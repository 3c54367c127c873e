#include "kernels/cpu/matrix.h"

#include <sys/mman.h>

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/machine.h"
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

void PackedLayout::Append(const PackedLayout& next) {
  if (next.bytes == 0) return;
  absl::StrAppend(&name, name.empty() ? "" : ", ", next.name);
  bytes = CeilDiv(bytes, kAlignment) * kAlignment + next.bytes;
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
    TANDEM_RETURN_IF_ERROR(memory.Allocate());
    return memory;
  }
  memory.memory_ = std::const_pointer_cast<std::byte>(kept);
  memory.filled_ = true;
  return memory;
}

absl::Status WeightMemory::Allocate() {
  const auto bytes = static_cast<size_t>(layout_.bytes);
  const size_t size = (bytes / kHugePageBytes + 2) * kHugePageBytes;
  void* const mapped =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("The system does not have ", layout_.bytes, " bytes of memory for weights"));
  }
  const size_t to_boundary =
      (kHugePageBytes - reinterpret_cast<uintptr_t>(mapped) % kHugePageBytes) % kHugePageBytes;
  // The last one only where it is filled by a quarter: an expert's would hold 2 MiB for 0.3. Advice
  // only.
  const size_t pages = (bytes + kHugePageBytes - kHugePageBytes / 4) / kHugePageBytes;
  madvise(static_cast<std::byte*>(mapped) + to_boundary, pages * kHugePageBytes, MADV_HUGEPAGE);
  memory_ = std::shared_ptr<std::byte>(static_cast<std::byte*>(mapped) + to_boundary,
                                       [mapped, size](std::byte*) { munmap(mapped, size); });
  return absl::OkStatus();
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
