#include "kernels/ops/dense.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/oracle.h"
#include "tests/kernels/targets.h"
#include "tests/kernels/test_backend.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;
constexpr Dtype kBF16 = Dtype::kBF16;

// Parameters: dtype of activations, dtype of weights.
class DenseTest : public testing::TestWithParam<std::tuple<Dtype, Dtype>> {
 protected:
  Dtype act() const { return std::get<0>(GetParam()); }
  Dtype weight() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Dtypes, DenseTest,
                         testing::Combine(testing::Values(kF32, kBF16),
                                          testing::Values(kF32, kBF16)),
                         [](const auto& info) {
                           return std::string(DtypeName(std::get<0>(info.param))) + "_" +
                                  DtypeName(std::get<1>(info.param));
                         });

void ExpectLinear(const TestTensor& x, const TestTensor& w, const TestTensor& out) {
  const oracle::Sums want = oracle::Linear(x, w);
  const int64_t outputs = w.view().rows();
  for (int64_t i = 0; i < out.view().rows(); ++i) {
    for (int64_t n = 0; n < outputs; ++n) {
      const double value = want.value[i * outputs + n];
      const double sum_error =
          oracle::BlockOrderError(x.view().width()) * want.magnitude[i * outputs + n];
      const double rounding = out.view().dtype == kF32 ? 0.0 : 1.01 * oracle::Epsilon(kBF16);
      ASSERT_NEAR(out.at(i, n), value, sum_error + rounding * (std::abs(value) + sum_error))
          << "row " << i << " output " << n;
    }
  }
}

TEST_P(DenseTest, LinearAgreesWithTheOracleAtRaggedSizes) {
  auto backend = MakeTestBackend();
  for (int64_t k : {8, 24, 40, 136, 2048}) {
    for (int64_t rows : {1, 2, 3, 4, 5, 9, 65}) {
      for (int64_t n : {1, 3, 17, 640}) {
        if (rows * n * k > 4000000) continue;
        const TestTensor x = std::move(TestTensor(act(), {rows, k}).Fill(k + rows));
        const TestTensor w = std::move(TestTensor(weight(), {n, k}).Fill(n, 0.05f));
        const auto weight = PrepareLinear(*backend, w);
        TestTensor out(act(), {rows, n});
        backend->Linear({x.device(), *weight, out.device()});
        ExpectLinear(x, w, out);
        TestTensor unrounded(kF32, {rows, n});
        backend->Linear({x.device(), *weight, unrounded.device()});
        ExpectLinear(x, w, unrounded);
      }
    }
  }
}

TEST_P(DenseTest, LinearTakesUnalignedWeightsAndStridedRows) {
  auto backend = MakeTestBackend();
  const TestTensor x = std::move(TestTensor(act(), {5, 40}, 24).Fill(1));
  const TestTensor w = std::move(TestTensor(weight(), {17, 40}, 0, 1).Fill(2));
  TestTensor out(act(), {5, 17}, 3);
  backend->Linear({x.device(), *PrepareLinear(*backend, w), out.device()});
  ExpectLinear(x, w, out);
  const auto* gap =
      reinterpret_cast<const unsigned char*>(out.view().row(0)) + 17 * DtypeBytes(act());
  EXPECT_EQ(*gap, 0xEE) << "wrote between the rows";
}

TEST_P(DenseTest, ALinearRowDoesNotDependOnOtherRowsThreadsOrTarget) {
  constexpr int64_t kRows = 65, kK = 136, kOutputs = 640;
  const TestTensor x = std::move(TestTensor(act(), {kRows, kK}).Fill(3));
  const TestTensor w = std::move(TestTensor(weight(), {kOutputs, kK}).Fill(4));
  TestTensor all(act(), {kRows, kOutputs});
  auto alone = MakeTestBackend(1);
  alone->Linear({x.device(), *PrepareLinear(*alone, w), all.device()});
  for (int64_t target : TargetsOfBackend()) {
    ScopedTarget scoped(target);
    for (int num_threads : {1, 2, 3}) {
      auto backend = MakeTestBackend(num_threads);
      const auto weight = PrepareLinear(*backend, w);
      for (int64_t count : {1, 2, 7, 65}) {
        TestTensor out(act(), {count, kOutputs});
        for (int64_t first = 0; first + count <= kRows; first += 13) {
          backend->Linear({x.device().slice_rows(first, count), *weight, out.device()});
          for (int64_t i = 0; i < count; ++i) {
            ASSERT_EQ(out.RowBytes(i), all.RowBytes(first + i)) << hwy::TargetName(target);
          }
        }
      }
    }
  }
}

