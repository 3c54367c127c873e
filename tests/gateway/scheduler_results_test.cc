// What does not go well: lost workers, failed steps, wrong answers.
#include <cmath>

#include "gateway/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/scheduler_house.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(SchedulerTest, MovesSequencesOfALostWorkerWithWhatTheyGenerated) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(70, 40));
  for (int i = 0; i < 12; ++i) {
    house.PlanAll();
    house.Work(1);
    house.Deliver(1);
  }
  EXPECT_GT(house.outcomes[job].tokens.size(), 5u);
  house.RemoveWorker(1);
  EXPECT_EQ(house.scheduler.num_waiting(), 1);
  house.AddWorker(2, 8);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(job);
  EXPECT_EQ(house.outcomes[job].end, JobEnd::kLength);
  house.CheckAllFree();
}

TEST(SchedulerTest, AJobThatLosesEveryWorkerFailsAtLast) {
  House house;
  const JobId job = house.Add(MakeJob(70, 40));
  for (WorkerId worker = 1; worker <= 5; ++worker) {
    EXPECT_EQ(house.outcomes[job].done, 0);
    house.AddWorker(worker, 8);
    ASSERT_TRUE(house.Plan(worker).has_value());
    house.RemoveWorker(worker);
  }
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(house.outcomes[job].status.message()), HasSubstr("5 times"));
  house.AddWorker(6, 8);
  const JobId next = house.Add(MakeJob(70, 4));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(next);
  house.CheckAllFree();
}

TEST(SchedulerTest, RepeatsWorkAfterUnavailable) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 20));
  for (int i = 0; i < 4; ++i) {
    house.PlanAll();
    house.workers[1]->FailNextStepAt(i);
    house.Work(1);
    house.Work(1);
    house.Deliver(1);
    house.Deliver(1);
  }
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(job);
  EXPECT_EQ(house.outcomes[job].end, JobEnd::kLength);
  house.CheckAllFree();
}

TEST(SchedulerTest, GoesOnFromWhereAFailedStepStood) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 20));
  const auto first = house.Plan(1);
  const auto second = house.Plan(1);
  ASSERT_TRUE(first.has_value() && second.has_value());
  house.workers[1]->FailNextStepAt(2);
  house.Work(1);
  house.Deliver(1);
  EXPECT_FALSE(house.Plan(1).has_value()) << "the second step may have failed as well";
  house.Work(1);
  house.Deliver(1);

  const auto third = house.Plan(1);
  ASSERT_TRUE(third.has_value());
  EXPECT_THAT(third->new_batches, IsEmpty());
  ASSERT_EQ(third->advance.size(), 1u);
  EXPECT_EQ(third->advance[0].batch, first->new_batches[0].batch);
  EXPECT_EQ(third->advance[0].first_layer, 2);
  EXPECT_EQ(third->advance[0].end_layer, kLayers);
  const auto fourth = house.Plan(1);
  ASSERT_TRUE(fourth.has_value());
  ASSERT_EQ(fourth->new_batches.size(), 1u);
  EXPECT_EQ(fourth->new_batches[0].batch, second->new_batches[0].batch);
  EXPECT_TRUE(fourth->new_batches[0].runs[0].last_sampled);

  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(job);
  EXPECT_EQ(house.outcomes[job].end, JobEnd::kLength);
  EXPECT_EQ(house.workers[1]->sequences_opened(), 1);
  house.CheckAllFree();
}

TEST(SchedulerTest, PlansNoNewRowsUntilAFailedStepHasSucceeded) {
  House house;
  house.AddWorker(1, 20);
  house.Add(MakeJob(100, 1, 1));
  FailAt(&house, 2);
  const JobId late = house.Add(MakeJob(10, 5, 2));
  house.PlanAll();
  EXPECT_EQ(house.outcomes[late].admitted, 0);
  house.Work(1);
  house.Deliver(1);
  house.PlanAll();
  EXPECT_EQ(house.outcomes[late].admitted, 1);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(late);
  house.CheckAllFree();
}

TEST(SchedulerTest, WhatIsCancelledAfterAFailureIsNotRepeated) {
  House house;
  house.AddWorker(1, 20);
  const JobId stays = house.Add(MakeJob(100, 20, 1));
  const JobId goes = house.Add(MakeJob(70, 20, 2));
  FailAt(&house, 3);
  house.Cancel(goes);
  house.Plan(1);
  const auto repeated = house.Plan(1);
  ASSERT_TRUE(repeated.has_value());
  EXPECT_EQ(repeated->new_batches.size(), 1u);  // half of it is dead
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(stays);
  EXPECT_EQ(house.outcomes[stays].end, JobEnd::kLength);
  house.CheckAllFree();

  const JobId alone = house.Add(MakeJob(100, 20, 3));
  FailAt(&house, 0);
  house.Cancel(alone);
  EXPECT_FALSE(house.Plan(1).has_value());
  const JobId next = house.Add(MakeJob(10, 5, 4));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(next);
  EXPECT_EQ(house.outcomes[next].end, JobEnd::kLength);
  house.CheckAllFree();
}

TEST(SchedulerTest, ALostWorkerIsNotRepeatedElsewhere) {
  House house;
  house.AddWorker(1, 20);
  const JobId job = house.Add(MakeJob(100, 20, 1));
  FailAt(&house, 3);
  house.AddWorker(2, 20);
  house.RemoveWorker(1);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(job);
  EXPECT_EQ(house.outcomes[job].end, JobEnd::kLength);
  EXPECT_EQ(house.workers[2]->sequences_opened(), 1);
  house.CheckAllFree();
}

