#include "common/time_after.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

TEST(TimeAfterTest, AddsAndNeverOverflows) {
  const Clock::time_point now = Clock::now();
  EXPECT_EQ(After(now, absl::Milliseconds(5)), now + std::chrono::milliseconds(5));
  EXPECT_EQ(After(now, -absl::Hours(2)), now - std::chrono::hours(2));
  EXPECT_EQ(After(now, absl::InfiniteDuration()), now + std::chrono::hours(24 * 365));
  EXPECT_LT(After(now, -absl::InfiniteDuration()), now);
}

}  // namespace
}  // namespace tandem
