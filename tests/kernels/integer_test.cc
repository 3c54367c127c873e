// Products in the integer formats: what is packed, that every kernel finds the same sums, and that
// an op's result is what the contract says, to the bit.
#include <gtest/gtest.h>
#include <pthread.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/integer_kernels.h"
#include "kernels/cpu/integer_rows.h"
#include "kernels/cpu/integer_weight.h"
#include "kernels/cpu/prefetch.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels::cpu {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

IntegerWeight Quantized(const TestTensor& source, WeightFormat format) {
  const IntegerLayout layout(format, source.view().dim(0), source.view().dim(1));
  const std::shared_ptr<std::byte> memory(
      static_cast<std::byte*>(std::aligned_alloc(64, (layout.bytes() + 63) / 64 * 64)), std::free);
  for (int64_t i = 0; i < layout.panels; ++i) {
    QuantizePanel(source.view(), layout, i, memory.get());
  }
  return {layout, memory};
}

// Every kernel of this machine, and the emulated ones.
std::vector<IntegerKernel> AllKernels() {
  std::vector<IntegerKernel> kernels = IntegerKernels();
  for (const IntegerKernel& kernel : IntegerKernels(/*emulated=*/true)) kernels.push_back(kernel);
  return kernels;
}

class ScopedKernels {
 public:
  explicit ScopedKernels(std::vector<IntegerKernel> kernels)
      : before_(ExchangeIntegerKernels(std::move(kernels))) {}
  ~ScopedKernels() { ExchangeIntegerKernels(before_); }
  ScopedKernels(const ScopedKernels&) = delete;
  ScopedKernels& operator=(const ScopedKernels&) = delete;

 private:
  const std::vector<IntegerKernel> before_;
};

class IntegerTest : public testing::TestWithParam<WeightFormat> {
 protected:
  WeightFormat format() const { return GetParam(); }
  // The integer q[n, k].
  static int64_t Integer(const IntegerWeight& weight, int64_t n, int64_t k) {
    const float scale = weight.scales()[n];
    return scale == 0.0f ? 0 : std::llrint(Dequantized(weight, n, k) / scale);
  }
};

INSTANTIATE_TEST_SUITE_P(Formats, IntegerTest,
                         testing::Values(WeightFormat::kInt8, WeightFormat::kInt4),
                         [](const auto& info) { return WeightFormatName(info.param); });

// The metrics server's have 100 KB, of which what is thread_local in the process takes its part.
TEST(IntegerKernelsTest, LeaveRoomForThreadsWithSmallStacks) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 48 << 10), 0);
  pthread_t thread;
  const auto nothing = [](void*) -> void* { return nullptr; };
  ASSERT_EQ(pthread_create(&thread, &attributes, nothing, nullptr), 0);
  EXPECT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
}

TEST(AskedAheadTest, IsAsFarAheadAlsoWhereThePanelEnds) {
  constexpr int64_t kBlocks = 20, kBytes = 2112, kAhead = 8, kAheadBytes = 16384;
  const std::vector<uint8_t> panel(kBlocks * kBytes), next(kBlocks * kBytes);
  const auto asked = [&](int64_t b, const uint8_t* after) {
    return AskedAhead(panel.data(), kBlocks, kBytes, b, after, kAheadBytes);
  };
  EXPECT_EQ(asked(0, next.data()), &panel[kAhead * kBytes]);
  EXPECT_EQ(asked(kBlocks - kAhead - 1, next.data()), &panel[(kBlocks - 1) * kBytes]);
  EXPECT_EQ(asked(kBlocks - kAhead, next.data()), &next[0]);
  EXPECT_EQ(asked(kBlocks - 1, next.data()), &next[(kAhead - 1) * kBytes]);
  EXPECT_EQ(asked(kBlocks - 1, nullptr), &panel[(kBlocks - 1) * kBytes]);
}

