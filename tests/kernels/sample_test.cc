#include "kernels/ops/sample.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/oracle.h"
#include "tests/kernels/targets.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

SamplingParams Params(float temperature, int32_t top_k = 0, float top_p = 1.0f, uint64_t seed = 1,
                      float min_p = 0.0f) {
  SamplingParams params;
  params.min_p = min_p;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.seed = seed;
  return params;
}

std::vector<SampledToken> Draw(const std::vector<float>& logits, const SamplingParams& params,
                               int count, const std::vector<uint8_t>& allowed = {},
                               int num_threads = 2, int32_t first_position = 0) {
  std::vector<float> all;
  std::vector<SampleRow> rows;
  for (int i = 0; i < count; ++i) {
    all.insert(all.end(), logits.begin(), logits.end());
    rows.push_back(MakeSampleRow(params, first_position + i));
  }
  std::vector<SampledToken> out(count);
  const auto vocab = static_cast<int64_t>(logits.size());
  (*CreateCpuBackend(num_threads))
      ->Sample({DeviceVector(all).reshaped({count, vocab}), DeviceStructs(rows),
                DeviceVector(allowed), DeviceStructs(out)});
  return out;
}

SampledToken DrawOne(const std::vector<float>& logits, const SamplingParams& params,
                     const std::vector<uint8_t>& allowed = {}) {
  return Draw(logits, params, 1, allowed)[0];
}

std::vector<float> RandomLogits(size_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(vocab);
  for (float& l : logits) l = normal(random);
  return logits;
}

double ExactLogProb(const std::vector<float>& logits, int32_t id) {
  double max = -INFINITY, sum = 0;
  for (float l : logits) max = std::max<double>(max, l);
  for (float l : logits) sum += std::exp(l - max);
  return logits[id] - max - std::log(sum);
}

TEST(SampleTest, GreedyTakesTheHighestLogitTheLowestIdFirst) {
  EXPECT_EQ(DrawOne({1, 5, 3, 5}, Params(0)).id, 1);
  EXPECT_EQ(DrawOne({-0.0f, 0.0f, -1}, Params(0)).id, 0);
  EXPECT_EQ(DrawOne({1, 5, 3, 5}, Params(0), {1, 0, 1, 1}).id, 3);
  EXPECT_NEAR(DrawOne({1, 5, 3, 5}, Params(0)).log_prob, ExactLogProb({1, 5, 3, 5}, 1), 1e-6);
}

TEST(SampleTest, LogProbIsThatOfTheAllowedCandidatesAtTemperatureOne) {
  const SampledToken token = DrawOne({2, 9, 3, 1}, Params(0.3f, 1), {1, 0, 1, 1});
  EXPECT_EQ(token.id, 2);
  EXPECT_NEAR(token.log_prob, ExactLogProb({2, -kInfinity, 3, 1}, 2), 1e-6);
}

TEST(SampleTest, NanOrInfinityAmongCandidatesIsAnErrorOfTheRow) {
  for (float temperature : {0.0f, 1.0f}) {
    EXPECT_EQ(DrawOne({1, kNan, 3}, Params(temperature)).id, -1);
    EXPECT_EQ(DrawOne({1, kInfinity, 3}, Params(temperature)).id, -1);
    EXPECT_EQ(DrawOne({-kInfinity, -kInfinity}, Params(temperature)).id, -1);
    EXPECT_EQ(DrawOne({1, 2}, Params(temperature), {0, 0}).id, -1);
    EXPECT_EQ(DrawOne({-kInfinity, 2}, Params(temperature)).id, 1);
    EXPECT_EQ(DrawOne({1, kNan, 0}, Params(temperature, 1), {1, 0, 1}).id, 0);
  }
}

