// Products in the float formats: what is packed, that every kernel of an order finds the same sums,
// to the bit, and that an op's result is what the contract says.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/float_kernels.h"
#include "kernels/cpu/float_rows.h"
#include "kernels/cpu/float_weight.h"
#include "kernels/cpu/flushed.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels::cpu {
namespace {

constexpr Dtype kF32 = Dtype::kF32;
constexpr Dtype kBF16 = Dtype::kBF16;
constexpr float kSmallest = std::numeric_limits<float>::min();

FloatWeight Packed(const TestTensor& source) {
  const FloatLayout layout(source.view().dtype, source.view().dim(0), source.view().dim(1));
  const std::shared_ptr<std::byte> memory(
      static_cast<std::byte*>(std::aligned_alloc(64, layout.bytes())), std::free);
  std::fill_n(memory.get(), layout.bytes(), std::byte{0x77});
  for (int64_t i = 0; i < layout.panels; ++i) PackPanel(source.view(), layout, i, memory.get());
  return {layout, FloatOrder::kBlock, memory};
}

// Values of every magnitude, many of them near the smallest that are not denormal, or denormal.
void FillWidely(TestTensor& tensor, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> mantissa(-2.0f, 2.0f);
  for (int64_t row = 0; row < tensor.view().rows(); ++row) {
    const int center = row % 3 == 0 ? 0 : -62;  // a product of two is near 2^-124
    std::uniform_int_distribution<int> exponent(center - 6, center + 6);
    std::uniform_int_distribution<int> tiny(0, 15);
    for (int64_t k = 0; k < tensor.view().width(); ++k) {
      const float value = std::ldexp(mantissa(random), exponent(random));
      tensor.set(row, k, tiny(random) == 0 ? value * 0x1p-66f : value);
    }
  }
}

// The sum of row i of x by row n of w as kernels/ops/dense.h has it.
float SumInOrder(FloatOrder order, const TestTensor& x, int64_t i, const TestTensor& w, int64_t n) {
  const auto fma = [&](int64_t k, float sum) {
    if (k >= x.view().width()) return FlushedFma(0.0f, 0.0f, sum);
    return FlushedFma(static_cast<float>(x.at(i, k)), static_cast<float>(w.at(n, k)), sum);
  };
  float total = 0.0f;
  for (int64_t first = 0; first < x.view().width(); first += 32) {
    float even = 0.0f, odd = 0.0f;
    for (int64_t k = first; k < first + 32; k += 2) {
      if (order == FloatOrder::kBlock) {
        even = fma(k, even);
        odd = fma(k + 1, odd);
      } else {
        even = fma(k, fma(k + 1, even));
      }
    }
    total = FlushedAdd(total, order == FloatOrder::kBlock ? FlushedAdd(even, odd) : even);
  }
  return total;
}

// Every kernel of this machine, and the emulated ones.
std::vector<FloatKernel> AllKernels() {
  std::vector<FloatKernel> kernels = FloatKernels();
  for (const FloatKernel& kernel : FloatKernels(/*emulated=*/true)) kernels.push_back(kernel);
  return kernels;
}

class ScopedKernels {
 public:
  explicit ScopedKernels(std::vector<FloatKernel> kernels)
      : before_(ExchangeFloatKernels(std::move(kernels))) {}
  ~ScopedKernels() { ExchangeFloatKernels(before_); }
  ScopedKernels(const ScopedKernels&) = delete;
  ScopedKernels& operator=(const ScopedKernels&) = delete;

