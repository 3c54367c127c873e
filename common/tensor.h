// Element types and non-owning views of dense tensors: the vocabulary in which checkpoints, kernels
// and transports speak of memory.
#ifndef TANDEM_COMMON_TENSOR_H_
#define TANDEM_COMMON_TENSOR_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <type_traits>

#include "common/made_up_values.h"

namespace tandem {

enum class Dtype : uint8_t { kF32 = 1, kBF16 = 2, kF16 = 3, kI32 = 4, kU8 = 5 };

constexpr size_t DtypeBytes(Dtype dtype) {
  if (dtype == Dtype::kU8) return 1;
  return dtype == Dtype::kF32 || dtype == Dtype::kI32 ? 4 : 2;
}
constexpr const char* DtypeName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return "f32";
    case Dtype::kBF16:
      return "bf16";
    case Dtype::kF16:
      return "f16";
    case Dtype::kI32:
      return "i32";
    case Dtype::kU8:
      return "u8";
  }
  return "unknown";
}

// The upper half of an f32. Trivial, so that arrays of it may lie in mapped files.
struct BF16 {
  uint16_t bits;
};

// The shape of a dense row-major tensor of up to four dimensions, wherever it lies. A rank-2 tensor
// may have rows further apart than its width: `row_stride`, in elements, is the distance between
// consecutive rows (all leading dimensions flattened).
struct TensorLayout {
  static constexpr int kMaxRank = 4;

  Dtype dtype = Dtype::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape = {0, 0, 0, 0};
  int64_t row_stride = 0;

  TensorLayout() = default;
  TensorLayout(Dtype dtype, std::initializer_list<int64_t> dims)
      : dtype(dtype), rank(static_cast<int>(dims.size())) {
    int i = 0;
    for (int64_t d : dims) shape[i++] = d;
    row_stride = rank == 0 ? 1 : shape[rank - 1];
  }

  int64_t dim(int i) const { return shape[i]; }
  // Elements in a row: the last dimension.
  int64_t width() const { return rank == 0 ? 1 : shape[rank - 1]; }
  // The product of all dimensions but the last.
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank; ++i) n *= shape[i];
    return n;
  }
  int64_t elements() const { return rows() * width(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * DtypeBytes(dtype); }
  size_t row_stride_bytes() const { return static_cast<size_t>(row_stride) * DtypeBytes(dtype); }
};

// A view of a tensor in host memory. Owns nothing; `data` need not be aligned to the element. For
// tensors in a device's memory there is another type: kernels/device_tensor.h.
struct TensorView : TensorLayout {
  void* data = nullptr;

  TensorView() = default;
  TensorView(void* data, Dtype dtype, std::initializer_list<int64_t> dims)
      : TensorLayout(dtype, dims), data(data) {}

  bool empty() const { return data == nullptr; }
  std::byte* row(int64_t i) const {
    return static_cast<std::byte*>(data) + i * static_cast<int64_t>(row_stride_bytes());
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // Rows [first, first + count) of a rank-2 view.
  TensorView slice_rows(int64_t first, int64_t count) const {
    TensorView v = *this;
    v.data = row(first);
    v.shape[0] = count;
    return v;
  }
};

// A tensor in host memory together with what keeps the memory alive: pages mapped from a file, or a
// copy. Where it is made up, bf16 with rows side by side, its values are not what lies there.
struct OwnedTensor {
  TensorView view;
  std::shared_ptr<const void> memory;
  std::optional<MadeUpTensor> made_up = std::nullopt;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TENSOR_H_
