#include "tools/workload/lengths.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

std::vector<int64_t> Draws(const std::string& text, int count) {
  const auto lengths = LengthDistribution::Parse(text);
  EXPECT_TRUE(lengths.ok()) << lengths.status();
  WorkloadRandom random(7);
  std::vector<int64_t> draws;
  for (int i = 0; lengths.ok() && i < count; ++i) draws.push_back(lengths->Draw(random));
  std::sort(draws.begin(), draws.end());
  return draws;
}

double Mean(const std::vector<int64_t>& draws) {
  double sum = 0;
  for (const int64_t draw : draws) sum += static_cast<double>(draw);
  return sum / static_cast<double>(draws.size());
}

TEST(LengthsTest, DrawsAreOfTheirDistribution) {
  constexpr int kDraws = 20000;
  EXPECT_THAT(Draws("512", 10), ::testing::Each(512));
  EXPECT_THAT(Draws("fixed:512", 10), ::testing::Each(512));

  const std::vector<int64_t> uniform = Draws("uniform:10:14", kDraws);
  for (int64_t value = 10; value <= 14; ++value) {
    // A fifth each; six standard deviations of a binomial distribution are 340.
    EXPECT_NEAR(std::count(uniform.begin(), uniform.end(), value), kDraws / 5, 340) << value;
  }
  EXPECT_EQ(uniform.front(), 10);
  EXPECT_EQ(uniform.back(), 14);

  const std::vector<int64_t> exponential = Draws("exponential:100", kDraws);
  EXPECT_NEAR(Mean(exponential), 100, 5);
  EXPECT_NEAR(static_cast<double>(exponential[kDraws / 2]), 100 * std::log(2), 4);
  EXPECT_GE(exponential.front(), 1);

  const std::vector<int64_t> lognormal = Draws("lognormal:200:0.5:900", kDraws);
  EXPECT_NEAR(static_cast<double>(lognormal[kDraws / 2]), 200, 6);
  EXPECT_NEAR(Mean(lognormal), 200 * std::exp(0.125), 8);
  EXPECT_EQ(lognormal.back(), 900);  // 3 sigma: once in a thousand
}

TEST(LengthsTest, SaysTheLongest) {
  EXPECT_EQ(LengthDistribution::Parse("uniform:10:14")->longest(), 14);
  EXPECT_EQ(LengthDistribution::Parse("lognormal:200:0.5:900")->longest(), 900);
  EXPECT_EQ(LengthDistribution::Parse("77")->longest(), 77);
  EXPECT_EQ(LengthDistribution::Fixed(5).longest(), 5);
}

TEST(LengthsTest, RefusesWhatIsNone) {
  for (const char* text : {"", "0", "-3", "1.5", "x", "uniform:5", "uniform:9:8", "uniform:1:2:3",
                           "gamma:3", "lognormal:5", "exponential:nan", "fixed:2000000"}) {
    const auto lengths = LengthDistribution::Parse(text);
    EXPECT_EQ(lengths.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(lengths.status().message()), ::testing::HasSubstr(text));
  }
}

TEST(LengthsTest, IntervalsAreOfAPoissonProcess) {
  WorkloadRandom random(3);
  double sum = 0;
  int longer = 0;
  for (int i = 0; i < 20000; ++i) {
    const double interval = DrawInterval(random, 4);
    EXPECT_GE(interval, 0);
    sum += interval;
    longer += interval > 0.25 ? 1 : 0;
  }
  EXPECT_NEAR(sum / 20000, 0.25, 0.01);
  EXPECT_NEAR(longer / 20000.0, std::exp(-1), 0.02);  // memoryless
}

}  // namespace
}  // namespace tandem
