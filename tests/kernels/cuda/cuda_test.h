// What the tests of CUDA kernels share.
#ifndef TANDEM_TESTS_KERNELS_CUDA_CUDA_TEST_H_
#define TANDEM_TESTS_KERNELS_CUDA_CUDA_TEST_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/stream.h"
#include "tests/kernels/synchronous_backend.h"
#include "tests/kernels/test_tensor.h"

#if !defined(TANDEM_CUDA_EMULATION)
#include "kernels/cuda/require.h"
#endif

namespace tandem::kernels {

constexpr size_t kTestMemoryBytes = size_t{256} << 20;  // a test may have several backends
constexpr uint64_t kSeeds = 8;                          // orders of threads that each op runs in

inline TestTensor Ints(std::initializer_list<int64_t> dims, const std::vector<int32_t>& values) {
  TestTensor tensor(Dtype::kI32, dims);
  std::copy(values.begin(), values.end(), static_cast<int32_t*>(tensor.view().data));
  return tensor;
}
inline TestTensor Ints(const std::vector<int32_t>& values) {
  return Ints({static_cast<int64_t>(values.size())}, values);
}

inline void ExpectSameBits(const TestTensor& got, const TestTensor& want, uint64_t seed) {
  for (int64_t row = 0; row < got.view().rows(); ++row) {
    ASSERT_EQ(got.RowBytes(row), want.RowBytes(row)) << "row " << row << ", seed " << seed;
  }
}

// The stream of one call, as a temporary: the call's work is done at the end of the full
// expression. On the emulation threads take turns in an order drawn from `seed`; a GPU has orders
// of its own.
class TestStream {
 public:
#if defined(TANDEM_CUDA_EMULATION)
  explicit TestStream(uint64_t seed) : stream_{seed} {}
#else
  explicit TestStream(uint64_t) {}
  ~TestStream() { cuda::Require(cudaDeviceSynchronize(), "a kernel"); }
#endif
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator cuda::Stream() const { return stream_; }  // NOLINT: stands for it in a call

 private:
  cuda::Stream stream_{};
};

// On the emulation, in orders of threads that begin with `seed`; ops are done when they return.
inline std::unique_ptr<Backend> MakeCudaBackend(uint64_t seed,
                                                Numerics numerics = Numerics::kPortable) {
  setenv("TANDEM_CUDA_SEED", std::to_string(seed).c_str(), /*replace=*/1);
  return std::make_unique<SynchronousBackend>(*CreateCudaBackend({kTestMemoryBytes, numerics}));
}
// The CPU in the order of additions that the two have in common.
inline std::unique_ptr<Backend> MakeCpuBackend() {
  return *CreateCpuBackend(1, Numerics::kPortable);
}

// Parameters: dtype of activations, dtype of weights.
class CudaOpsTest : public testing::TestWithParam<std::tuple<Dtype, Dtype>> {
 public:
  static auto AllDtypes() {
    return testing::Combine(testing::Values(Dtype::kF32, Dtype::kBF16),
                            testing::Values(Dtype::kF32, Dtype::kBF16));
  }
  static std::string NameOf(const testing::TestParamInfo<std::tuple<Dtype, Dtype>>& info) {
    return std::string(DtypeName(std::get<0>(info.param))) + "_" +
           DtypeName(std::get<1>(info.param));
  }

 protected:
  Dtype act() const { return std::get<0>(GetParam()); }
  Dtype weight() const { return std::get<1>(GetParam()); }
};

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_CUDA_CUDA_TEST_H_
