#include "common/work_clock.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

void WaitUntilItSays(const WorkClock& clock, absl::Duration time) {
  while (clock.elapsed() < time) {
  }
}

TEST(WorkClockTest, CountsSinceThePieceBegan) {
  WorkClock clock;
  EXPECT_EQ(clock.elapsed(), absl::ZeroDuration());
  clock.Begin();
  WaitUntilItSays(clock, absl::Milliseconds(2));
  clock.Begin();
  EXPECT_LT(clock.elapsed(), absl::Seconds(1));
  clock.Rest();
  EXPECT_EQ(clock.elapsed(), absl::ZeroDuration());
}

TEST(WorkClockTest, WorkThatIsGivenCountsUnlessOtherWorkIsUnderWay) {
  WorkClock clock;
  clock.Given();
  WaitUntilItSays(clock, absl::Milliseconds(2));
  const absl::Duration waited = clock.elapsed();
  clock.Given();  // more of it does not start the time again
  EXPECT_GE(clock.elapsed(), waited);
}

}  // namespace
}  // namespace tandem
