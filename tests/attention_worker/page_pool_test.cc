#include "attention_worker/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

using Numbers = std::vector<int32_t>;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotNow = absl::StatusCode::kFailedPrecondition;
constexpr auto kExhausted = absl::StatusCode::kResourceExhausted;

Numbers Ids(const PageLease& lease) { return {lease.page_ids().begin(), lease.page_ids().end()}; }

TEST(SessionPagesTest, EveryNumberHasMemoryOfItsOwn) {
  PagePool pool(3);
  SessionPages pages(&pool);
  const PageLease first = pages.Take(Numbers{2});
  const PageLease rest = pages.Take(Numbers{0, 1});
  Numbers all = Ids(first);
  all.insert(all.end(), rest.page_ids().begin(), rest.page_ids().end());
  std::sort(all.begin(), all.end());
  EXPECT_THAT(all, ElementsAre(0, 1, 2));
  EXPECT_EQ(pool.free_pages(), 0);
}

TEST(SessionPagesTest, RefusesNumbersThatCannotBeTaken) {
  PagePool pool(3);
  SessionPages pages(&pool);
  const PageLease lease = pages.Take(Numbers{1});
  EXPECT_TRUE(pages.CheckTake(Numbers{0, 2}).ok());
  EXPECT_EQ(pages.CheckTake(Numbers{0, 3}).code(), kInvalid);
  EXPECT_EQ(pages.CheckTake(Numbers{-1}).code(), kInvalid);
  EXPECT_EQ(pages.CheckTake(Numbers{2, 0, 2}).code(), kInvalid);
  EXPECT_EQ(pages.CheckTake(Numbers{0, 1}).code(), kNotNow);
}

TEST(SessionPagesTest, OnlyFullPagesAreSharedAndKeepTheirMemory) {
  PagePool pool(3);
  SessionPages pages(&pool);
  PageLease writer = pages.Take(Numbers{0, 1, 2});
  writer.SetFull(0, 2);
  EXPECT_TRUE(pages.CheckShare(Numbers{1, 0}).ok());
  EXPECT_EQ(pages.CheckShare(Numbers{0, 2}).code(), kNotNow);
  EXPECT_EQ(pages.CheckShare(Numbers{3}).code(), kInvalid);
  EXPECT_EQ(pages.CheckShare(Numbers{-1}).code(), kInvalid);
  const int32_t id = writer.page_ids()[1];
  writer.GiveBack();
  EXPECT_EQ(pool.free_pages(), 3);
  const PageLease reader = pages.Share(Numbers{1});
  EXPECT_THAT(Ids(reader), ElementsAre(id));
}

TEST(SessionPagesTest, APageIsHeldAsLongAsOneSequenceHasIt) {
  PagePool pool(2);
  SessionPages pages(&pool);
  PageLease writer = pages.Take(Numbers{0});
  writer.SetFull(0, 1);
  PageLease reader = pages.Share(Numbers{0});
  writer.GiveBack();
  EXPECT_EQ(pool.free_pages(), 1);
  EXPECT_EQ(pages.CheckTake(Numbers{0}).code(), kNotNow);
  reader.GiveBack();
  EXPECT_EQ(pool.free_pages(), 2);
  EXPECT_TRUE(pages.CheckTake(Numbers{0}).ok());
}

TEST(SessionPagesTest, APageThatIsTakenAgainIsNotFull) {
  PagePool pool(1);
  SessionPages pages(&pool);
  pages.Take(Numbers{0}).SetFull(0, 1);
  EXPECT_TRUE(pages.CheckShare(Numbers{0}).ok());
  const PageLease lease = pages.Take(Numbers{0});
  EXPECT_EQ(pages.CheckShare(Numbers{0}).code(), kNotNow);
}

TEST(SessionPagesTest, AnotherSessionGetsWhatIsKeptButNotWhatIsHeld) {
  PagePool pool(3);
  SessionPages first(&pool), second(&pool);
  PageLease held = first.Take(Numbers{0});
  held.SetFull(0, 1);
  first.Take(Numbers{1, 2}).SetFull(0, 2);
  EXPECT_EQ(second.CheckTake(Numbers{0, 1, 2}).code(), kExhausted);
  EXPECT_TRUE(second.CheckTake(Numbers{0, 1}).ok());
  const PageLease taken = second.Take(Numbers{0, 1});
  EXPECT_EQ(first.CheckShare(Numbers{1}).code(), kNotNow);
  EXPECT_EQ(first.CheckShare(Numbers{2}).code(), kNotNow);
  EXPECT_TRUE(first.CheckShare(Numbers{0}).ok());
  EXPECT_EQ(first.CheckTake(Numbers{1}).code(), kExhausted);
}

TEST(SessionPagesTest, WhatASessionKeptIsUnusedAfterItsEnd) {
  PagePool pool(2);
  {
    SessionPages pages(&pool);
    pages.Take(Numbers{0, 1}).SetFull(0, 2);
  }
  SessionPages pages(&pool);
  EXPECT_EQ(pages.CheckShare(Numbers{0}).code(), kNotNow);
  EXPECT_TRUE(pages.CheckTake(Numbers{0, 1}).ok());
}

TEST(PageLeaseTest, ExtendsInOrderAndKeepsItsFirstPages) {
  PagePool pool(6);
  SessionPages pages(&pool);
  PageLease lease = pages.Take(Numbers{0, 1});
  Numbers expected = Ids(lease);
  PageLease more = pages.Take(Numbers{2, 3, 4});
  const Numbers added = Ids(more);
  expected.insert(expected.end(), added.begin(), added.end());
  lease.Extend(std::move(more));
  EXPECT_THAT(Ids(lease), ElementsAreArray(expected));
  EXPECT_EQ(pool.free_pages(), 1);
  lease.GiveBack();
  EXPECT_EQ(lease.num_pages(), 0);
  EXPECT_EQ(pool.free_pages(), 6);
}

TEST(PageLeaseTest, ExtendsFromAndByNothing) {
  PagePool pool(2);
  SessionPages pages(&pool);
  PageLease lease;
  lease.Extend(PageLease());
  lease.Extend(pages.Take(Numbers{0, 1}));
  lease.Extend(pages.Take({}));
  EXPECT_EQ(lease.num_pages(), 2);
}

TEST(PageLeaseTest, MovingGivesBackWhatWasHeldBefore) {
  PagePool pool(5);
  SessionPages pages(&pool);
  PageLease a = pages.Take(Numbers{0, 1});
  PageLease b = pages.Take(Numbers{2, 3, 4});
  const Numbers of_b = Ids(b);
  a = std::move(b);
  EXPECT_EQ(pool.free_pages(), 2);
  EXPECT_THAT(Ids(a), ElementsAreArray(of_b));
}

}  // namespace
}  // namespace tandem
