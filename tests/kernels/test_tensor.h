// Tensors for tests of kernels: owned, filled from a seed, of any alignment and row distance; and
// short ways to have them where the ops of the CPU backend want them.
#ifndef TANDEM_TESTS_KERNELS_TEST_TENSOR_H_
#define TANDEM_TESTS_KERNELS_TEST_TENSOR_H_

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "common/mode.h"
#include "common/tensor.h"
#include "kernels/backend.h"
#include "kernels/cpu/bf16.h"
#include "kernels/device_access.h"

namespace tandem::kernels {

class TestTensor {
 public:
  // `row_gap` elements lie between rows; the data begins `misalignment` bytes after an aligned one.
  TestTensor(Dtype dtype, std::initializer_list<int64_t> dims, int64_t row_gap = 0,
             size_t misalignment = 0)
      : view_(nullptr, dtype, dims) {
    view_.row_stride += row_gap;
    const size_t bytes = static_cast<size_t>(view_.rows() * view_.row_stride) * DtypeBytes(dtype);
    memory_.assign(bytes + misalignment, 0xEE);
    view_.data = memory_.data() + misalignment;
  }
  TestTensor(TestTensor&&) = default;
  TestTensor& operator=(TestTensor&&) = default;

  const TensorView& view() const { return view_; }
  // The same memory as the CPU's device memory.
  DeviceTensor device() const { return DeviceAccess::Tensor(view_.data, view_); }
  // For Backend::Prepare...; what is made of it must not outlive this.
  OwnedTensor lent() const { return {view_, nullptr}; }
  WeightFormat format() const { return DefaultWeightFormat(view_.dtype); }

  double at(int64_t row, int64_t i) const {
    return cpu::LoadElement(view_.row(row), view_.dtype, i);
  }
  void set(int64_t row, int64_t i, float value) {
    cpu::StoreElement(value, view_.row(row), view_.dtype, i);
  }

  // Normally distributed values with standard deviation `scale`.
  TestTensor& Fill(uint64_t seed, float scale = 1.0f) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t row = 0; row < view_.rows(); ++row) {
      for (int64_t i = 0; i < view_.width(); ++i) set(row, i, normal(random));
    }
    return *this;
  }

  // The bytes of one row, and of all rows without what lies between them.
  std::vector<std::byte> RowBytes(int64_t row) const {
    const std::byte* begin = view_.row(row);
    return {begin, begin + view_.width() * DtypeBytes(view_.dtype)};
  }
  std::vector<std::byte> Bytes() const {
    std::vector<std::byte> all;
    for (int64_t row = 0; row < view_.rows(); ++row) {
      const std::vector<std::byte> bytes = RowBytes(row);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

 private:
  std::vector<unsigned char> memory_;
  TensorView view_;
};

// `values`, which must outlive it, as a vector in the CPU's device memory.
template <typename T>
DeviceTensor DeviceVector(const std::vector<T>& values) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, int32_t> ||
                std::is_same_v<T, uint8_t>);
  constexpr Dtype kDtype = std::is_same_v<T, float>     ? Dtype::kF32
                           : std::is_same_v<T, int32_t> ? Dtype::kI32
                                                        : Dtype::kU8;
  return DeviceAccess::Tensor(const_cast<T*>(values.data()),
                              TensorLayout(kDtype, {static_cast<int64_t>(values.size())}));
}
// One struct per row, as bytes.
template <typename T>
DeviceTensor DeviceStructs(const std::vector<T>& rows) {
  return DeviceAccess::Tensor(
      const_cast<T*>(rows.data()),
      TensorLayout(Dtype::kU8, {static_cast<int64_t>(rows.size()), sizeof(T)}));
}

inline std::unique_ptr<LinearWeight> PrepareLinear(Backend& backend, const TestTensor& tensor,
                                                   WeightFormat format) {
  return *backend.PrepareLinear(tensor.lent(), format);
}
inline std::unique_ptr<LinearWeight> PrepareLinear(Backend& backend, const TestTensor& tensor) {
  return PrepareLinear(backend, tensor, tensor.format());
}
inline std::unique_ptr<EmbeddingWeight> PrepareEmbedding(Backend& backend,
                                                         const TestTensor& tensor) {
  return *backend.PrepareEmbedding(tensor.lent(), tensor.format());
}
inline std::unique_ptr<NormWeight> PrepareNorm(Backend& backend, const TestTensor& tensor) {
  return *backend.PrepareNorm(tensor.lent(), tensor.format());
}

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_TEST_TENSOR_H_
