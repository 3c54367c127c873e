#include "gateway/step_costs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

PrefillShape Rows(int64_t first, int64_t count) {
  PrefillShape shape;
  shape.Add(first, count);
  return shape;
}
StepShape DecodeStep(int64_t rows, int64_t context) { return {{rows, context}, {}}; }
StepShape PrefillStep(int64_t first, int64_t count, int layers) {
  return {{}, {{Rows(first, count), layers}}};
}

TEST(PrefillShapeTest, CountsKeysThatAreSeen) {
  const PrefillShape shape = Rows(10, 3);  // which see 11, 12 and 13 keys
  EXPECT_EQ(shape.rows, 3);
  EXPECT_EQ(shape.context, 13);
  EXPECT_EQ(shape.pairs, 11 + 12 + 13);
}

TEST(StepCostsTest, TheFirstStepGivesTheUnit) {
  StepCosts costs;
  EXPECT_FALSE(costs.knows_decode());
  costs.Learn(PrefillStep(0, 512, 27), 1'000'000);
  EXPECT_FALSE(costs.knows_decode());
  EXPECT_NEAR(27 * costs.LayerUs(Rows(0, 512)), 1e6, 1);
  // And a decode step is cheaper, but not by orders of magnitude, as long as nothing says
  // otherwise.
  EXPECT_GT(costs.DecodeUs({8, 800}), 1e4);
  EXPECT_LT(costs.DecodeUs({8, 800}), 1e6);
}

// Of a machine whose ratios are quite others than those that it starts from.
TEST(StepCostsTest, LearnsWhatStepsTake) {
  const auto decode_us = [](const DecodeShape& d) {
    return 5000.0 + 90.0 * d.rows + 0.01 * d.context;
  };
  const auto layer_us = [](const PrefillShape& p) {
    return 300.0 + 1.5 * p.rows + 0.2 * p.context + 1e-3 * p.pairs;
  };
  StepCosts costs;
  std::mt19937 random(5);
  const auto draw = [&](int low, int high) {
    return low + static_cast<int>(random() % (high - low + 1));
  };
  double worst = 0;
  for (int step = 0; step < 3000; ++step) {
    StepShape shape;
    if (draw(0, 2) > 0) shape.decode = {draw(1, 32), draw(1, 32) * 1000};
    if (draw(0, 2) > 0 || shape.decode.rows == 0) {
      shape.prefill.push_back({Rows(draw(0, 4000), draw(32, 1024)), draw(1, 7)});
    }
    double us = shape.decode.rows > 0 ? decode_us(shape.decode) : 0;
    double expected = costs.DecodeUs(shape.decode);
    for (const StepShape::Prefill& prefill : shape.prefill) {
      us += prefill.layers * layer_us(prefill.shape);
      expected += prefill.layers * costs.LayerUs(prefill.shape);
    }
    if (step >= 2000) worst = std::max(worst, std::abs(std::log(expected / us)));
    costs.Learn(shape, static_cast<int64_t>(us * (0.95 + 0.001 * draw(0, 100))));
  }
  EXPECT_LT(worst, 0.3);
}

TEST(StepCostsTest, PrefillIsWhatAStepTakesBeyondItsDecodeRows) {
  StepCosts costs;
  for (int i = 0; i < 100; ++i) costs.Learn(DecodeStep(8, 4000), 20'000);
  EXPECT_NEAR(costs.DecodeUs({8, 4000}), 20'000, 100);
  StepShape both = PrefillStep(0, 256, 1);
  both.decode = {8, 4000};
  for (int i = 0; i < 100; ++i) costs.Learn(both, 29'000);
  EXPECT_NEAR(costs.LayerUs(Rows(0, 256)), 9'000, 100);
  EXPECT_NEAR(costs.DecodeUs({8, 4000}), 20'000, 100);
  // However fast it was.
  costs.Learn(both, 10'000);
  EXPECT_GT(costs.LayerUs(Rows(0, 256)), 5'000);
}

TEST(StepCostsTest, OneStepThatTookForeverIsNotBelieved) {
  StepCosts costs;
  for (int i = 0; i < 10; ++i) costs.Learn(DecodeStep(8, 4000), 20'000);
  costs.Learn(DecodeStep(8, 4000), std::numeric_limits<int64_t>::max());
  EXPECT_LT(costs.DecodeUs({8, 4000}), 25'000);
  for (const int64_t nothing : {int64_t{0}, int64_t{-5}}) costs.Learn(DecodeStep(8, 4000), nothing);
  EXPECT_GT(costs.DecodeUs({8, 4000}), 20'000);
  costs.Learn({}, 1000);
  EXPECT_LT(costs.DecodeUs({8, 4000}), 25'000);
}

TEST(StepCostsTest, RowsWithinIsTheMostThatFits) {
  StepCosts costs;
  costs.Learn(PrefillStep(0, 512, 27), 1'000'000);
  for (const int64_t first : {0, 5000}) {
    for (const double budget : {0.0, 100.0, 5e3, 4e4, 1e9}) {
      const int64_t rows = costs.RowsWithin(budget, first, 2048);
      EXPECT_TRUE(rows == 0 || costs.LayerUs(Rows(first, rows)) <= budget);
      EXPECT_TRUE(rows == 2048 || costs.LayerUs(Rows(first, rows + 1)) > budget);
      EXPECT_GE(rows, 0);
      EXPECT_LE(rows, 2048);
    }
  }
  EXPECT_LT(costs.RowsWithin(4e4, 5000, 2048), costs.RowsWithin(4e4, 0, 2048));
  EXPECT_EQ(costs.RowsWithin(1e9, 0, 0), 0);
}

}  // namespace
}  // namespace tandem
