// Tensors for tests of kernels: owned, filled from a seed, of any alignment and row distance.
#ifndef TANDEM_TESTS_KERNELS_TEST_TENSOR_H_
#define TANDEM_TESTS_KERNELS_TEST_TENSOR_H_

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "common/tensor.h"
#include "kernels/cpu/bf16.h"

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

  const TensorView& view() const { return view_; }

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

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_TEST_TENSOR_H_