// Pearson's statistic of the draws against the exact distribution, over ids expected >= 5 times.
void ExpectDistribution(const std::vector<float>& logits, const SamplingParams& params,
                        const std::vector<uint8_t>& allowed = {}) {
  constexpr int kDraws = 20000;
  std::vector<int> counts(logits.size());
  for (const SampledToken& token : Draw(logits, params, kDraws, allowed)) ++counts[token.id];
  const std::vector<double> p =
      oracle::SamplingDistribution({logits.begin(), logits.end()}, allowed, params.temperature,
                                   params.top_k, params.top_p, params.min_p);
  double chi_square = 0, degrees = -1, rest_p = 1;
  int rest_count = kDraws;
  for (size_t id = 0; id < p.size(); ++id) {
    if (p[id] == 0) {
      EXPECT_EQ(counts[id], 0) << id;
    }
    const double expected = p[id] * kDraws;
    if (expected < 5) continue;
    chi_square += (counts[id] - expected) * (counts[id] - expected) / expected;
    rest_p -= p[id];
    rest_count -= counts[id];
    ++degrees;
  }
  EXPECT_LT(chi_square, degrees + 4 * std::sqrt(2 * degrees) + 4);
  EXPECT_NEAR(rest_count, rest_p * kDraws, 5 * std::sqrt(rest_p * kDraws + 1) + 1);
}

TEST(SampleTest, DrawsFollowTheDistribution) {
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(1.0f));
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(0.5f, 0, 1.0f, 7));
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(2.0f, 3));
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(1.0f, 0, 0.7f));
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(1.5f, 4, 0.8f), {1, 1, 1, 0, 1, 1});
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(1.0f, 0, 1.0f, 1, 0.2f));
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(3.0f, 0, 1.0f, 1, 0.45f), {1, 1, 1, 0, 1, 1});
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(1.5f, 2, 1.0f, 1, 0.2f));
  ExpectDistribution({0, 1, 2, 3, 2, 1}, Params(1.5f, 5, 0.8f, 1, 0.2f));
  ExpectDistribution(RandomLogits(1000, 1), Params(1.0f));
  ExpectDistribution(RandomLogits(1000, 1), Params(1.0f, 0, 1.0f, 1, 0.01f));
  ExpectDistribution(std::vector<float>(300, 0.0f), Params(1.0f));
}

TEST(SampleTest, AreIndependentOfRowsThreadsAndTarget) {
  const std::vector<float> logits = RandomLogits(5003, 2);
  const SamplingParams params = Params(1.3f, 0, 0.95f, 99);
  const std::vector<SampledToken> want = Draw(logits, params, 60);
  for (int64_t target : AvailableTargets()) {
    ScopedTarget scoped(target);
    for (int num_threads : {1, 3}) {
      const std::vector<SampledToken> got = Draw(logits, params, 60, {}, num_threads);
      for (int i = 0; i < 60; ++i) {
        EXPECT_EQ(got[i].id, want[i].id);
        EXPECT_EQ(got[i].log_prob, want[i].log_prob);
      }
    }
  }
}

TEST(SampleTest, SeedChoiceAndPositionEachChangeTheDraw) {
  const std::vector<float> flat(10000, 0.0f);
  SamplingParams params = Params(1.0f);
  const std::vector<SampledToken> by_position = Draw(flat, params, 3);
  EXPECT_NE(by_position[0].id, by_position[1].id);
  EXPECT_NE(by_position[1].id, by_position[2].id);
  params.choice = 1;
  EXPECT_NE(DrawOne(flat, params).id, by_position[0].id);
  params = Params(1.0f, 0, 1.0f, 2);
  EXPECT_NE(DrawOne(flat, params).id, by_position[0].id);
}

// Pins the random function: the same request gives the same text in every release of a class.
TEST(SampleTest, DrawsAreStable) {
  const std::vector<float> flat(100000, 0.0f);
  const std::vector<SampledToken> draws = Draw(flat, Params(1.0f, 0, 1.0f, 42), 3);
  EXPECT_EQ(draws[0].id, 90587);
  EXPECT_EQ(draws[1].id, 57543);
  EXPECT_EQ(draws[2].id, 15394);
}

