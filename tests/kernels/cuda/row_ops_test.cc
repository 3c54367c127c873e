#include "kernels/cuda/row_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/cuda/cuda_test.h"
#include "tests/kernels/oracle.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;
constexpr int64_t kWidths[] = {1, 15, 16, 17, 512};

class CudaRowOpsTest : public CudaOpsTest {
 protected:
  const std::unique_ptr<Backend> cpu_ = *CreateCpuBackend(1);
};

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaRowOpsTest, CudaOpsTest::AllDtypes(), CudaOpsTest::NameOf);

TestTensor Indices(int64_t count, int64_t end) {
  std::vector<int32_t> indices;
  for (int64_t i = 0; i < count; ++i) indices.push_back(static_cast<int32_t>((7 * i + 3) % end));
  return Ints(indices);
}

TEST_P(CudaRowOpsTest, RmsNormGivesTheCpusBits) {
  for (const int64_t width : kWidths) {
    for (const int64_t rows : {1, 2, 17, 33}) {
      TestTensor x(act(), {rows, width}, 3), factors(weight(), {width});
      x.Fill(1, 3.0f);
      factors.Fill(2);
      const auto norm = *cpu_->PrepareNorm(factors.lent(), factors.format());
      TestTensor want(act(), {rows, width}, 5);
      cpu_->RmsNorm({x.device(), *norm, want.device(), 1e-6f});
      const std::vector<double> oracle = oracle::RmsNorm(x, factors, 1e-6);
      for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        TestTensor out(act(), {rows, width}, 5);
        cuda::RmsNorm(TestStream(seed), x.device(), factors.device(), 1e-6f, out.device());
        ExpectSameBits(out, want, seed);
        for (int64_t i = 0; i < rows * width; ++i) {
          ASSERT_NEAR(out.at(i / width, i % width), oracle[i],
                      2.5 * (oracle::Epsilon(act()) + 1e-6) * std::abs(oracle[i]));
        }
      }
      cuda::RmsNorm(TestStream(1), x.device(), factors.device(), 1e-6f, x.device());  // in place
      ExpectSameBits(x, want, 1);
    }
  }
}

TEST_P(CudaRowOpsTest, EmbedGivesTheCpusBits) {
  for (const int64_t width : kWidths) {
    TestTensor table(weight(), {11, width});
    table.Fill(3);
    const auto prepared = *cpu_->PrepareEmbedding(table.lent(), table.format());
    const TestTensor ids = Indices(9, 11);
    TestTensor want(act(), {9, width}, 2);
    cpu_->Embed({*prepared, ids.device(), want.device()});
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      TestTensor out(act(), {9, width}, 2);
      cuda::Embed(TestStream(seed), table.device(), ids.device(), out.device());
      ExpectSameBits(out, want, seed);
    }
  }
}

TEST_P(CudaRowOpsTest, GatherAndAddGiveTheCpusBits) {
  for (const int64_t width : kWidths) {
    TestTensor x(act(), {13, width}, 1), b(act(), {9, width});
    x.Fill(4);
    b.Fill(5);
    const TestTensor rows = Indices(9, 13);
    TestTensor gathered(act(), {9, width}), sums(act(), {9, width}, 3);
    cpu_->GatherRows({x.device(), rows.device(), gathered.device()});
    cpu_->Add({gathered.device(), b.device(), sums.device()});
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      TestTensor out(act(), {9, width});
      cuda::GatherRows(TestStream(seed), x.device(), rows.device(), out.device());
      ExpectSameBits(out, gathered, seed);
      cuda::Add(TestStream(seed), out.device(), b.device(), out.device());  // in place
      ExpectSameBits(out, sums, seed);
    }
  }
}

TEST_P(CudaRowOpsTest, CombineGivesTheCpusBits) {
  const std::vector<int32_t> ends = {0, 6, 6, 7, 13, 20};  // a row of none, one of one
  const auto rows = static_cast<int64_t>(ends.size()) - 1;
  const TestTensor offsets = Ints(ends);
  TestTensor weights(kF32, {20});
  weights.Fill(8);
  for (const int64_t width : kWidths) {
    TestTensor expert_rows(act(), {20, width}, 1);
    expert_rows.Fill(9);
    TestTensor want(act(), {rows, width}, 4);
    cpu_->Combine({expert_rows.device(), offsets.device(), weights.device(), want.device()});
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      TestTensor out(act(), {rows, width}, 4);
      cuda::Combine(TestStream(seed), expert_rows.device(), offsets.device(), weights.device(),
                    out.device());
      ExpectSameBits(out, want, seed);
    }
  }
}

TEST_P(CudaRowOpsTest, SiluMulGivesTheCpusBits) {
  for (const int64_t width : kWidths) {
    TestTensor gate(act(), {5, width}, 1), up(act(), {5, width});
    gate.Fill(6, 8.0f);
    up.Fill(7);
    TestTensor want(act(), {5, width}, 3);
    cpu_->SiluMul({gate.device(), up.device(), want.device()});
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      TestTensor out(act(), {5, width}, 3);
      cuda::SiluMul(TestStream(seed), gate.device(), up.device(), out.device());
      ExpectSameBits(out, want, seed);
    }
  }
}

TEST_P(CudaRowOpsTest, NoRowsAreNoLaunch) {
  TestTensor x(act(), {0, 16}), factors(weight(), {16});
  cuda::RmsNorm(TestStream(1), x.device(), factors.device(), 1e-6f, x.device());
  cuda::Add(TestStream(1), x.device(), x.device(), x.device());
}

}  // namespace
}  // namespace tandem::kernels