TEST(SchedulerTest, EveryProgressAllowsFiveMoreFailures) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 2));
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int i = 0; i < 4; ++i) FailAt(&house, layer);
  }
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(job);
  EXPECT_EQ(house.outcomes[job].end, JobEnd::kLength);
  EXPECT_EQ(house.workers[1]->sequences_opened(), 1);
  house.CheckAllFree();
}

TEST(SchedulerTest, AnImpossibleProgressFailsTheStepsJobsOnly) {
  const std::vector<BatchProgress> impossible[] = {
      {{99, 3}}, {{1, 1}}, {{1, -1}}, {{1, kLayers + 1}}, {{1, 3}, {1, 2}}};
  for (const std::vector<BatchProgress>& batches : impossible) {
    SCOPED_TRACE(absl::StrCat("batch ", batches.back().batch, " at ", batches.back().next_layer));
    House house;
    house.AddWorker(1, 8);
    const JobId job = house.Add(MakeJob(100, 20));
    FailAt(&house, 2);
    ASSERT_TRUE(house.Plan(1).has_value());
    house.workers[1]->FailNextStepAt(3);
    house.Work(1);
    house.results[1][0].batches = batches;
    house.Deliver(1);
    EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(house.outcomes[job].status.message()), HasSubstr("step 3: it says"));
    const JobId next = house.Add(MakeJob(10, 5));
    ASSERT_TRUE(house.RunToEnd());
    house.CheckOutcome(next);
    EXPECT_EQ(house.outcomes[next].end, JobEnd::kLength);
    house.CheckAllFree();
  }
}

TEST(SchedulerTest, AnUnexplainedFailedPreconditionIsAnError) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 20));
  FailAt(&house, 2);
  house.Plan(1);
  house.workers[1]->RefuseNextStep(absl::FailedPreconditionError("no such batch"));
  house.Work(1);
  house.Deliver(1);
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kInternal);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, GivesUpAfterFiveUnavailableInARow) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 20));
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(house.outcomes[job].done, 0);
    house.Plan(1);
    house.workers[1]->FailNextStepAt(2);
    house.Work(1);
    house.Deliver(1);
  }
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(house.outcomes[job].status.message()), HasSubstr("no expert worker"));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, ARefusedStepFailsItsJobsOnly) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 20));
  house.PlanAll();
  house.workers[1]->RefuseNextStep(absl::InvalidArgumentError("row 3 is odd"));
  house.Work(1);
  house.Deliver(1);
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(house.outcomes[job].status.message()), HasSubstr("row 3 is odd"));
  const JobId next = house.Add(MakeJob(10, 5));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(next);
  house.CheckAllFree();
}

TEST(SchedulerTest, ARefusedStepDoesNotFailTheOtherJobsOfTheNext) {
  SchedulerPolicy policy;
  policy.prefill_step_target = 0;
  House house(policy);
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 20, 1));
  house.Plan(1);
  const JobId other = house.Add(MakeJob(10, 5, 2));
  const auto second = house.Plan(1);
  ASSERT_THAT(SequencesOf(second), SizeIs(2));
  house.workers[1]->RefuseNextStep(absl::InvalidArgumentError("row 3 is odd"));
  for (int i = 0; i < 2; ++i) house.Work(1);
  EXPECT_FALSE(house.results[1][1].status.ok());
  for (int i = 0; i < 2; ++i) house.Deliver(1);
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kInternal);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(other);
  EXPECT_EQ(house.outcomes[other].end, JobEnd::kLength);
  EXPECT_EQ(house.workers[1]->sequences_opened(), 2);
  house.CheckAllFree();
}

TEST(SchedulerTest, ANaNFailsTheJob) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(100, 20));
  house.workers[1]->DrawNaN();
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(house.outcomes[job].status.message()), HasSubstr("NaN"));
}

// What a worker may answer wrongly, and what the job's status then says.
struct WrongAnswer {
  const char* name;
  void (*spoil)(RowResult&);
  const char* sentence;
};
const WrongAnswer kWrongAnswers[] = {
    {"token", [](RowResult& r) { r.token = kSimulatedVocab; }, "drew token 50"},
    {"unasked",
     [](RowResult& r) {
       r.top = {{1, -1.0f}};
     },
     "answered 1 of the most probable"},
    {"position", [](RowResult& r) { r.position = 13; }, "answered position 13"},
    {"last position", [](RowResult& r) { r.position = INT32_MAX; }, "answered position 2147483647"},
    {"negative position", [](RowResult& r) { r.position = -1; }, "answered position -1"},
    {"logits",
     [](RowResult& r) {
       r.kind = RowOutputKind::kLogits;
       r.logits = {1.0f};
     },
     "answered 1 logits"},
    {"NaN",
     [](RowResult& r) {
       r.kind = RowOutputKind::kLogProb;
       r.log_prob = std::nanf("");
     },
     "NaN"},
};

TEST(SchedulerTest, AWrongAnswerFailsItsJobOnly) {
  for (const WrongAnswer& wrong : kWrongAnswers) {
    SCOPED_TRACE(wrong.name);
    House house;
    house.AddWorker(1, 8);
    const JobId job = house.Add(MakeJob(10, 5, 1));
    const JobId other = house.Add(MakeJob(10, 5, 2));
    house.Plan(1);
    house.Work(1);
    ASSERT_EQ(house.results[1][0].rows.size(), 2u);
    wrong.spoil(house.results[1][0].rows[0]);
    house.Deliver(1);
    EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(house.outcomes[job].status.message()), HasSubstr(wrong.sentence));
    ASSERT_TRUE(house.RunToEnd());
    house.CheckOutcome(other);
    EXPECT_EQ(house.outcomes[other].end, JobEnd::kLength);
    house.CheckAllFree();
  }
}

}  // namespace
}  // namespace tandem
