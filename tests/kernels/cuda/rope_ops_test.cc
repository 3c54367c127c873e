#include "kernels/cuda/rope_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/pages.h"
#include "kernels/backend.h"
#include "tests/kernels/cuda/cuda_test.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;
constexpr float kFactor = 1.2f;

TestTensor Frequencies(int64_t half) {
  TestTensor frequencies(kF32, {half});
  for (int64_t f = 0; f < half; ++f) {
    const double exponent = -static_cast<double>(f) / static_cast<double>(half);
    frequencies.set(0, f, static_cast<float>(std::pow(1e4, exponent)));
  }
  return frequencies;
}

class CudaRopeOpsTest : public CudaOpsTest {
 protected:
  TestTensor Table(const TestTensor& positions, int64_t dr) {
    TestTensor table(kF32, {positions.view().elements(), dr});
    const TestTensor frequencies = Frequencies(dr / 2);
    cpu_->RopeTable({positions.device(), frequencies.device(), kFactor, table.device()});
    return table;
  }

  const std::unique_ptr<Backend> cpu_ = *CreateCpuBackend(1);
};

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaRopeOpsTest, CudaOpsTest::AllDtypes(), CudaOpsTest::NameOf);

TEST(CudaRopeTableTest, GivesTheCpusBits) {
  const auto cpu = MakeCpuBackend();
  std::vector<int32_t> positions = {0, 1, 2, 63, 64, 4095, 163839};
  for (int32_t i = 0; i < 100; ++i) positions.push_back(i * 1637);
  const TestTensor rows = Ints(positions);
  for (const int64_t half : {1, 4, 32}) {
    const TestTensor frequencies = Frequencies(half);
    TestTensor want(kF32, {rows.view().elements(), 2 * half});
    cpu->RopeTable({rows.device(), frequencies.device(), kFactor, want.device()});
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      TestTensor out(kF32, {rows.view().elements(), 2 * half});
      cuda::RopeTable(TestStream(seed), rows.device(), frequencies.device(), kFactor, out.device());
      ExpectSameBits(out, want, seed);
    }
  }
}

TEST_P(CudaRopeOpsTest, RopeGivesTheCpusBits) {
  for (const int64_t dr : {2, 8, 64}) {
    for (const int64_t nope : {0, 3, 128}) {
      const TestTensor table = Table(Ints({0, 5, 17, 300, 9001}), dr);
      const auto rotated = [&] {
        TestTensor x(act(), {5, 3, nope + dr}, 2);
        x.Fill(1);
        return x;
      };
      const TestTensor want = rotated();
      cpu_->Rope({want.device(), table.device()});
      for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        const TestTensor x = rotated();
        cuda::Rope(TestStream(seed), x.device(), table.device());
        ExpectSameBits(x, want, seed);
      }
    }
  }
}

TEST_P(CudaRopeOpsTest, LatentAppendGivesTheCpusBits) {
  for (const int64_t latent : {8, 24, 512}) {
    for (const int64_t dr : {2, 64}) {
      const TestTensor table = Table(Ints({3, 64, 65, 700}), dr);
      const TestTensor page_ids = Ints({2, 0, 0, 1}), slots = Ints({3, 0, 1, kPageTokens - 1});
      TestTensor kv_a(act(), {4, latent + dr}, 2), factors(weight(), {latent});
      kv_a.Fill(2, 3.0f);
      factors.Fill(3);
      const auto norm = *cpu_->PrepareNorm(factors.lent(), factors.format());
      TestTensor want(act(), {3, kPageTokens, latent + dr});
      cpu_->LatentAppend({kv_a.device(), *norm, table.device(), want.device(), page_ids.device(),
                          slots.device(), 1e-6f});
      for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        TestTensor pages(act(), {3, kPageTokens, latent + dr});
        cuda::LatentAppend(TestStream(seed),
                           {kv_a.device(), factors.device(), table.device(), pages.device(),
                            page_ids.device(), slots.device()},
                           1e-6f);
        ExpectSameBits(pages, want, seed);  // what no row went to is as it was
      }
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
