#include "gateway/queue_pace.h"

#include "gtest/gtest.h"

namespace tandem {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();

TEST(QueuePaceTest, IsTheMeanTimeBetweenTwoThatLeave) {
  QueuePace pace;
  EXPECT_EQ(pace.WaitOf(100), absl::ZeroDuration());
  pace.Observe(10, 0, kStart);
  pace.Observe(9, 1, kStart + absl::Seconds(2));
  EXPECT_EQ(pace.WaitOf(9), absl::Seconds(18));
  pace.Observe(5, 5, kStart + absl::Seconds(10));  // four more, two seconds each
  EXPECT_EQ(pace.WaitOf(5), absl::Seconds(10));
  for (int i = 1; i <= 100; ++i) pace.Observe(5, 5 + i, kStart + absl::Seconds(10 + i));
  EXPECT_NEAR(absl::ToDoubleSeconds(pace.WaitOf(1)), 1, 0.01);
}

TEST(QueuePaceTest, TimeInWhichNobodyWaitsDoesNotCount) {
  QueuePace pace;
  pace.Observe(1, 0, kStart);
  pace.Observe(0, 1, kStart + absl::Seconds(1));
  pace.Observe(0, 2, kStart + absl::Seconds(100));  // came and left at once
  pace.Observe(3, 2, kStart + absl::Seconds(200));
  pace.Observe(2, 3, kStart + absl::Seconds(201));
  EXPECT_EQ(pace.WaitOf(1), absl::Seconds(1));
}

TEST(QueuePaceTest, WhoIsPutBackHasNotLeft) {
  QueuePace pace;
  pace.Observe(3, 5, kStart);
  pace.Observe(4, 4, kStart + absl::Seconds(50));
  pace.Observe(3, 5, kStart + absl::Seconds(51));
  EXPECT_EQ(pace.WaitOf(1), absl::Seconds(1));
  pace.Observe(3, 5, kStart + absl::Seconds(52));
  EXPECT_EQ(pace.WaitOf(1), absl::Seconds(1));
}

}  // namespace
}  // namespace tandem