// floor(R * total / 2^64), as the contract has it.
uint64_t DrawTarget(uint64_t seed, uint32_t choice, int32_t position, uint64_t total) {
  unsigned char bytes[12] = {};
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<unsigned char>(choice >> (8 * i));
  for (int i = 0; i < 4; ++i) bytes[4 + i] = static_cast<unsigned char>(position >> (8 * i));
  const uint64_t random = XXH3_64bits_withSeed(bytes, sizeof(bytes), seed);
  __extension__ typedef unsigned __int128 Uint128;
  return static_cast<uint64_t>((static_cast<Uint128>(random) * total) >> 64);
}

constexpr uint64_t kOne = uint64_t{1} << 40;  // the weight of the best candidate

TEST(SampleTest, EveryByteOfSeedChoiceAndPositionCounts) {
  const std::vector<float> flat(1000, 0.0f);
  SamplingParams params = Params(1.0f, 0, 1.0f, 0x0123456789abcdef);
  params.choice = 0x01020304;
  for (int32_t position : {0, 0x0a, 0x0b0a, 0x0c0b0a, 0x0d0c0b0a}) {
    const uint64_t target =
        DrawTarget(params.seed, params.choice, position, kOne * static_cast<uint64_t>(flat.size()));
    EXPECT_EQ(Draw(flat, params, 1, {}, 1, position)[0].id, static_cast<int32_t>(target / kOne));
  }
}

// One candidate of weight 2^40, then many of weight 1: a draw beyond the first one falls on a
// boundary for certain, and the running sum has to exceed it.
TEST(SampleTest, ADrawOnABoundaryTakesTheCandidateBehindIt) {
  constexpr uint64_t kTail = 1 << 20;
  std::vector<float> logits(1 + kTail, -27.7259f);  // 2^40 exp(-27.7259) is 1.0 when rounded
  logits[0] = 0.0f;
  int found = 0;
  for (uint64_t seed = 0; found < 3; ++seed) {
    const uint64_t target = DrawTarget(seed, 0, 0, kOne + kTail);
    if (target < kOne) continue;
    ++found;
    EXPECT_EQ(DrawOne(logits, Params(1.0f, 0, 1.0f, seed)).id,
              static_cast<int32_t>(target - kOne + 1))
        << "seed " << seed;
  }
}

TEST(SampleTest, TopKEdges) {
  const std::vector<float> logits = {0, 3, 3, 1};
  for (const SampledToken& t : Draw(logits, Params(1.0f, 1), 50)) EXPECT_EQ(t.id, 1);
  EXPECT_EQ(DrawOne({-0.0f, 0.0f, -1}, Params(1.0f, 1)).id, 0);  // they are equal
  for (const SampledToken& t : Draw(logits, Params(5.0f, 2), 50)) {
    EXPECT_TRUE(t.id == 1 || t.id == 2);
  }
  const auto unlimited = Draw(logits, Params(5.0f), 50);
  const auto beyond = Draw(logits, Params(5.0f, 1000), 50);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(unlimited[i].id, beyond[i].id);
}

TEST(SampleTest, TopPEdges) {
  // Two equal candidates: half of the weight is reached by the first alone, more only by both.
  for (const SampledToken& t : Draw({4, 4}, Params(1.0f, 0, 0.5f), 50)) EXPECT_EQ(t.id, 0);
  int second = 0;
  for (const SampledToken& t : Draw({4, 4}, Params(1.0f, 0, 0.500001f), 200)) second += t.id;
  EXPECT_GT(second, 50);
  for (const SampledToken& t : Draw({1, 4, 2}, Params(1.0f, 0, 1e-20f), 50)) EXPECT_EQ(t.id, 1);
}

