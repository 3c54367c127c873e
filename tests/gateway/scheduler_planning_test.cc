// What goes into a step, and decoding in groups.
#include <set>

#include "gateway/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/scheduler_house.h"

namespace tandem {
namespace {

using ::testing::AnyOf;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(SchedulerTest, PlansTheSecondStepWhileTheFirstRuns) {
  House house;
  house.AddWorker(1, 4);
  house.Add(MakeJob(10, 3));
  const auto first = house.Plan(1);
  ASSERT_TRUE(first.has_value());
  EXPECT_FALSE(first->new_batches[0].runs[0].last_sampled);
  const auto second = house.Plan(1);
  ASSERT_TRUE(second.has_value());
  EXPECT_TRUE(second->new_batches[0].runs[0].last_sampled);
  EXPECT_EQ(second->new_batches[0].runs[0].first_position, 10);
  EXPECT_FALSE(house.Plan(1).has_value());  // two are outstanding
}

TEST(SchedulerTest, NeverPlansRowsBeyondTheLastToken) {
  House house;
  house.AddWorker(1, 4);
  house.Add(MakeJob(10, 1));
  EXPECT_TRUE(house.Plan(1).has_value());
  EXPECT_FALSE(house.Plan(1).has_value());
}

TEST(SchedulerTest, ShortPromptsShareABatchAndALongOneGoesInChunks) {
  SchedulerPolicy policy;
  policy.max_batch_rows = 100;
  House house(policy);
  house.AddWorker(1, 20);
  house.Add(MakeJob(30, 2, 1));
  house.Add(MakeJob(40, 2, 2));
  house.Add(MakeJob(200, 2, 3));
  const auto first = house.Plan(1);
  ASSERT_EQ(first->new_batches.size(), 1u);
  ASSERT_EQ(first->new_batches[0].runs.size(), 3u);
  EXPECT_EQ(first->new_batches[0].runs[2].count, 30);
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(house.max_rows, 100);
  for (JobId id = 1; id <= 3; ++id) house.CheckOutcome(id);
  house.CheckAllFree();
}

TEST(SchedulerTest, AJobMayAskForSmallerBatches) {
  House house;
  house.AddWorker(1, 20);
  Job job = MakeJob(100, 2);
  job.max_rows_per_batch = 33;
  house.Add(std::move(job));
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(house.max_rows, 33);
  house.CheckAllFree();
}

TEST(SchedulerTest, PrefillGoesSomeLayersPerStepWhileDecodingGoesThroughAll) {
  SchedulerPolicy policy;
  policy.max_layers_per_step = 2;
  policy.prefill_step_target = 0;
  House house(policy);
  house.AddWorker(1, 20);
  house.Add(MakeJob(10, 30, 1));
  for (int i = 0; i < 3; ++i) {  // 2 + 2 + 1 layers
    house.Plan(1);
    house.Work(1);
    house.Deliver(1);
  }
  house.Add(MakeJob(10, 2, 2));
  const auto step = house.Plan(1);
  ASSERT_EQ(step->advance.size(), 2u);
  EXPECT_EQ(step->advance[0].end_layer, kLayers);
  EXPECT_EQ(step->advance[1].end_layer, 2);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, PreemptsYoungestWhenPagesRunOut) {
  House house;
  house.AddWorker(1, 4);
  const JobId old_job = house.Add(MakeJob(60, 130, 1));    // 3 pages in the end
  const JobId young_job = house.Add(MakeJob(60, 130, 2));  // likewise
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_GT(house.scheduler.preemptions(), 0);
  house.CheckOutcome(old_job);
  house.CheckOutcome(young_job);
  house.CheckAllFree();
}

TEST(SchedulerTest, JobsGoToTheWorkerWithMostFreePages) {
  House house;
  house.AddWorker(1, 4);
  house.AddWorker(2, 8);
  house.Add(MakeJob(60, 10));
  EXPECT_FALSE(house.Plan(1).has_value());
  EXPECT_TRUE(house.Plan(2).has_value());
}

// ---- groups ----

SchedulerPolicy TwoGroups() {
  SchedulerPolicy policy;
  policy.decode_groups = 2;
  policy.prefill_step_target = 0;
  return policy;
}

// Adds jobs and brings them to where they only decode, with nothing outstanding.
void StartDecoding(House* house, int jobs, int max_new_tokens) {
  for (int i = 0; i < jobs; ++i) house->Add(MakeJob(10, max_new_tokens, i));
  house->Plan(1);
  house->Work(1);
  house->Deliver(1);
}

TEST(SchedulerTest, TwoGroupsAlternateAndShareNoSequence) {
  House house(TwoGroups());
  house.AddWorker(1, 20);
  StartDecoding(&house, 5, 30);
  const std::set<SequenceId> first = SequencesOf(house.Plan(1));
  const std::set<SequenceId> second = SequencesOf(house.Plan(1));
  EXPECT_THAT(first, SizeIs(AnyOf(2, 3)));
  EXPECT_THAT(second, SizeIs(5 - first.size()));
  for (const SequenceId sequence : first) EXPECT_FALSE(second.contains(sequence));
  for (int i = 0; i < 3; ++i) {
    house.Work(1);
    house.Deliver(1);
    EXPECT_EQ(SequencesOf(house.Plan(1)), i % 2 == 0 ? first : second);
  }
  ASSERT_TRUE(house.RunToEnd());
  for (JobId id = 1; id <= 5; ++id) house.CheckOutcome(id);
  house.CheckAllFree();
}

TEST(SchedulerTest, PrefillEndsAlternatingUntilItIsDone) {
  House house(TwoGroups());
  house.AddWorker(1, 20);
  StartDecoding(&house, 4, 30);
  house.PlanAll();
  house.Add(MakeJob(100, 30, 9));
  house.Work(1);
  house.Deliver(1);
  EXPECT_THAT(SequencesOf(house.Plan(1)), SizeIs(5));
  for (int i = 0; i < 2; ++i) {
    house.Work(1);
    house.Deliver(1);
  }
  const std::set<SequenceId> first = SequencesOf(house.Plan(1));
  const std::set<SequenceId> second = SequencesOf(house.Plan(1));
  EXPECT_EQ(first.size() + second.size(), 5u);
  EXPECT_THAT(first, SizeIs(AnyOf(2, 3)));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, GroupsAreBalancedAsJobsEnd) {
  House house(TwoGroups());
  house.AddWorker(1, 20);
  StartDecoding(&house, 6, 60);
  // Those of one group, whichever sequence is which job's.
  const std::set<SequenceId> first = SequencesOf(house.Plan(1));
  ASSERT_THAT(first, SizeIs(3));
  for (const SequenceId sequence : first) {
    if (sequence != *first.begin()) house.Cancel(sequence);  // ids of both count from 1 here
  }
  for (int i = 0; i < 4; ++i) {
    house.PlanAll();
    house.Work(1);
    house.Deliver(1);
  }
  house.PlanAll();
  for (int i = 0; i < 2; ++i) {
    house.Work(1);
    house.Deliver(1);
    EXPECT_THAT(SequencesOf(house.Plan(1)), SizeIs(2));
  }
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, OneSequenceIsStillPlannedAheadWithTwoGroups) {
  House house(TwoGroups());
  house.AddWorker(1, 20);
  StartDecoding(&house, 1, 30);
  EXPECT_THAT(SequencesOf(house.Plan(1)), SizeIs(1));
  EXPECT_THAT(SequencesOf(house.Plan(1)), SizeIs(1));
}

TEST(SchedulerTest, AFailedGroupDoesNotLoseTheOther) {
  House house(TwoGroups());
  house.AddWorker(1, 20);
  StartDecoding(&house, 4, 30);
  const std::set<SequenceId> first = SequencesOf(house.Plan(1));
  FailAt(&house, 3);
  const auto repeated = house.Plan(1);
  ASSERT_TRUE(repeated.has_value());
  EXPECT_THAT(repeated->new_batches, IsEmpty());
  ASSERT_EQ(repeated->advance.size(), 1u);
  EXPECT_EQ(repeated->advance[0].first_layer, 3);
  EXPECT_FALSE(house.Plan(1).has_value());
  ASSERT_TRUE(house.RunToEnd());
  for (JobId id = 1; id <= 4; ++id) house.CheckOutcome(id);
  EXPECT_EQ(house.workers[1]->sequences_opened(), 4);
  house.CheckAllFree();
}

TEST(SchedulerTest, DecodesInAsManyGroupsAsTheTimesShowToBeFaster) {
  for (const int64_t group_us : {300, 600}) {
    House house;
    house.AddWorker(1, 100);
    StartDecoding(&house, 4, 800);
    EXPECT_EQ(house.scheduler.decode_groups(), 1);
    bool tried = false;
    for (int i = 0; i < 200; ++i) {
      house.PlanAll();
      house.Work(1);
      StepResult& result = house.results[1].front();
      const bool is_group = result.rows.size() < 4;
      tried = tried || is_group;
      result.busy_us = is_group ? group_us : 1000;
      result.wait_us = is_group ? 0 : 600;
      house.Deliver(1);
    }
    EXPECT_TRUE(tried);
    EXPECT_EQ(house.scheduler.decode_groups(), group_us == 300 ? 2 : 1);
    EXPECT_GT(house.scheduler.busy_us(), house.scheduler.wait_us());
    EXPECT_GT(house.scheduler.wait_us(), 0);
    ASSERT_TRUE(house.RunToEnd());
    for (JobId id = 1; id <= 4; ++id) house.CheckOutcome(id);
    house.CheckAllFree();
  }
}

}  // namespace
}  // namespace tandem