TEST_P(IntegerTest, WeightsStayNearAndFillTheirRange) {
  TestTensor source(Dtype::kBF16, {70, 296}, 0);
  source.Fill(1, 0.02f);
  const IntegerWeight weight = Quantized(source, format());
  const bool int4 = format() == WeightFormat::kInt4;
  double squares = 0, errors = 0;
  for (int64_t n = 0; n < 70; ++n) {
    int64_t largest = 0;
    for (int64_t k = 0; k < 296; ++k) {
      const double error = source.at(n, k) - Dequantized(weight, n, k);
      // int8: half a step. int4: the largest magnitude of a group is the worst, by half a step of
      // 15 scales and what clipping leaves.
      ASSERT_LE(std::abs(error), weight.scales()[n] * (int4 ? 15.0 : 0.501)) << n << " " << k;
      squares += source.at(n, k) * source.at(n, k);
      errors += error * error;
      largest = std::max(largest, std::abs(Integer(weight, n, k)));
    }
    EXPECT_GE(largest, int4 ? 90 : 127);
    EXPECT_LE(largest, int4 ? 120 : 127);
  }
  EXPECT_LE(std::sqrt(errors / squares), int4 ? 0.095 : 0.008);
}

TEST_P(IntegerTest, HalvesAreQuantizedAsTheF32ThatTheyAre) {
  TestTensor halves(Dtype::kF16, {40, 152}), floats(Dtype::kF32, {40, 152});
  std::mt19937_64 random(1);
  for (int64_t n = 0; n < 40; ++n) {
    for (int64_t k = 0; k < 152; ++k) {
      const auto mantissa = static_cast<uint16_t>(random() % 1024);
      const auto sign = static_cast<uint16_t>(random() % 2);
      const auto exponent = static_cast<uint16_t>(random() % 12);  // 0: subnormal
      const auto bits = static_cast<uint16_t>(sign << 15 | exponent << 10 | mantissa);
      std::memcpy(halves.view().row(n) + 2 * k, &bits, sizeof(bits));
      const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                            : std::ldexp(1024.0f + mantissa, exponent - 25);
      floats.set(n, k, sign == 0 ? magnitude : -magnitude);
    }
  }
  const IntegerWeight a = Quantized(halves, format()), b = Quantized(floats, format());
  EXPECT_EQ(std::memcmp(a.memory.get(), b.memory.get(), static_cast<size_t>(a.layout.bytes())), 0);
}

TEST_P(IntegerTest, ZeroRowsAndRowsWithoutNumbersKeepTheirMeaning) {
  TestTensor source(Dtype::kF32, {4, 40});
  source.Fill(2);
  for (int64_t k = 0; k < 40; ++k) source.set(1, k, k % 2 == 0 ? 0.0f : -0.0f);
  source.set(2, 17, kNaN);
  source.set(3, 39, -std::numeric_limits<float>::infinity());
  const IntegerWeight weight = Quantized(source, format());
  EXPECT_GT(weight.scales()[0], 0.0f);
  EXPECT_EQ(weight.scales()[1], 0.0f);
  EXPECT_TRUE(std::isnan(weight.scales()[2]));
  EXPECT_TRUE(std::isnan(weight.scales()[3]));
  for (int64_t k = 0; k < 40; ++k) EXPECT_EQ(Dequantized(weight, 1, k), 0.0f);

  auto backend = *CreateCpuBackend(1);
  TestTensor x(Dtype::kF32, {3, 40}), out(Dtype::kF32, {3, 4});
  x.Fill(3);
  x.set(1, 5, kNaN);
  for (int64_t k = 0; k < 40; ++k) x.set(2, k, 0.0f);
  backend->Linear({x.device(), **backend->PrepareLinear(source.lent(), format()), out.device()});
  EXPECT_TRUE(std::isfinite(out.at(0, 0)));
  EXPECT_EQ(out.at(0, 1), 0.0);
  EXPECT_TRUE(std::isnan(out.at(0, 2)) && std::isnan(out.at(0, 3)));
  for (int64_t n = 0; n < 4; ++n) EXPECT_TRUE(std::isnan(out.at(1, n)));
  EXPECT_EQ(out.at(2, 0), 0.0);
}

