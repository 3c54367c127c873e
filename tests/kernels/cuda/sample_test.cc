#include "kernels/cuda/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/cuda/cuda_test.h"

namespace tandem::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint64_t kAllOnes = ~uint64_t{0};

template <typename T>
T OneOf(std::mt19937_64& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

// Logits of one kind of row.
enum class Kind { kNormal, kWide, kTies, kZeros, kFlat, kSomeOut, kAllOut, kNan, kInfinity };
constexpr int kKinds = 9;

float DrawLogit(Kind kind, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0.0f, 3.0f);
  const float logit = normal(random);
  switch (kind) {
    case Kind::kWide:  // many weights of 0
      return 30.0f * logit;
    case Kind::kTies:
      return std::round(logit) / 4.0f;
    case Kind::kZeros:  // of both signs, mostly the best
      return OneOf(random, {-0.0f, 0.0f, -0.0f, 0.0f, -std::abs(logit), -1e-42f});
    case Kind::kFlat:
      return -7.25f;
    case Kind::kSomeOut:
      return random() % 3 == 0 ? -kInfinity : logit;
    case Kind::kAllOut:
      return -kInfinity;
    default:
      return logit;
  }
}

TestTensor DrawLogits(int64_t rows, int64_t vocab, std::mt19937_64& random) {
  TestTensor logits(Dtype::kF32, {rows, vocab}, 3);
  for (int64_t row = 0; row < rows; ++row) {
    const auto kind = static_cast<Kind>(row % kKinds);
    for (int64_t id = 0; id < vocab; ++id) logits.set(row, id, DrawLogit(kind, random));
    const auto somewhere = static_cast<int64_t>(random() % static_cast<uint64_t>(vocab));
    if (kind == Kind::kNan) logits.set(row, somewhere, OneOf(random, {kNan, -kNan}));
    if (kind == Kind::kInfinity) logits.set(row, somewhere, kInfinity);
  }
  return logits;
}

std::vector<SampleRow> DrawRows(int64_t rows, int32_t vocab, std::mt19937_64& random) {
  std::vector<SampleRow> samples;
  for (int64_t row = 0; row < rows; ++row) {
    samples.push_back(
        {OneOf(random, {0.0f, 1e-42f, 0.7f, 0.7f, 1.0f, 1.0f, 5.0f, 5.0f, 1e30f}),
         OneOf(random, {0, 0, 0, 1, 2, 50, vocab / 2, vocab - 1, vocab, vocab + 1}),
         OneOf(random, {1e-6f, 0.1f, 0.5f, 0.9f, 0.999999f, 1.0f, 1.0f, 1.0f, 1.0f}),
         OneOf<uint64_t>(random, {0, kAllOnes, random(), random(), random(), random()}),
         OneOf(random, {0.0f, 0.0f, 0.0f, 1e-30f, 0.01f, 0.3f, 1.0f})});
  }
  return samples;
}

// Ids and bits of log_prob.
std::vector<std::pair<int32_t, uint32_t>> Bits(const std::vector<SampledToken>& tokens) {
  std::vector<std::pair<int32_t, uint32_t>> bits;
  for (const SampledToken& token : tokens) {
    bits.emplace_back(token.id, std::bit_cast<uint32_t>(token.log_prob));
  }
  return bits;
}

void ExpectTheCpusTokens(const TestTensor& logits, const std::vector<SampleRow>& samples,
                         const std::vector<uint8_t>& allowed, uint64_t seeds,
                         const DeviceTensor& raw = {}) {
  std::vector<SampledToken> want(samples.size());
  (*CreateCpuBackend(1))
      ->Sample({logits.device(), DeviceStructs(samples), DeviceVector(allowed), DeviceStructs(want),
                raw});
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    std::vector<SampledToken> got(samples.size());
    cuda::Sample(TestStream(seed), {logits.device(), DeviceStructs(samples), DeviceVector(allowed),
                                    DeviceStructs(got), raw});
    for (size_t i = 0; i < samples.size(); ++i) {
      const SampleRow& s = samples[i];
      ASSERT_EQ(Bits(got)[i], Bits(want)[i])
          << "row " << i << ", vocab " << logits.view().width() << ", seed " << seed
          << (allowed.empty() ? "" : ", masked") << ": temperature " << s.temperature << ", top_k "
          << s.top_k << ", top_p " << s.top_p << ", min_p " << s.min_p << ", random " << s.random;
    }
  }
}