TEST_P(DenseTest, EmbedCopiesRows) {
  const TestTensor table = std::move(TestTensor(weight(), {10, 24}, 0, 1).Fill(7));
  const std::vector<int32_t> ids = {9, 0, 3, 3};
  TestTensor out(act(), {4, 24});
  auto backend = MakeTestBackend();
  backend->Embed({*PrepareEmbedding(*backend, table), DeviceVector(ids), out.device()});
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t k = 0; k < 24; ++k) {
      const auto value = static_cast<float>(table.at(ids[i], k));
      EXPECT_EQ(out.at(i, k), act() == kF32 ? value : cpu::WidenBF16(cpu::RoundToBF16(value)));
    }
  }
}

TEST(GatherRowsTest, CopiesRowsOfAnyDtypeBitForBit) {
  const std::vector<int32_t> rows = {4, 0, 4, 2, 1, 1};
  for (Dtype dtype : {kF32, kBF16, Dtype::kU8}) {
    TestTensor x(dtype, {5, 41}, 3), out(dtype, {6, 41}, 2);
    for (size_t i = 0; i < 5 * x.view().row_stride_bytes(); ++i) {
      x.view().row(0)[i] = static_cast<std::byte>(i % 251);
    }
    MakeTestBackend()->GatherRows({x.device(), DeviceVector(rows), out.device()});
    for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(out.RowBytes(i), x.RowBytes(rows[i]));
    const std::byte* gap = out.view().row(0) + out.RowBytes(0).size();
    EXPECT_EQ(*gap, std::byte{0xEE}) << "wrote between the rows";
  }
}

TEST_P(DenseTest, RmsNormAgreesWithTheOracleAndMayBeInPlace) {
  auto backend = MakeTestBackend();
  for (int64_t width : {8, 24, 40, 136, 512, 2048}) {
    TestTensor x(act(), {5, width}, 8);
    x.Fill(width, 3.0f);
    const TestTensor w = std::move(TestTensor(weight(), {width}).Fill(8));
    const auto weight = PrepareNorm(*backend, w);
    TestTensor out(act(), {5, width});
    backend->RmsNorm({x.device(), *weight, out.device(), 1e-6f});
    const std::vector<double> want = oracle::RmsNorm(x, w, 1e-6);
    // The root halves the error of the sum; then a root, a division and a product; for bf16 two
    // roundings more.
    const double f32_error = oracle::LaneOrderError(width) / 2 + 5 * oracle::Epsilon(kF32);
    const double relative = f32_error + (act() == kF32 ? 0.0 : 2.02 * oracle::Epsilon(kBF16));
    for (int64_t i = 0; i < 5; ++i) {
      for (int64_t k = 0; k < width; ++k) {
        const double value = want[i * width + k];
        ASSERT_NEAR(out.at(i, k), value, relative * std::abs(value) + 1e-30);
      }
    }
    backend->RmsNorm({x.device(), *weight, x.device(), 1e-6f});
    EXPECT_EQ(x.Bytes(), out.Bytes());
  }
}

TEST_P(DenseTest, SiluMulAgreesWithTheOracleAndMayBeInPlace) {
  auto backend = MakeTestBackend();
  TestTensor gate(act(), {3, 41}, 7);
  gate.Fill(9, 8.0f);
  const TestTensor up = std::move(TestTensor(act(), {3, 41}).Fill(10));
  TestTensor out(act(), {3, 41});
  backend->SiluMul({gate.device(), up.device(), out.device()});
  // exp to 2^-22, then an addition, a division and a product; for bf16 one rounding more.
  const double relative =
      7 * oracle::Epsilon(kF32) + (act() == kF32 ? 0.0 : 1.01 * oracle::Epsilon(kBF16));
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t k = 0; k < 41; ++k) {
      const double value = oracle::SiluMul(gate.at(i, k), up.at(i, k));
      ASSERT_NEAR(out.at(i, k), value, relative * std::abs(value) + 1e-30);
    }
  }
  backend->SiluMul({gate.device(), up.device(), gate.device()});
  EXPECT_EQ(gate.Bytes(), out.Bytes());
}

// The tolerances above would not see a rounding that is left out.
TEST(RoundingTest, ANormedValueIsRoundedBeforeItIsWeighted) {
  auto backend = MakeTestBackend();
  const auto bf16 = [](float value) { return cpu::WidenBF16(cpu::RoundToBF16(value)); };
  // The squares of small integers add up exactly, in any order.
  constexpr int64_t kWidth = 41;
  TestTensor x(kBF16, {1, kWidth}), w(kBF16, {kWidth}), out(kBF16, {1, kWidth});
  float squares = 0;
  for (int64_t k = 0; k < kWidth; ++k) {
    const auto value = static_cast<float>(k % 13 - 6);
    x.set(0, k, value);
    w.set(0, k, 1.0f + static_cast<float>(k) / 128);
    squares += value * value;
  }
  backend->RmsNorm({x.device(), *PrepareNorm(*backend, w), out.device(), 1e-6f});
  const float root = std::sqrt(squares / kWidth + 1e-6f);
  int differs = 0;
  for (int64_t k = 0; k < kWidth; ++k) {
    const auto weight = static_cast<float>(w.at(0, k));
    const float normed = static_cast<float>(x.at(0, k)) / root;
    EXPECT_EQ(out.at(0, k), bf16(weight * bf16(normed))) << k;
    differs += bf16(weight * normed) != bf16(weight * bf16(normed)) ? 1 : 0;
  }
  EXPECT_GT(differs, 5);
}

