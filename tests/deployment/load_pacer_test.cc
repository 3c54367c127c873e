#include "deployment/load_pacer.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

using absl::Milliseconds;

TEST(LoadPacerTest, LoadingHasItsShareWhileTheEngineWorks) {
  const LoadPacer pacer(0.2);
  EXPECT_EQ(pacer.Pause(Milliseconds(10), Milliseconds(10), 1), Milliseconds(40));
  // Of many pieces of any length, a fifth of the time.
  absl::Duration computed, passed;
  for (int ms = 1; ms <= 100; ++ms) {
    const absl::Duration piece = Milliseconds(ms * 37 % 101);
    computed += piece;
    passed += piece + pacer.Pause(piece, piece, 1);
  }
  EXPECT_NEAR(absl::FDivDuration(computed, passed), 0.2, 1e-6);
}

TEST(LoadPacerTest, NothingIsPacedWhileTheEngineRests) {
  EXPECT_EQ(LoadPacer(0.2).Pause(Milliseconds(10), Milliseconds(10), 0), absl::ZeroDuration());
  EXPECT_EQ(LoadPacer(1).Pause(Milliseconds(10), Milliseconds(10), 1), absl::ZeroDuration());
  // In between: 60% are allowed.
  EXPECT_NEAR(
      absl::ToDoubleMilliseconds(LoadPacer(0.2).Pause(Milliseconds(6), Milliseconds(6), 0.5)), 4,
      1e-3);
}

TEST(LoadPacerTest, WaitingForTheDiskCountsAsAPause) {
  const LoadPacer pacer(0.2);
  EXPECT_EQ(pacer.Pause(Milliseconds(10), Milliseconds(30), 1), Milliseconds(20));
  EXPECT_EQ(pacer.Pause(Milliseconds(10), absl::Seconds(5), 1), absl::ZeroDuration());
}

TEST(LoadPacerTest, APauseHasAnEnd) {
  EXPECT_EQ(LoadPacer(0.01).Pause(absl::Seconds(60), absl::Seconds(60), 7),
            LoadPacer::kLongestPause);
}

}  // namespace
}  // namespace tandem
