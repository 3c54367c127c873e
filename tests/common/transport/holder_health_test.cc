#include "common/transport/holder_health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <utility>

#include "common/transport/holder_choice.h"

namespace tandem {
namespace {

using std::chrono::milliseconds;

constexpr HolderHealth::TimePoint kStart = HolderHealth::TimePoint(std::chrono::hours(1));
constexpr absl::Duration kMs = absl::Milliseconds(1);

HolderHealth::TimePoint At(int ms) { return kStart + milliseconds(ms); }

HolderHealth MakeHolder() { return HolderHealth({1, "", 0}, {}); }

// ---- AnswerTimes --------------------------------------------------------------------------------

TEST(AnswerTimesTest, NothingIsExpectedBeforeTheFirstAnswer) {
  EXPECT_EQ(AnswerTimes().Expected(100), std::nullopt);
}

TEST(AnswerTimesTest, PartsOfOneSizeAreExpectedByTheirWork) {
  AnswerTimes times;
  times.Add(64, 8 * kMs);
  EXPECT_EQ(times.Expected(64), 8 * kMs);
  EXPECT_EQ(times.Expected(128), 16 * kMs);
}

TEST(AnswerTimesTest, LongerTimesCountMoreThanShorterOnes) {
  AnswerTimes times;
  for (int i = 0; i < 200; ++i) times.Add(100, (i % 5 == 0 ? 10 : 2) * kMs);
  EXPECT_GT(times.Expected(100), 4 * kMs);
  // One that is far out is forgotten after some tens of others.
  times.Add(100, absl::Seconds(1));
  EXPECT_GT(times.Expected(100), 200 * kMs);
  for (int i = 0; i < 60; ++i) times.Add(100, 2 * kMs);
  EXPECT_LT(times.Expected(100), 10 * kMs);
}

TEST(AnswerTimesTest, SizesAreApart) {
  AnswerTimes times;
  times.Add(20, 2 * kMs);
  times.Add(20'000, 400 * kMs);
  EXPECT_EQ(times.Expected(20), 2 * kMs);
  EXPECT_EQ(times.Expected(20'000), 400 * kMs);
  // By the nearest smaller size: a hundred times the work of 20, as large parts may take.
  EXPECT_EQ(times.Expected(2'000), 200 * kMs);
  // If there is none, as long as the smallest part of a larger size, which is of 16.
  EXPECT_EQ(times.Expected(1), 1.6 * kMs);
}

// ---- HolderHealth -------------------------------------------------------------------------------

TEST(HolderHealthTest, IsPutAsideForTwiceAsLongAfterEachFailure) {
  HolderHealth holder = MakeHolder();
  EXPECT_FALSE(holder.aside());
  int now = 0;
  for (const int pause : {500, 1000, 2000, 4000, 8000, 16000, 16000}) {
    holder.Failed(At(now), At(now));
    EXPECT_TRUE(holder.aside());
    EXPECT_FALSE(holder.ProbeIsDue(At(now + pause - 1)));
    EXPECT_TRUE(holder.ProbeIsDue(At(now + pause)));
    now += pause;
  }
}

TEST(HolderHealthTest, OneFaultIsOneFailureHoweverManyPartsAreOut) {
  HolderHealth holder = MakeHolder();
  for (int i = 0; i < 5; ++i) holder.Failed(At(i), At(10 + i));
  EXPECT_EQ(holder.reluctance(), 1);
  EXPECT_TRUE(holder.ProbeIsDue(At(510)));
  // Also of those that come to their end when its time is up.
  holder.Failed(At(6), At(700));
  EXPECT_EQ(holder.reluctance(), 1);
}

TEST(HolderHealthTest, OnlyWhatIsSentWhenItsTimeIsUpBringsItBack) {
  HolderHealth holder = MakeHolder();
  holder.Failed(At(0), At(100));
  holder.Answered(At(50), At(700), /*slow=*/false);   // sent before
  holder.Answered(At(599), At(605), /*slow=*/false);  // sent meanwhile
  EXPECT_TRUE(holder.aside());
  holder.Answered(At(600), At(605), /*slow=*/false);
  EXPECT_FALSE(holder.aside());
  EXPECT_EQ(holder.reluctance(), 0);
}

TEST(HolderHealthTest, ASlowAnswerDoesNotBringItBack) {
  HolderHealth holder = MakeHolder();
  holder.Failed(At(0), At(0));
  holder.Answered(At(500), At(510), /*slow=*/true);
  EXPECT_TRUE(holder.aside());
  EXPECT_FALSE(holder.ProbeIsDue(At(1509)));
  EXPECT_TRUE(holder.ProbeIsDue(At(1510)));
}

TEST(HolderHealthTest, IsPutAsideAfterFourSlowAnswersInARow) {
  HolderHealth holder = MakeHolder();
  for (int i = 0; i < 3; ++i) holder.Answered(At(i), At(i), /*slow=*/true);
  holder.Answered(At(3), At(3), /*slow=*/false);
  for (int i = 4; i < 7; ++i) holder.Answered(At(i), At(i), /*slow=*/true);
  EXPECT_FALSE(holder.aside());
  holder.Answered(At(7), At(7), /*slow=*/true);
  EXPECT_TRUE(holder.aside());
}

TEST(HolderHealthTest, FailuresAreForgottenOnceItHasBeenBackForAsLongAsItWasAside) {
  for (const bool too_soon : {true, false}) {
    HolderHealth holder = MakeHolder();
    holder.Failed(At(0), At(0));
    holder.Failed(At(500), At(500));  // for a second
    holder.Answered(At(1500), At(1500), /*slow=*/false);
    const int again = too_soon ? 2499 : 2500;
    holder.Failed(At(again), At(again));
    EXPECT_EQ(holder.reluctance(), too_soon ? 3 : 1);
    EXPECT_EQ(holder.ProbeIsDue(At(again + 500)), !too_soon);
    EXPECT_EQ(holder.ProbeIsDue(At(again + 1999)), !too_soon);
    EXPECT_TRUE(holder.ProbeIsDue(At(again + 2000)));
  }
}

TEST(HolderHealthTest, IsProbedOnceAtATime) {
  HolderHealth holder = MakeHolder();
  EXPECT_FALSE(holder.ProbeIsDue(At(0)));
  holder.Failed(At(0), At(0));
  holder.set_probing(true);
  EXPECT_FALSE(holder.ProbeIsDue(At(600)));
  holder.set_probing(false);
  EXPECT_TRUE(holder.ProbeIsDue(At(600)));
  holder.ProbeLater(At(600));
  EXPECT_FALSE(holder.ProbeIsDue(At(1099)));
  EXPECT_TRUE(holder.ProbeIsDue(At(1100)));
  EXPECT_EQ(holder.reluctance(), 1);
}

// ---- WorkOut ------------------------------------------------------------------------------------

TEST(WorkOutTest, WorkIsOutForAsLongAsItLives) {
  const auto holder = std::make_shared<HolderHealth>(Placement::Worker{1, "", 0}, AsideTimes());
  {
    WorkOut first(holder, 20);
    const WorkOut second(holder, 3);
    EXPECT_EQ(first.in_line(), 20);
    EXPECT_EQ(second.in_line(), 23);
    EXPECT_EQ(holder->work_out(), 23);
    const WorkOut moved = std::move(first);
    EXPECT_EQ(holder->work_out(), 23);
  }
  EXPECT_EQ(holder->work_out(), 0);
}

// ---- HolderTable --------------------------------------------------------------------------------

// Workers 1, 2, ..., which take so many milliseconds for 100 units of work.
HolderTable MakeTable(const std::vector<int>& times_ms) {
  HolderTable table(AsideTimes{});
  for (size_t i = 0; i < times_ms.size(); ++i) {
    table.Of({static_cast<WorkerId>(i + 1), "", 0})->Measured(100, times_ms[i] * kMs);
  }
  return table;
}

TEST(HolderTableTest, ExpectsWhatTheMiddleWorkerTakes) {
  EXPECT_EQ(HolderTable(AsideTimes{}).ExpectedTime(100), std::nullopt);
  EXPECT_EQ(MakeTable({7}).ExpectedTime(100), 7 * kMs);
  EXPECT_EQ(MakeTable({30, 3}).ExpectedTime(100), 3 * kMs);  // the slower one may be ill
  EXPECT_EQ(MakeTable({1, 30, 3}).ExpectedTime(100), 3 * kMs);
  EXPECT_EQ(MakeTable({4, 1, 30, 3}).ExpectedTime(100), 3 * kMs);
}

TEST(HolderTableTest, WorkersThatAreAsideSayNothingOfTheOthers) {
  HolderTable table = MakeTable({1, 2, 30});
  table.Of({1, "", 0})->Failed(kStart, kStart);
  table.Of({2, "", 0})->Failed(kStart, kStart);
  EXPECT_EQ(table.num_aside(), 2);
  EXPECT_EQ(table.ExpectedTime(100), 30 * kMs);
  table.Of({3, "", 0})->Failed(kStart, kStart);
  EXPECT_EQ(table.ExpectedTime(100), 2 * kMs);
}

TEST(HolderTableTest, AnAnswerIsSlowBeyondFourTimesWhatIsExpected) {
  const HolderTable table = MakeTable({10, 10});
  EXPECT_FALSE(table.IsSlow(100, 40 * kMs));
  EXPECT_TRUE(table.IsSlow(100, 41 * kMs));
  EXPECT_FALSE(MakeTable({}).IsSlow(100, absl::Hours(1)));
  // Nothing within five milliseconds is.
  EXPECT_FALSE(MakeTable({1, 1}).IsSlow(100, 5 * kMs));
  EXPECT_TRUE(MakeTable({1, 1}).IsSlow(100, 6 * kMs));
}

TEST(HolderTableTest, AWorkerThatLeavesOrIsAnotherProcessIsForgotten) {
  HolderTable table = MakeTable({10, 10, 10});
  const auto old = table.Of({2, "", 0});
  for (WorkerId id = 1; id <= 3; ++id) table.Of({id, "", 0})->Failed(kStart, kStart);
  Placement placement;
  placement.workers = {{1, "", 0}, {2, "", 77}};
  table.Keep(placement);
  EXPECT_EQ(table.num_aside(), 1);
  EXPECT_EQ(table.Find(3), nullptr);
  EXPECT_FALSE(table.Of({2, "", 77})->aside());
  EXPECT_TRUE(table.Of({1, "", 0})->aside());
  // What is still out there may still be told of it.
  old->Failed(At(1000), At(1000));
  EXPECT_FALSE(table.Of({2, "", 77})->aside());
}

}  // namespace
}  // namespace tandem