TEST(SampleTest, MinPEdges) {
  // 2^40 exp(-ln 2) is 2^39 when rounded: the second is half as probable as the first.
  const std::vector<float> logits = {1.0f, 1.0f - 0.69314718f, -20.0f};
  const auto drawn = [&](float min_p, int32_t id) {
    int count = 0;
    for (const SampledToken& t : Draw(logits, Params(1.0f, 0, 1.0f, 3, min_p), 200)) {
      count += t.id == id ? 1 : 0;
    }
    return count;
  };
  EXPECT_GT(drawn(0.4999f, 1), 30);
  EXPECT_EQ(drawn(0.5001f, 1), 0);
  EXPECT_EQ(drawn(1.0f, 0), 200);
  EXPECT_EQ(drawn(1e-6f, 2), 0);
  // Equal ones stay, and of what stays the weights count for top_p: a third is the first one alone.
  for (const SampledToken& t : Draw({4, 4, 4, 3}, Params(1.0f, 0, 0.33f, 1, 1.0f), 50)) {
    EXPECT_EQ(t.id, 0);
  }
  int third = 0;
  for (const SampledToken& t : Draw({4, 4, 4, 3}, Params(1.0f, 0, 1.0f, 1, 1.0f), 200)) {
    EXPECT_NE(t.id, 3);
    third += t.id == 2 ? 1 : 0;
  }
  EXPECT_GT(third, 30);
  // So much less than a weight can be is as little as none.
  EXPECT_EQ(DrawOne({0, -27.0f}, Params(1e-3f, 0, 1.0f, 1, 1e-40f)).id, 0);
}

TEST(SampleTest, ExtremeTemperaturesAreFine) {
  const std::vector<float> logits = {1.0f, 2.0f, 1.9999f, -500.0f};
  for (float temperature : {1e-6f, 1e-30f, 1e-44f}) {
    const SampledToken token = DrawOne(logits, Params(temperature));
    EXPECT_EQ(token.id, 1);
    EXPECT_NEAR(token.log_prob, ExactLogProb(logits, 1), 1e-6);
  }
  std::vector<int> counts(4);
  for (const SampledToken& t : Draw(logits, Params(1e30f), 4000)) ++counts[t.id];
  for (int count : counts) EXPECT_NEAR(count, 1000, 150);
}

TEST(SampleTest, LooksDeepIntoALargeVocabulary) {
  const std::vector<float> logits(102400, 0.5f);
  double mean = 0;
  for (const SampledToken& t : Draw(logits, Params(1.0f), 100)) mean += t.id / 100.0;
  EXPECT_NEAR(mean, 51200, 4 * 102400 / std::sqrt(12.0 * 100));
}

TEST(SampleTest, LogProbIsThatOfTheRawLogits) {
  const std::vector<float> raw = RandomLogits(1000, 3);
  std::vector<float> logits = raw;
  logits[17] = 50;  // as by a bias
  logits[18] = -INFINITY;
  const std::vector<uint8_t> allowed = [] {
    std::vector<uint8_t> allowed(1000, 1);
    allowed[900] = 0;
    return allowed;
  }();
  std::vector<float> candidates = raw;
  candidates[900] = -INFINITY;
  for (const float temperature : {0.0f, 1.0f, 0.7f}) {
    const std::vector<SampleRow> rows = {MakeSampleRow(Params(temperature), 5)};
    std::vector<SampledToken> out(1);
    (*CreateCpuBackend(1))
        ->Sample({DeviceVector(logits).reshaped({1, 1000}), DeviceStructs(rows),
                  DeviceVector(allowed), DeviceStructs(out),
                  DeviceVector(raw).reshaped({1, 1000})});
    EXPECT_EQ(out[0].id, 17);
    EXPECT_NEAR(out[0].log_prob, ExactLogProb(candidates, 17), 1e-5);
  }
  // Only what is adjusted away may be no candidate any more.
  std::vector<float> none(1000, -INFINITY);
  const std::vector<SampleRow> rows = {MakeSampleRow(Params(1.0f), 5)};
  std::vector<SampledToken> out(1);
  (*CreateCpuBackend(1))
      ->Sample({DeviceVector(none).reshaped({1, 1000}),
                DeviceStructs(rows),
                {},
                DeviceStructs(out),
                DeviceVector(raw).reshaped({1, 1000})});
  EXPECT_EQ(out[0].id, -1);
}

