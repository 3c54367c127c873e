#include "deployment/expert_capacity.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

constexpr absl::Duration kPause = ExpertCapacity::kFirstPause;

TEST(ExpertCapacityTest, GrowsAgainAfterAPauseThatEachShortageDoubles) {
  const absl::Time start = absl::UnixEpoch();
  ExpertCapacity capacity(100);
  EXPECT_EQ(capacity.experts(), 100);
  EXPECT_FALSE(capacity.MayGrow(start));
  capacity.Shrink(20, start);
  EXPECT_EQ(capacity.experts(), 20);
  EXPECT_FALSE(capacity.MayGrow(start + kPause - absl::Seconds(1)));
  ASSERT_TRUE(capacity.MayGrow(start + kPause));
  EXPECT_TRUE(capacity.Grow(70));
  EXPECT_EQ(capacity.experts(), 70);
  EXPECT_TRUE(capacity.MayGrow(start + kPause));
  EXPECT_TRUE(capacity.Grow(1000));
  EXPECT_EQ(capacity.experts(), 100);
  EXPECT_FALSE(capacity.MayGrow(start + kPause));

  capacity.Shrink(20, start);
  EXPECT_FALSE(capacity.MayGrow(start + kPause));
  EXPECT_TRUE(capacity.MayGrow(start + 2 * kPause));
}

TEST(ExpertCapacityTest, APauseHasAnEnd) {
  ExpertCapacity capacity(100);
  for (int i = 0; i < 100; ++i) capacity.Shrink(20, absl::UnixEpoch());
  EXPECT_TRUE(capacity.MayGrow(absl::UnixEpoch() + ExpertCapacity::kLongestPause));
}

TEST(ExpertCapacityTest, ALittleRoomChangesNothing) {
  ExpertCapacity capacity(100);
  capacity.Shrink(20, absl::UnixEpoch());
  EXPECT_FALSE(capacity.Grow(39));
  EXPECT_FALSE(capacity.Grow(10));
  EXPECT_EQ(capacity.experts(), 20);
  EXPECT_TRUE(capacity.Grow(40));
}

}  // namespace
}  // namespace tandem
