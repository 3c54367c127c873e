#include "kernels/cuda/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>

#include "kernels/backend.h"
#include "tests/kernels/cuda/cuda_test.h"
#include "tests/kernels/oracle.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;

class CudaLinearTest : public CudaOpsTest {
 protected:
  // The CPU in block order.
  void CpuLinear(const TestTensor& x, const TestTensor& w, const TestTensor& out) {
    const auto prepared = *cpu_->PrepareLinear(w.lent(), w.format());
    cpu_->Linear({x.device(), *prepared, out.device()});
  }

  const std::unique_ptr<Backend> cpu_ = *CreateCpuBackend(1, Numerics::kPortable);
};

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaLinearTest, CudaOpsTest::AllDtypes(), CudaOpsTest::NameOf);

TEST_P(CudaLinearTest, GivesTheCpusBitsAtRaggedSizes) {
  for (const int64_t k : {8, 24, 40, 136}) {
    for (const int64_t rows : {1, 3, 16, 17}) {
      for (const int64_t n : {1, 15, 33}) {
        TestTensor x(act(), {rows, k}, 3), w(weight(), {n, k});
        x.Fill(1);
        w.Fill(2);
        for (const Dtype dtype : {act(), kF32}) {
          TestTensor want(dtype, {rows, n}, 2);
          CpuLinear(x, w, want);
          for (uint64_t seed = 0; seed < kSeeds; seed += k == 40 ? 1 : kSeeds) {
            TestTensor out(dtype, {rows, n}, 2);
            cuda::Linear(TestStream(seed), x.device(), w.device(), out.device());
            ExpectSameBits(out, want, seed);
          }
        }
      }
    }
  }
}

TEST_P(CudaLinearTest, AgreesWithTheOracle) {
  TestTensor x(act(), {3, 512}), w(weight(), {18, 512}), out(kF32, {3, 18});
  x.Fill(3);
  w.Fill(4);
  cuda::Linear(TestStream(1), x.device(), w.device(), out.device());
  const oracle::Sums want = oracle::Linear(x, w);
  for (int64_t i = 0; i < 3 * 18; ++i) {
    ASSERT_NEAR(out.at(i / 18, i % 18), want.value[i],
                oracle::BlockOrderError(512) * want.magnitude[i]);
  }
}

// Where magnitudes end: sums and products that are denormal, and that overflow.
TEST_P(CudaLinearTest, FlushesWhatIsDenormal) {
  for (const float scale : {0x1p-64f, 0x1p-62f, 0x1p64f}) {
    TestTensor x(act(), {5, 64}), w(weight(), {17, 64}), want(kF32, {5, 17}), out(kF32, {5, 17});
    x.Fill(5, scale);
    w.Fill(6, scale);
    CpuLinear(x, w, want);
    cuda::Linear(TestStream(2), x.device(), w.device(), out.device());
    for (int64_t i = 0; i < 5 * 17; ++i) {
      if (std::isnan(want.at(i / 17, i % 17))) {
        ASSERT_TRUE(std::isnan(out.at(i / 17, i % 17)));  // whose bits are the instruction's
      } else {
        ASSERT_EQ(out.at(i / 17, i % 17), want.at(i / 17, i % 17));
      }
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