TEST(AdjustLogitsTest, DoesWhatTheContractSays) {
  const std::vector<float> before = RandomLogits(2 * 1000, 4);
  std::mt19937_64 random(5);
  std::vector<LogitAdjustment> adjustments;
  std::vector<double> want(before.begin(), before.end());
  for (int32_t place = 0; place < 2000; place += 1 + static_cast<int32_t>(random() % 3)) {
    const float bias = random() % 2 == 0 ? 0.0f : static_cast<float>(random() % 2001) / 10 - 100;
    const float repetition =
        random() % 2 == 0 ? 1.0f : 0.01f + static_cast<float>(random() % 300) / 100;
    const float penalty = random() % 2 == 0 ? 0.0f : static_cast<float>(random() % 4001) / 10 - 200;
    adjustments.push_back({place / 1000, place % 1000, bias, repetition, penalty});
    double& logit = want[place];
    logit += bias;
    logit = logit > 0 ? logit / repetition : logit * repetition;
    logit -= penalty;
  }
  std::shuffle(adjustments.begin(), adjustments.end(), random);
  for (const int num_threads : {1, 3}) {
    std::vector<float> logits = before;
    (*CreateCpuBackend(num_threads))
        ->AdjustLogits({DeviceVector(logits).reshaped({2, 1000}), DeviceStructs(adjustments)});
    for (size_t i = 0; i < logits.size(); ++i) {
      // Three roundings, of numbers of up to 100 times 112 and 200.
      ASSERT_NEAR(logits[i], want[i], 3 * 12000 * std::ldexp(1.0, -24)) << i;
      if (want[i] == before[i]) {
        ASSERT_EQ(logits[i], before[i]) << i;
      }
    }
  }
}

TEST(AdjustLogitsTest, Edges) {
  std::vector<float> logits = {-0.0f, 2, -2, 5, kNan, kInfinity, -kInfinity, 5};
  const std::vector<LogitAdjustment> adjustments = {
      {0, 0, 0, 2, 0}, {0, 1, 0, 2, 0}, {0, 2, 0, 2, 0},        {0, 3, -kInfinity, 2, 1},
      {0, 4, 1, 2, 1}, {0, 5, 1, 2, 1}, {0, 6, 100, 0.01f, -2}, {0, 7, -6, 3, 0}};
  (*CreateCpuBackend(1))
      ->AdjustLogits({DeviceVector(logits).reshaped({1, 8}), DeviceStructs(adjustments)});
  EXPECT_EQ(logits[0], 0);
  EXPECT_EQ(logits[1], 1);
  EXPECT_EQ(logits[2], -4);
  EXPECT_EQ(logits[3], -kInfinity);
  EXPECT_TRUE(std::isnan(logits[4]));
  EXPECT_EQ(logits[5], kInfinity);
  EXPECT_EQ(logits[6], -kInfinity);
  EXPECT_EQ(logits[7], -3);  // the sign is that behind the bias
}

struct Top {
  std::vector<int32_t> ids;
  std::vector<float> log_probs;
};

Top TopOf(const std::vector<float>& logits, int64_t count, const std::vector<uint8_t>& allowed = {},
          int num_threads = 1) {
  Top top{std::vector<int32_t>(count, 7), std::vector<float>(count, 7.0f)};
  (*CreateCpuBackend(num_threads))
      ->TopLogProbs({DeviceVector(logits).reshaped({1, static_cast<int64_t>(logits.size())}),
                     DeviceVector(allowed), DeviceVector(top.ids).reshaped({1, count}),
                     DeviceVector(top.log_probs).reshaped({1, count})});
  return top;
}