class CudaSampleTest : public testing::TestWithParam<int32_t> {};

TEST_P(CudaSampleTest, DrawsTheCpusTokens) {
  constexpr int64_t kRows = 27;
  const int32_t vocab = GetParam();
  std::mt19937_64 random(static_cast<uint64_t>(vocab));
  for (const bool masked : {false, true}) {
    const TestTensor logits = DrawLogits(kRows, vocab, random);
    std::vector<uint8_t> allowed(masked ? static_cast<size_t>(vocab) : 0);
    for (uint8_t& a : allowed) a = OneOf<uint8_t>(random, {0, 1, 255});
    ExpectTheCpusTokens(logits, DrawRows(kRows, vocab, random), allowed, kSeeds);
  }
}

TEST_P(CudaSampleTest, AdjustsLogitsAsTheCpuAndDrawsFromThem) {
  constexpr int64_t kRows = 18;
  const int32_t vocab = GetParam();
  std::mt19937_64 random(static_cast<uint64_t>(vocab) + 2);
  const TestTensor raw = DrawLogits(kRows, vocab, random);
  std::vector<LogitAdjustment> adjustments;
  for (int32_t row = 0; row < kRows; ++row) {
    for (int32_t id = 0; id < vocab; ++id) {
      if (random() % 3 != 0) continue;
      adjustments.push_back({row, id, OneOf(random, {0.0f, 0.0f, 1.3f, -100.0f, -kInfinity}),
                             OneOf(random, {1.0f, 1.0f, 1.1f, 0.7f}),
                             OneOf(random, {0.0f, 0.0f, 0.6f, -0.3f})});
    }
  }
  std::shuffle(adjustments.begin(), adjustments.end(), random);
  const auto copy = [&] {
    TestTensor logits(Dtype::kF32, {kRows, vocab}, 1);
    for (int64_t row = 0; row < kRows; ++row) {
      std::copy_n(reinterpret_cast<const float*>(raw.view().row(row)), vocab,
                  reinterpret_cast<float*>(logits.view().row(row)));
    }
    return logits;
  };
  TestTensor want = copy();
  (*CreateCpuBackend(1))->AdjustLogits({want.device(), DeviceStructs(adjustments)});
  TestTensor got = copy();
  cuda::AdjustLogits(TestStream(1), {got.device(), DeviceStructs(adjustments)});
  ExpectSameBits(got, want, 1);
  ExpectTheCpusTokens(got, DrawRows(kRows, vocab, random), {}, 2, raw.device());
}

TEST_P(CudaSampleTest, TheMostProbableAreTheCpus) {
  const int32_t vocab = GetParam();
  std::mt19937_64 random(static_cast<uint64_t>(vocab) + 3);
  for (const bool masked : {false, true}) {
    const TestTensor logits = DrawLogits(kKinds, vocab, random);
    std::vector<uint8_t> allowed(masked ? static_cast<size_t>(vocab) : 0);
    for (uint8_t& a : allowed) a = OneOf<uint8_t>(random, {0, 1, 255});
    const auto top = [&](const auto& run) {
      std::vector<int32_t> ids(kKinds * 20);
      std::vector<float> log_probs(ids.size());
      run(TopLogProbsArgs{logits.device(), DeviceVector(allowed),
                          DeviceVector(ids).reshaped({kKinds, 20}),
                          DeviceVector(log_probs).reshaped({kKinds, 20})});
      std::vector<std::pair<int32_t, uint32_t>> bits;
      for (size_t i = 0; i < ids.size(); ++i) {
        bits.emplace_back(ids[i], std::bit_cast<uint32_t>(log_probs[i]));
      }
      return bits;
    };
    const auto want = top([](const auto& args) { (*CreateCpuBackend(1))->TopLogProbs(args); });
    for (uint64_t seed = 0; seed < 2; ++seed) {
      EXPECT_EQ(top([&](const auto& args) { cuda::TopLogProbs(TestStream(seed), args); }), want);
    }
  }
}

