#include "gateway/decode_groups.h"

#include "gtest/gtest.h"

namespace tandem {
namespace {

using Chooser = DecodeGroupChooser;

// What a worker's decode steps of all sequences cost; with two groups each has half the rows.
struct Costs {
  int rows = 8;
  int64_t one_us = 1000;  // a step of all rows
  int64_t wait_us = 500;  // of it, for experts
  int64_t half_us = 500;  // a step of half the rows while the other half's runs as well
};

void Feed(Chooser* chooser, const Costs& costs, int steps) {
  for (int i = 0; i < steps; ++i) {
    if (chooser->groups() == 1) {
      chooser->OnStep(1, costs.rows, costs.one_us, costs.wait_us);
    } else {
      chooser->OnStep(2, costs.rows / 2, costs.half_us, 0);
    }
  }
}

// Steps until the number of groups changes.
int StepsToChange(Chooser* chooser, const Costs& costs, int limit = 100000) {
  const int before = chooser->groups();
  int steps = 0;
  while (chooser->groups() == before && steps < limit) {
    Feed(chooser, costs, 1);
    ++steps;
  }
  return steps;
}

constexpr int kLong = 200 * Chooser::kWindowSteps;
constexpr int kTrialSteps = Chooser::kSkippedSteps + Chooser::kWindowSteps;

TEST(DecodeGroupChooserTest, KeepsTwoGroupsThatAreFaster) {
  Chooser chooser;
  const Costs costs{.half_us = 300};
  EXPECT_EQ(StepsToChange(&chooser, costs), Chooser::kWindowSteps);
  Feed(&chooser, costs, kTrialSteps + Chooser::kFirstPause - 1);
  EXPECT_EQ(chooser.groups(), 2);
}

TEST(DecodeGroupChooserTest, NeverTriesWhereTheWaitIsShort) {
  Chooser chooser;
  EXPECT_EQ(StepsToChange(&chooser, {.wait_us = 250, .half_us = 1}, kLong), kLong);
  EXPECT_EQ(StepsToChange(&chooser, {.wait_us = 251, .half_us = 1}, kLong), Chooser::kWindowSteps);
}

TEST(DecodeGroupChooserTest, NeverTriesWithOneSequence) {
  Chooser chooser;
  EXPECT_EQ(StepsToChange(&chooser, {.rows = 1, .wait_us = 900}, kLong), kLong);
}

TEST(DecodeGroupChooserTest, GoesBackUnlessTwoAreClearlyFaster) {
  Chooser chooser;
  const Costs costs{.half_us = 477};  // 1.048 times as fast
  StepsToChange(&chooser, costs);
  EXPECT_EQ(StepsToChange(&chooser, costs), kTrialSteps);
  EXPECT_EQ(chooser.groups(), 1);
}

TEST(DecodeGroupChooserTest, ATrialThatIsSlowerEndsEarly) {
  Chooser chooser;
  const Costs costs{.half_us = 501};
  StepsToChange(&chooser, costs);
  EXPECT_EQ(StepsToChange(&chooser, costs), Chooser::kSkippedSteps + Chooser::kEarlySteps);
  EXPECT_EQ(chooser.groups(), 1);
}

TEST(DecodeGroupChooserTest, TheFirstStepsAfterAChangeDoNotCount) {
  Chooser chooser;
  StepsToChange(&chooser, {});
  for (int i = 0; i < Chooser::kSkippedSteps; ++i) chooser.OnStep(2, 1, 1'000'000'000, 0);
  chooser.OnStep(1, 8, 1'000'000'000, 0);  // was planned before the change
  Feed(&chooser, {.half_us = 300}, Chooser::kWindowSteps);
  EXPECT_EQ(chooser.groups(), 2);
}

TEST(DecodeGroupChooserTest, TrialsInVainBecomeRarer) {
  Chooser chooser;
  const Costs costs;
  StepsToChange(&chooser, costs);
  int last = 0;
  for (int trial = 0; trial < 12; ++trial) {
    EXPECT_EQ(StepsToChange(&chooser, costs), kTrialSteps);
    const int pause = StepsToChange(&chooser, costs);
    EXPECT_TRUE(pause >= 2 * last - Chooser::kSkippedSteps || pause > Chooser::kLongestPause);
    EXPECT_LE(pause, Chooser::kLongestPause + kTrialSteps);
    last = pause;
  }
  EXPECT_GT(last, Chooser::kLongestPause);
}

TEST(DecodeGroupChooserTest, LeavesTwoGroupsWhenTheExpertsBecomeFast) {
  Chooser chooser;
  Feed(&chooser, {.half_us = 300}, 2 * kTrialSteps);
  ASSERT_EQ(chooser.groups(), 2);
  const Costs fast{.one_us = 500, .wait_us = 50, .half_us = 300};
  Feed(&chooser, fast, Chooser::kFirstPause + 2 * kTrialSteps);
  EXPECT_EQ(chooser.groups(), 1);
  Feed(&chooser, fast, 5000);
  EXPECT_EQ(chooser.groups(), 1);
}

TEST(DecodeGroupChooserTest, OddTimesDoNoHarm) {
  Chooser chooser;
  for (const int64_t time : {INT64_MIN, int64_t{-1}, int64_t{0}, INT64_MAX}) {
    for (int i = 0; i < 100; ++i) chooser.OnStep(1, 8, time, time / 2);
    for (int i = 0; i < 100; ++i) chooser.OnStep(2, 4, time, time);
  }
  EXPECT_GE(chooser.groups(), 1);
  EXPECT_LE(chooser.groups(), 2);
}

}  // namespace
}  // namespace tandem
