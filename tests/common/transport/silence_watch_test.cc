#include "common/transport/silence_watch.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

using std::chrono::milliseconds;

class SilenceWatchTest : public testing::Test {
 protected:
  // Looks every 100 ms for so long; returns whether it fell silent.
  bool LookFor(int ms, bool excused = false) {
    bool fell_silent = false;
    for (int passed = 0; passed < ms; passed += 100) {
      now_ += milliseconds(100);
      fell_silent = watch_.Look(now_, excused) || fell_silent;
    }
    return fell_silent;
  }

  SilenceWatch::TimePoint now_{std::chrono::hours(1)};
  SilenceWatch watch_{
      {milliseconds(700), milliseconds(3000), milliseconds(10000), milliseconds(100)}, now_};
};

TEST_F(SilenceWatchTest, IsSilentOnceItHasSaidNothingForSoLong) {
  EXPECT_FALSE(LookFor(600));
  EXPECT_EQ(watch_.due(), now_ + milliseconds(100));
  EXPECT_FALSE(watch_.Heard(now_));
  EXPECT_FALSE(LookFor(600));
  EXPECT_TRUE(LookFor(100));
  EXPECT_TRUE(watch_.silent());
  EXPECT_FALSE(LookFor(1000));  // said once
  EXPECT_TRUE(watch_.Heard(now_));
  EXPECT_FALSE(watch_.silent());
  EXPECT_FALSE(watch_.Heard(now_));
}

TEST_F(SilenceWatchTest, AFalseSuspicionDoublesTheTimeUntilItIsForgotten) {
  EXPECT_TRUE(LookFor(700));
  watch_.Heard(now_);
  EXPECT_FALSE(LookFor(1300));
  EXPECT_TRUE(LookFor(100));
  watch_.Heard(now_);
  EXPECT_FALSE(LookFor(2700));
  EXPECT_TRUE(LookFor(100));
  watch_.Heard(now_);
  EXPECT_FALSE(LookFor(2900));  // the most, not 5600
  EXPECT_TRUE(LookFor(100));
  watch_.Heard(now_);
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(LookFor(500));
    watch_.Heard(now_);
  }
  EXPECT_TRUE(LookFor(700));
}

TEST_F(SilenceWatchTest, WhatMayTakeItsTimeIsNotSilence) {
  EXPECT_FALSE(LookFor(5000, true));
  EXPECT_FALSE(LookFor(600));
  EXPECT_TRUE(LookFor(100));
}

TEST_F(SilenceWatchTest, AStopOfThisProcessIsNotThePeersSilence) {
  now_ += milliseconds(5000);
  EXPECT_FALSE(watch_.Look(now_, false));
  EXPECT_FALSE(LookFor(600));
  EXPECT_TRUE(LookFor(100));
}

}  // namespace
}  // namespace tandem