TEST_P(IntegerTest, EveryKernelFindsTheSumsAlsoOfTheLargestIntegers) {
  for (const int64_t inputs : {8, 40, 128, 392, 1408}) {
    TestTensor source(Dtype::kF32, {70, inputs});
    source.Fill(inputs);
    for (int64_t k = 0; k < inputs; ++k) {  // as large as they get, of one sign and of both
      source.set(3, k, -1.0f);
      source.set(4, k, k % 3 == 0 ? 1.0f : -1.0f);
    }
    const IntegerWeight weight = Quantized(source, format());
    constexpr int64_t kRows = 50, kFirst = 3;
    TestTensor values(Dtype::kBF16, {kFirst + kRows, inputs});
    values.Fill(inputs + 1);
    for (int64_t k = 0; k < inputs; ++k) {
      values.set(kFirst, k, 2.0f);
      values.set(kFirst + 1, k, k % 3 == 0 ? 2.0f : -2.0f);
    }
    IntegerRows x;
    x.Resize(kFirst + kRows, inputs);
    for (int64_t i = 0; i < kFirst + kRows; ++i) x.Set(i, values.view().row(i), Dtype::kBF16);
    alignas(64) static int32_t sums[64 * kPanelOutputs];
    for (int64_t panel = 0; panel < 3; ++panel) {
      std::vector<int32_t> want(kRows * kPanelOutputs);
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t n = 0; n < kPanelOutputs; ++n) {
          int64_t sum = 0;
          for (int64_t k = 0; k < inputs; ++k) {
            const int8_t q = x.block(k / kBlockInputs, kFirst + r)[k % kBlockInputs];
            sum += q * Integer(weight, panel * kPanelOutputs + n, k);
          }
          want[r * kPanelOutputs + n] = static_cast<int32_t>(sum);
        }
      }
      for (const IntegerKernel& kernel : AllKernels()) {
        for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 32, 33, 50}) {
          kernel.run({format(), weight.panel(panel), &x, kFirst, rows, sums});
          const std::vector<int32_t> got(sums, sums + rows * kPanelOutputs);
          ASSERT_EQ(got, std::vector<int32_t>(want.begin(), want.begin() + rows * kPanelOutputs))
              << kernel.name << ", " << rows << " rows of " << inputs;
        }
      }
    }
  }
}

TEST_P(IntegerTest, ALinearRowIsWhatTheContractSaysWithAnyKernelThreadsAndOtherRows) {
  constexpr int64_t kRows = 150, kInputs = 264, kOutputs = 70;
  for (const Dtype act : {Dtype::kF32, Dtype::kBF16}) {
    TestTensor source(Dtype::kBF16, {kOutputs, kInputs}), values(act, {kRows, kInputs}, 8);
    source.Fill(5, 0.1f);
    values.Fill(6);
    const IntegerWeight weight = Quantized(source, format());
    std::vector<std::vector<float>> want(kRows);
    for (int64_t i = 0; i < kRows; ++i) {
      float largest = 0.0f;
      for (int64_t k = 0; k < kInputs; ++k) {
        largest = std::max(largest, std::abs(static_cast<float>(values.at(i, k))));
      }
      const float factor = 127.0f / largest;
      for (int64_t n = 0; n < kOutputs; ++n) {
        int64_t sum = 0;
        for (int64_t k = 0; k < kInputs; ++k) {
          const auto q = std::lrint(static_cast<float>(values.at(i, k)) * factor);
          sum += q * Integer(weight, n, k);
        }
        want[i].push_back(static_cast<float>(sum) * (largest / 127.0f * weight.scales()[n]));
      }
    }
    std::vector<std::vector<IntegerKernel>> choices;
    for (const IntegerKernel& kernel : AllKernels()) choices.push_back({kernel});
    choices.push_back(IntegerKernels());
    choices.push_back(IntegerKernels(/*emulated=*/true));
    for (const auto& kernels : choices) {
      const ScopedKernels scoped(kernels);
      for (const int num_threads : {1, 3}) {
        auto backend = *CreateCpuBackend(num_threads);
        const auto linear = *backend->PrepareLinear(source.lent(), format());
        for (const int64_t count : {1, 4, 37, 150}) {
          TestTensor out(Dtype::kF32, {count, kOutputs}, 3), rounded(act, {count, kOutputs});
          for (int64_t first = 0; first + count <= kRows; first += 41) {
            const DeviceTensor x = values.device().slice_rows(first, count);
            backend->Linear({x, *linear, out.device()});
            backend->Linear({x, *linear, rounded.device()});
            for (int64_t i = 0; i < count; ++i) {
              for (int64_t n = 0; n < kOutputs; ++n) {
                const float exact = want[first + i][n];
                ASSERT_EQ(out.at(i, n), exact) << kernels[0].name;
                ASSERT_EQ(rounded.at(i, n),
                          act == Dtype::kF32 ? exact : WidenBF16(RoundToBF16(exact)));
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tandem::kernels::cpu