TEST_P(CudaSampleTest, LogProbsAreTheCpus) {
  const int32_t vocab = GetParam();
  std::mt19937_64 random(static_cast<uint64_t>(vocab) + 1);
  const TestTensor logits = DrawLogits(kKinds, vocab, random);
  std::vector<int32_t> targets;
  for (int i = 0; i < kKinds; ++i) {
    targets.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
  }
  std::vector<float> want(kKinds);
  (*CreateCpuBackend(1))->LogProb({logits.device(), DeviceVector(targets), DeviceVector(want)});
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    std::vector<float> got(kKinds);
    cuda::LogProb(TestStream(seed), {logits.device(), DeviceVector(targets), DeviceVector(got)});
    for (int i = 0; i < kKinds; ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
          << "row " << i << ", seed " << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, CudaSampleTest,
                         testing::Values(1, 2, 31, 255, 257, 1000, 4099),
                         [](const auto& info) { return std::to_string(info.param); });

TEST(CudaSampleTest, DrawsTheCpusTokensFromAModelsVocabulary) {
  constexpr int64_t kVocab = 102400;
  TestTensor logits(Dtype::kF32, {3, kVocab});
  logits.Fill(1, 3.0f);
  ExpectTheCpusTokens(logits,
                      {{1.0f, 0, 1.0f, 0x9E3779B97F4A7C15u},
                       {0.6f, 0, 0.95f, 0xC2B2AE3D27D4EB4Fu},
                       {1.3f, 1000, 0.9f, 0xD6E8FEB86659FD93u}},
                      {}, 1);
}

int32_t DrawOne(const std::vector<float>& logits, const SampleRow& sample) {
  std::vector<SampledToken> out(1);
  cuda::Sample(TestStream(1),
               {DeviceVector(logits).reshaped({1, static_cast<int64_t>(logits.size())}),
                DeviceStructs(std::vector<SampleRow>{sample}),
                {},
                DeviceStructs(out)});
  return out[0].id;
}

// 1024 candidates of one weight: random bits name every boundary exactly.
TEST(CudaSampleTest, ADrawOnABoundaryTakesTheCandidateBehindIt) {
  const std::vector<float> flat(1024, 0.5f);
  for (const int32_t id : {1, 2, 255, 256, 257, 511, 512, 1023}) {
    const uint64_t boundary = static_cast<uint64_t>(id) << 54;
    EXPECT_EQ(DrawOne(flat, {1.0f, 0, 1.0f, boundary}), id);
    EXPECT_EQ(DrawOne(flat, {1.0f, 0, 1.0f, boundary - 1}), id - 1);
  }
}

TEST(CudaSampleTest, CutsEndWhereTheContractSays) {
  const std::vector<float> flat(1024, 0.5f);
  for (const int32_t top_k : {1, 2, 255, 256, 257, 512, 1023}) {
    EXPECT_EQ(DrawOne(flat, {1.0f, top_k, 1.0f, kAllOnes}), top_k - 1);
  }
  EXPECT_EQ(DrawOne(flat, {1.0f, 1024, 1.0f, kAllOnes}), 1023);
  EXPECT_EQ(DrawOne(flat, {1.0f, 0, 0.25f, kAllOnes}), 255);  // reaches the threshold exactly
  EXPECT_EQ(DrawOne(flat, {1.0f, 0, 0.250001f, kAllOnes}), 256);
  EXPECT_EQ(DrawOne(flat, {1.0f, 512, 0.5f, kAllOnes}), 255);  // of what top_k leaves
  std::vector<float> steps(1024, 0.5f);
  std::fill(steps.begin() + 300, steps.end(), 0.5f - 0.69314718f);  // half as probable
  EXPECT_EQ(DrawOne(steps, {1.0f, 0, 1.0f, kAllOnes, 0.5001f}), 299);
  EXPECT_EQ(DrawOne(steps, {1.0f, 0, 1.0f, kAllOnes, 0.4999f}), 1023);
  EXPECT_EQ(DrawOne(steps, {1.0f, 200, 1.0f, kAllOnes, 0.5001f}), 199);
  EXPECT_EQ(DrawOne(steps, {1.0f, 400, 1.0f, kAllOnes, 0.5001f}), 299);
  EXPECT_EQ(DrawOne(steps, {1.0f, 0, 0.5f, kAllOnes, 0.5001f}), 149);  // of what min_p leaves
}

TEST(CudaSampleTest, OfNoRowsNothingStarts) {
  const std::vector<SampleRow> rows;
  std::vector<SampledToken> tokens;
  const TestTensor logits(Dtype::kF32, {0, 8});
  cuda::Sample(TestStream(1), {logits.device(), DeviceStructs(rows), {}, DeviceStructs(tokens)});
  const std::vector<int32_t> targets;
  std::vector<float> log_probs;
  cuda::LogProb(TestStream(1), {logits.device(), DeviceVector(targets), DeviceVector(log_probs)});
}

}  // namespace
}  // namespace tandem::kernels