 private:
  const std::vector<FloatKernel> before_;
};

std::vector<uint32_t> BitsOf(const float* values, int64_t count) {
  std::vector<uint32_t> bits(count);
  for (int64_t i = 0; i < count; ++i) {
    bits[i] = std::isnan(values[i]) ? 0x7FC00000 : std::bit_cast<uint32_t>(values[i]);
  }
  return bits;
}

TEST(FlushedTest, DenormalNumbersAreZerosOfTheirSign) {
  EXPECT_EQ(Flushed(kSmallest), kSmallest);
  EXPECT_EQ(Flushed(-kSmallest / 2), 0.0f);
  EXPECT_TRUE(std::signbit(Flushed(-kSmallest / 2)));
  EXPECT_EQ(FlushedAdd(kSmallest * 1.5f, -kSmallest), 0.0f);
  EXPECT_EQ(FlushedFma(kSmallest / 2, 0x1p100f, 1.0f), 1.0f);
  EXPECT_EQ(FlushedFma(kSmallest, 0.5f, 0.0f), 0.0f);
  EXPECT_EQ(FlushedFma(kSmallest, 0.5f, kSmallest), kSmallest * 1.5f);
  EXPECT_TRUE(std::isinf(FlushedFma(0x1p127f, 2.0f, 0.0f)));
  EXPECT_TRUE(std::isnan(FlushedFma(std::numeric_limits<float>::quiet_NaN(), 0.0f, 0.0f)));
}

TEST(FlushedTest, WhatRoundsToTheSmallestNumberOnlyForWantOfBitsIsZero) {
  // (1 - 2^-24) 2^-126 has bits enough, (1 - 2^-24) (1 + 2^-25) 2^-126 is just below 2^-126: both
  // would be 2^-126 if rounded as denormal numbers, and the second one is it.
  EXPECT_EQ(FlushedFma(1.0f - 0x1p-24f, kSmallest, 0.0f), 0.0f);
  EXPECT_EQ(FlushedFma(1.0f - 0x1p-23f, kSmallest * (1.0f + 0x1p-23f), 0.0f), kSmallest);
  EXPECT_EQ(FlushedFma(1.0f - 0x1p-24f, -kSmallest, 0.0f), 0.0f);
}

TEST(FloatWeightTest, PanelsHoldEveryValueWhereTheLayoutSaysAndZerosElsewhere) {
  for (const Dtype dtype : {kF32, kBF16}) {
    TestTensor source(dtype, {70, 40}, 0, /*misalignment=*/1);
    source.Fill(1);
    const FloatWeight weight = Packed(source);
    ASSERT_EQ(weight.layout.bytes(), 96 * 64 * static_cast<int64_t>(DtypeBytes(dtype)));
    for (int64_t n = 0; n < 96; ++n) {
      for (int64_t k = 0; k < 64; ++k) {
        const std::byte* const block = weight.panel(n / 32) + k / 32 * weight.layout.block_bytes();
        const int64_t in_block = k % 32;
        const int64_t at =
            dtype == kF32 ? in_block * 32 + n % 32 : in_block / 2 * 64 + n % 32 * 2 + in_block % 2;
        const double want = n < 70 && k < 40 ? source.at(n, k) : 0.0;
        ASSERT_EQ(LoadElement(block, dtype, at), want) << n << " " << k;
      }
    }
  }
}

TEST(FloatKernelsTest, EveryKernelOfAnOrderFindsTheSameBits) {
  constexpr int64_t kOutputs = 70, kRows = 50, kFirst = 3;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const int64_t inputs : {8, 40, 64, 296, 520}) {
    for (const Dtype weights : {kF32, kBF16}) {
      TestTensor source(weights, {kOutputs, inputs}), values(kBF16, {kFirst + kRows, inputs});
      FillWidely(source, inputs);
      FillWidely(values, inputs + 1);
      source.set(5, 7, infinity);
      values.set(kFirst + 2, 7, 0.0f);  // a NaN
      values.set(kFirst + 4, 3, -infinity);
      const FloatWeight weight = Packed(source);
      alignas(64) static float sums[64 * kPanelOutputs];
      for (const FloatKernel& kernel : AllKernels()) {
        if (kernel.rows_dtype == kBF16 && weights == kF32) continue;
        FloatRows x;
        x.Resize(kernel.rows_dtype, kFirst + kRows, inputs);
        for (int64_t i = 0; i < kFirst + kRows; ++i) x.Set(i, values.view().row(i), kBF16);
        for (int64_t panel = 0; panel < weight.layout.panels; ++panel) {
          std::vector<float> want(kRows * kPanelOutputs, 0.0f);
          for (int64_t r = 0; r < kRows; ++r) {
            for (int64_t n = panel * 32; n < std::min(kOutputs, panel * 32 + 32); ++n) {
              want[r * kPanelOutputs + n % 32] =
                  SumInOrder(kernel.order, values, kFirst + r, source, n);
            }
          }
          for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 32, 33, 50}) {
            kernel.run({weights, weight.panel(panel), &x, kFirst, rows, sums});
            const int64_t outputs = std::min<int64_t>(32, kOutputs - panel * 32);
            for (int64_t r = 0; r < rows; ++r) {
              ASSERT_EQ(BitsOf(sums + r * kPanelOutputs, outputs),
                        BitsOf(want.data() + r * kPanelOutputs, outputs))
                  << kernel.name << ", row " << r << " of " << rows << ", " << inputs << " inputs";
            }
          }
        }
      }
    }
  }
}

// What the tests of two modes and two formats share.
class FloatLinearTest : public testing::TestWithParam<std::tuple<Dtype, Dtype>> {
 protected:
  static constexpr int64_t kRows = 60, kInputs = 264, kOutputs = 70;
  Dtype act() const { return std::get<0>(GetParam()); }
  Dtype weights() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Dtypes, FloatLinearTest,
                         testing::Combine(testing::Values(kF32, kBF16),
                                          testing::Values(kF32, kBF16)),
                         [](const auto& info) {
                           return std::string(DtypeName(std::get<0>(info.param))) + "_" +
                                  DtypeName(std::get<1>(info.param));
                         });

