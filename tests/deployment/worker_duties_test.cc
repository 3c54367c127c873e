#include "deployment/worker_duties.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

Placement Version(uint64_t counter) {
  Placement placement;
  placement.version = {1, counter};
  return placement;
}

TEST(WorkerDutiesTest, OnlyTheNewestOrderIsCarriedOut) {
  WorkerDuties duties;
  duties.Accepted(7);
  EXPECT_FALSE(duties.has_work());
  duties.Load(Version(1));
  duties.Use({1, 1});
  duties.Load(Version(2));
  const WorkerDuties::Work work = duties.TakeWork();
  ASSERT_TRUE(work.load.has_value());
  EXPECT_EQ(work.load->placement.version.counter, 2u);
  EXPECT_EQ(work.load->self, 7u);
  EXPECT_EQ(work.retire, (PlacementVersion{1, 1}));
  EXPECT_FALSE(duties.has_work());
  EXPECT_FALSE(duties.IsSuperseded(*work.load));
  duties.Load(Version(3));
  EXPECT_TRUE(duties.IsSuperseded(*work.load));
}

TEST(WorkerDutiesTest, AnOrderEndsWithItsMembership) {
  WorkerDuties duties;
  duties.Accepted(7);
  duties.Load(Version(1));
  const WorkerDuties::Work begun = duties.TakeWork();
  duties.Load(Version(2));
  duties.Lost();
  EXPECT_FALSE(duties.has_work());
  EXPECT_TRUE(duties.IsSuperseded(*begun.load));
  duties.Accepted(8);
  EXPECT_TRUE(duties.IsSuperseded(*begun.load));
  duties.Load(Version(1));
  EXPECT_EQ(duties.TakeWork().load->self, 8u);
}

TEST(WorkerDutiesTest, ADrainingWorkerMayEndOnceReleasedOrAlone) {
  WorkerDuties duties;
  duties.Accepted(7);
  EXPECT_FALSE(duties.draining());
  duties.Drain(absl::UnixEpoch());
  EXPECT_TRUE(duties.draining());
  EXPECT_EQ(duties.drain_until(), absl::UnixEpoch());
  EXPECT_FALSE(duties.may_end());
  duties.Lost();
  EXPECT_TRUE(duties.may_end());
  duties.Accepted(8);
  EXPECT_FALSE(duties.may_end());
  duties.Released();
  EXPECT_TRUE(duties.may_end());
}

}  // namespace
}  // namespace tandem
