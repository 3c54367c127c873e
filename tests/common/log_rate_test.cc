#include "common/log_rate.h"

#include <chrono>

#include "gtest/gtest.h"

namespace tandem {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(LogRateTest, SomeLinesAtOnceThenOneASecondWithWhatWasLeftOut) {
  LogRate rate;
  LogRate::Clock::time_point now(seconds(1000));
  for (int64_t i = 0; i < LogRate::kBurst; ++i) EXPECT_EQ(rate.Take(now), "");
  EXPECT_EQ(rate.Take(now), std::nullopt);
  EXPECT_EQ(rate.Take(now + milliseconds(999)), std::nullopt);
  EXPECT_EQ(rate.Take(now + seconds(1)), " (2 more like this were not logged)");
  EXPECT_EQ(rate.Take(now + seconds(1)), std::nullopt);
  // After a rest the lines are there again, and no more of them.
  now += seconds(3600);
  EXPECT_EQ(rate.Take(now), " (1 more like this were not logged)");
  for (int64_t i = 1; i < LogRate::kBurst; ++i) EXPECT_EQ(rate.Take(now), "");
  EXPECT_EQ(rate.Take(now), std::nullopt);
}

}  // namespace
}  // namespace tandem