TEST_P(FloatLinearTest, ARowIsWhatTheContractSaysWithAnyKernelThreadsAndOtherRows) {
  TestTensor source(weights(), {kOutputs, kInputs}), values(act(), {kRows, kInputs}, 8);
  source.Fill(5, 0.1f);
  values.Fill(6);
  const bool all_bf16 = act() == kBF16 && weights() == kBF16;
  std::vector<std::vector<FloatKernel>> choices = {FloatKernels(), FloatKernels(true)};
  const FloatKernel portable = FloatKernels().back();
  for (const FloatKernel& kernel : AllKernels()) choices.push_back({kernel, portable});
  for (const auto& kernels : choices) {
    const ScopedKernels scoped(kernels);
    const FloatOrder order = all_bf16 ? kernels[0].order : FloatOrder::kBlock;
    std::vector<std::vector<float>> want(kRows);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t n = 0; n < kOutputs; ++n) {
        want[i].push_back(SumInOrder(order, values, i, source, n));
      }
    }
    for (const int num_threads : {1, 3}) {
      auto backend = *CreateCpuBackend(num_threads);
      const auto linear = *backend->PrepareLinear(source.lent(), source.format());
      for (const int64_t count : {1, 4, 19, 60}) {
        TestTensor out(kF32, {count, kOutputs}, 3), rounded(act(), {count, kOutputs});
        for (int64_t first = 0; first + count <= kRows; first += 17) {
          const DeviceTensor x = values.device().slice_rows(first, count);
          backend->Linear({x, *linear, out.device()});
          backend->Linear({x, *linear, rounded.device()});
          for (int64_t i = 0; i < count; ++i) {
            for (int64_t n = 0; n < kOutputs; ++n) {
              const float exact = want[first + i][n];
              ASSERT_EQ(out.at(i, n), exact) << kernels[0].name << " row " << i << " of " << count;
              ASSERT_EQ(rounded.at(i, n), act() == kF32 ? exact : WidenBF16(RoundToBF16(exact)));
            }
          }
        }
      }
    }
  }
}

TEST(FloatNumericsTest, AFastOrderOfItsOwnIsAClassOfItsOwnUnlessPortableIsAskedFor) {
  TestTensor source(kBF16, {32, 1024}), x(kBF16, {1, 1024});
  source.Fill(1);
  x.Fill(2);
  const auto row = [&](Backend& backend, WeightFormat format) {
    TestTensor out(kF32, {1, 32});
    backend.Linear({x.device(), **backend.PrepareLinear(source.lent(), format), out.device()});
    return out.Bytes();
  };
  const std::vector<FloatKernel> emulated = FloatKernels(/*emulated=*/true);
  const FloatKernel &amx = emulated[0], &pairs = emulated[1], &fma = emulated[2];
  std::vector<std::byte> portable;
  {
    const ScopedKernels scoped({fma});
    auto backend = *CreateCpuBackend(1);
    EXPECT_EQ(backend->NumericsClass(kBF16, WeightFormat::kBF16), "portable-1");
    portable = row(*backend, WeightFormat::kBF16);
  }
  {
    const ScopedKernels scoped({amx, pairs, fma});
    auto backend = *CreateCpuBackend(1);
    EXPECT_EQ(backend->NumericsClass(kBF16, WeightFormat::kBF16), "portable-1");
    EXPECT_EQ(row(*backend, WeightFormat::kBF16), portable);
  }
  const ScopedKernels scoped({pairs, fma});
  auto fast = *CreateCpuBackend(1);
  EXPECT_EQ(fast->NumericsClass(kBF16, WeightFormat::kBF16), "dpbf16-1");
  EXPECT_NE(row(*fast, WeightFormat::kBF16), portable);
  // What is not bf16 throughout has one order: the router of an integer format, for one.
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kInt8, WeightFormat::kInt4}) {
    EXPECT_EQ(fast->NumericsClass(kBF16, format), "portable-1");
    EXPECT_EQ(fast->NumericsClass(kF32, format), "portable-1");
  }
  EXPECT_EQ(fast->NumericsClass(kF32, WeightFormat::kBF16), "portable-1");
  EXPECT_EQ(row(*fast, WeightFormat::kF32), portable);
  auto asked = *CreateCpuBackend(1, Numerics::kPortable);
  EXPECT_EQ(asked->NumericsClass(kBF16, WeightFormat::kBF16), "portable-1");
  EXPECT_EQ(row(*asked, WeightFormat::kBF16), portable);
}

}  // namespace
}  // namespace tandem::kernels::cpu