TEST(RoundingTest, AnActivatedGateIsNotRoundedBeforeItIsMultiplied) {
  const auto bf16 = [](double value) {
    return cpu::WidenBF16(cpu::RoundToBF16(static_cast<float>(value)));
  };
  constexpr int64_t kWidth = 41;
  TestTensor gate(kBF16, {1, kWidth}), up(kBF16, {1, kWidth}), out(kBF16, {1, kWidth});
  gate.Fill(21, 4.0f);
  up.Fill(22, 4.0f);
  MakeTestBackend()->SiluMul({gate.device(), up.device(), out.device()});
  int differs = 0;
  for (int64_t k = 0; k < kWidth; ++k) {
    const double silu = oracle::SiluMul(gate.at(0, k), 1.0);
    const double product = silu * up.at(0, k);
    const float lower = bf16(product * (1 - 1e-6)), higher = bf16(product * (1 + 1e-6));
    if (lower != higher) continue;  // too near to a tie for f32 to be sure of it
    EXPECT_EQ(out.at(0, k), lower) << k;
    differs += lower != bf16(bf16(silu) * up.at(0, k)) ? 1 : 0;
  }
  EXPECT_GT(differs, 5);
}

TEST_P(DenseTest, SiluMulIsFiniteForLargeGates) {
  TestTensor gate(act(), {1, 4}), up(act(), {1, 4});
  const float gates[] = {-1e30f, 1e30f, -100.0f, 100.0f};
  for (int i = 0; i < 4; ++i) {
    gate.set(0, i, gates[i]);
    up.set(0, i, 1.0f);
  }
  TestTensor out(act(), {1, 4});
  MakeTestBackend()->SiluMul({gate.device(), up.device(), out.device()});
  EXPECT_EQ(out.at(0, 0), 0.0);
  EXPECT_EQ(out.at(0, 1), gate.at(0, 1));
  EXPECT_NEAR(out.at(0, 2), 0.0, 1e-35);
  EXPECT_EQ(out.at(0, 3), 100.0);
}

TEST_P(DenseTest, AddRoundsTheExactSum) {
  TestTensor a(act(), {2, 21}, 3);
  a.Fill(11);
  const TestTensor b = std::move(TestTensor(act(), {2, 21}).Fill(12));
  TestTensor out(act(), {2, 21});
  MakeTestBackend()->Add({a.device(), b.device(), out.device()});
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t k = 0; k < 21; ++k) {
      const auto sum = static_cast<float>(a.at(i, k) + b.at(i, k));
      EXPECT_EQ(out.at(i, k), act() == kF32 ? sum : cpu::WidenBF16(cpu::RoundToBF16(sum)));
    }
  }
  MakeTestBackend()->Add({a.device(), b.device(), a.device()});
  EXPECT_EQ(a.Bytes(), out.Bytes());
}

TEST_P(DenseTest, RowFunctionsHaveTheSameBitsOnEveryTarget) {
  const TestTensor x = std::move(TestTensor(act(), {3, 73}).Fill(13, 4.0f));
  const TestTensor y = std::move(TestTensor(act(), {3, 73}).Fill(14));
  const TestTensor w = std::move(TestTensor(weight(), {73}).Fill(15));
  std::vector<std::vector<std::byte>> first;
  for (int64_t target : TargetsOfBackend()) {
    ScopedTarget scoped(target);
    auto backend = MakeTestBackend();
    TestTensor normed(act(), {3, 73}), activated(act(), {3, 73}), sum(act(), {3, 73});
    backend->RmsNorm({x.device(), *PrepareNorm(*backend, w), normed.device(), 1e-6f});
    backend->SiluMul({x.device(), y.device(), activated.device()});
    backend->Add({x.device(), y.device(), sum.device()});
    const std::vector<std::vector<std::byte>> bytes = {normed.Bytes(), activated.Bytes(),
                                                       sum.Bytes()};
    if (first.empty()) first = bytes;
    EXPECT_EQ(bytes, first) << hwy::TargetName(target);
  }
}

}  // namespace
}  // namespace tandem::kernels