TEST(TopLogProbsTest, AreTheFirstCandidatesInTheirOrder) {
  EXPECT_EQ(TopOf({1, 5, -0.0f, 5, 0.0f}, 5).ids, (std::vector<int32_t>{1, 3, 0, 2, 4}));
  EXPECT_EQ(TopOf({1, 5, 3, 5}, 2, {1, 0, 1, 1}).ids, (std::vector<int32_t>{3, 2}));
  for (const size_t vocab : {30, 1000, 102400}) {
    std::vector<float> logits = RandomLogits(vocab, vocab);
    const Top top = TopOf(logits, 20);
    const std::vector<int> order = oracle::Ranking({logits.begin(), logits.end()});
    const double tolerance = std::ldexp(1.0, -20) + std::ldexp(static_cast<double>(vocab), -41);
    for (int k = 0; k < 20; ++k) {
      EXPECT_EQ(top.ids[k], order[k]);
      EXPECT_NEAR(top.log_probs[k], ExactLogProb(logits, order[k]), tolerance);
    }
    // The same bits as a draw's.
    EXPECT_EQ(top.log_probs[0], DrawOne(logits, Params(0)).log_prob);
  }
}

TEST(TopLogProbsTest, EndWhereNoneIsLeft) {
  const Top top = TopOf({2, -kInfinity, 1, 4}, 4, {1, 1, 1, 0});
  EXPECT_EQ(top.ids, (std::vector<int32_t>{0, 2, -1, -1}));
  EXPECT_NEAR(top.log_probs[1], ExactLogProb({2, 1}, 1), 1e-6);
  EXPECT_EQ(top.log_probs[2], 0);
  for (const std::vector<float>& wrong :
       {std::vector<float>{1, kNan}, {kInfinity, 1}, {-kInfinity, -kInfinity}}) {
    EXPECT_EQ(TopOf(wrong, 2).ids, (std::vector<int32_t>{-1, -1}));
    EXPECT_EQ(TopOf(wrong, 2).log_probs, (std::vector<float>{0, 0}));
  }
  EXPECT_EQ(TopOf({1, kNan}, 2, {1, 0}).ids, (std::vector<int32_t>{0, -1}));
}

TEST(LogProbTest, AgreesWithTheOracle) {
  for (size_t vocab : {1, 17, 1000, 102400}) {
    const std::vector<float> logits = RandomLogits(vocab, vocab);
    const std::vector<int32_t> targets = {static_cast<int32_t>(vocab / 2)};
    std::vector<float> out(1);
    (*CreateCpuBackend(2))
        ->LogProb({DeviceVector(logits).reshaped({1, static_cast<int64_t>(vocab)}),
                   DeviceVector(targets), DeviceVector(out)});
    const double want = ExactLogProb(logits, targets[0]);
    // exp is good to 2^-22, a weight to half of 2^-40 of the best one; then one rounding.
    const double tolerance = std::ldexp(1.0, -22) + std::ldexp(static_cast<double>(vocab), -41) +
                             std::abs(want) * std::ldexp(1.0, -23);
    EXPECT_NEAR(out[0], want, tolerance);
  }
}

TEST(LogProbTest, ErrorsAreNan) {
  const std::vector<float> logits = {1, kNan, 1, kInfinity, 1, -kInfinity};
  const std::vector<int32_t> targets = {0, 0, 1};
  std::vector<float> out(3);
  (*CreateCpuBackend(1))
      ->LogProb({DeviceVector(logits).reshaped({3, 2}), DeviceVector(targets), DeviceVector(out)});
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_TRUE(std::isnan(out[1]));
  EXPECT_EQ(out[2], -kInfinity);
}

}  // namespace
}  // namespace tandem::kernels
