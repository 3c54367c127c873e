// Pages that sequences share: who may, where they go for it, and that no page is ever lost count
// of.
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/scheduler_house.h"

namespace tandem {
namespace {

// A prompt that begins with `shared` tokens which all prompts of this `beginning` have.
Job JobThatBegins(uint64_t beginning, int shared, int own, int max_new_tokens, uint64_t seed = 7) {
  Job job = MakeJob(shared, max_new_tokens, beginning);
  const Job rest = MakeJob(own, 1, seed + 1000);
  job.prompt.insert(job.prompt.end(), rest.prompt.begin(), rest.prompt.end());
  job.expanded_length = SequenceSpec::ExpandedLength(shared + own);
  job.sampling.seed = seed;
  return job;
}

int64_t RowsOf(House* house, Job job, WorkerId worker = 1) {
  const int64_t before = house->workers[worker]->rows_computed();
  const JobId id = house->Add(std::move(job));
  EXPECT_TRUE(house->RunToEnd());
  house->CheckOutcome(id);
  house->CheckAllFree();
  return house->workers[worker]->rows_computed() - before;
}

TEST(SchedulerPrefixTest, ASecondPromptComputesOnlyWhatDiffers) {
  House house;
  house.AddWorker(1, 40);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 640, 100, 1, 1)), 740);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 640, 100, 1, 2)), 100);
  EXPECT_EQ(house.scheduler.prefix_queries(), 2 * 740);
  EXPECT_EQ(house.scheduler.prefix_hits(), 640);
  EXPECT_EQ(house.outcomes[2].cached_tokens, 640);
  EXPECT_EQ(house.outcomes[1].cached_tokens, 0);
  // 11 full pages of the first, one more of the second.
  EXPECT_EQ(house.scheduler.CountPages().cached, 12);
}

TEST(SchedulerPrefixTest, OnlyPagesInTheSameFormAreShared) {
  House house;
  house.AddWorker(1, 40);
  // Of 200 tokens the first 192 are expanded, of 192 the first 128; its third page is absorbed.
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 192, 0, 1)), 192);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 192, 8, 1)), 200 - 128);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 192, 0, 1)), 64);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 192, 8, 1)), 8);
}

TEST(SchedulerPrefixTest, TheRowOfTheLastTokenIsAlwaysComputed) {
  House house;
  house.AddWorker(1, 40);
  for (const int64_t rows : {192, 64, 64}) {
    EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 192, 0, 1)), rows);
  }
  EXPECT_EQ(RowsOf(&house, JobThatBegins(4, 1, 0, 1)), 1);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(4, 1, 0, 1)), 1);
}

TEST(SchedulerPrefixTest, RowsThatAreScoredAreAlwaysComputed) {
  House house;
  house.AddWorker(1, 40);
  Job job = MakeJob(300, 0);
  job.scored = {{130, 5, false}, {299, 6, false}};
  EXPECT_EQ(RowsOf(&house, job), 300);
  EXPECT_EQ(RowsOf(&house, job), 300 - 128);
}

TEST(SchedulerPrefixTest, SharesGeneratedPagesThatAreAbsorbedInTheNextTurn) {
  House house;
  house.AddWorker(1, 40);
  Job first = MakeJob(100, 200);
  const std::vector<int32_t> answer = SimulatedAnswer(first.prompt, KeyOf(first), 200, -2);
  EXPECT_EQ(RowsOf(&house, first), 299);
  Job second = first;
  second.prompt.insert(second.prompt.end(), answer.begin(), answer.end());
  second.prompt.resize(400, 17);
  second.expanded_length = SequenceSpec::ExpandedLength(400);
  second.max_new_tokens = 5;
  Job ordinary = second;
  second.absorbed_pages = {{1, 5}};  // from the prompt's last token to the answer's
  EXPECT_EQ(RowsOf(&house, second), 404 - 256);
  EXPECT_EQ(RowsOf(&house, ordinary), 404 - 64);
}

TEST(SchedulerPrefixTest, GoesToTheWorkerWithMostOfItThenToTheEmptiest) {
  House house;
  house.AddWorker(1, 20);
  house.AddWorker(2, 40);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 128, 10, 1), 2), 138);  // the emptiest
  house.RemoveWorker(2);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 10, 1, 9), 1), 266);
  house.AddWorker(2, 40);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 10, 1), 1), 10);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(4, 256, 10, 1), 2), 266);
  // Too long for the worker that has it.
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 1100, 1), 2), 1356);
}

TEST(SchedulerPrefixTest, ChoicesComputeTheirPromptsPagesOnce) {
  for (const int prompt : {1, 40, 64, 65, 128, 300}) {
    SCOPED_TRACE(prompt);
    House house;
    house.AddWorker(1, 60);
    const int64_t before = house.workers[1]->rows_computed();
    const std::vector<JobId> ids = house.AddChoices(MakeJob(prompt, 10), 4);
    EXPECT_EQ(house.scheduler.num_waiting(), 4);
    ASSERT_TRUE(house.RunToEnd());
    for (const JobId id : ids) house.CheckOutcome(id);
    house.CheckAllFree();
    const int64_t shared = 64 * ((prompt - 1) / 64);
    EXPECT_EQ(house.workers[1]->rows_computed() - before, shared + 4 * (prompt - shared + 9));
    EXPECT_EQ(house.outcomes[ids[0]].cached_tokens, 0);
    EXPECT_EQ(house.outcomes[ids[3]].cached_tokens, shared);
    std::set<std::vector<int32_t>> answers;
    for (const JobId id : ids) answers.insert(house.outcomes[id].tokens);
    EXPECT_EQ(answers.size(), 4u);
  }
}

TEST(SchedulerPrefixTest, ChoicesThatWaitForTheirPromptHoldNobodyUp) {
  House house({.max_batch_rows = 64});
  house.AddWorker(1, 60);
  const std::vector<JobId> ids = house.AddChoices(MakeJob(640, 5), 3);
  const JobId other = house.Add(MakeJob(10, 5, 99));
  house.PlanAll();
  EXPECT_EQ(house.scheduler.num_waiting(), 2);
  EXPECT_EQ(house.scheduler.num_following(), 2);  // which are in no queue
  EXPECT_EQ(house.scheduler.num_running(), 2);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(other);
  for (const JobId id : ids) house.CheckOutcome(id);
  house.CheckAllFree();
}

TEST(SchedulerPrefixTest, WhereThePromptIsCachedNoChoiceWaits) {
  House house;
  house.AddWorker(1, 60);
  RowsOf(&house, MakeJob(300, 1));
  const std::vector<JobId> ids = house.AddChoices(MakeJob(300, 5), 3);
  house.Plan(1);
  EXPECT_EQ(house.scheduler.num_running(), 3);
  ASSERT_TRUE(house.RunToEnd());
  for (const JobId id : ids) EXPECT_EQ(house.outcomes[id].cached_tokens, 256);
}

TEST(SchedulerPrefixTest, WithoutPrefixCachingChoicesDoNotWait) {
  House house({.prefix_caching = false});
  house.AddWorker(1, 60);
  const std::vector<JobId> ids = house.AddChoices(MakeJob(300, 5), 3);
  house.Plan(1);
  EXPECT_EQ(house.scheduler.num_running(), 3);
  ASSERT_TRUE(house.RunToEnd());
  for (const JobId id : ids) house.CheckOutcome(id);
  house.CheckAllFree();
}

// Whatever becomes of the first, the others go on, and of those that end while they wait nothing is
// left.
TEST(SchedulerPrefixTest, ChoicesGoOnWithoutTheFirst) {
  for (const bool started : {false, true}) {
    SCOPED_TRACE(started);
    House house({.max_batch_rows = 64});
    house.AddWorker(1, 60);
    const std::vector<JobId> ids = house.AddChoices(MakeJob(300, 5), 4);
    if (started) house.PlanAll();
    house.Cancel(ids[2]);
    EXPECT_EQ(house.scheduler.num_waiting() + house.scheduler.num_running(), 3);
    house.Cancel(ids[0]);
    EXPECT_EQ(house.scheduler.num_waiting() + house.scheduler.num_running(), 2);
    ASSERT_TRUE(house.RunToEnd());
    for (const JobId id : ids) house.CheckOutcome(id);
    EXPECT_EQ(house.outcomes[ids[1]].end, JobEnd::kLength);
    EXPECT_EQ(house.outcomes[ids[3]].end, JobEnd::kLength);
    house.CheckAllFree();
  }
  // A worker that is lost meanwhile, and a deadline that passes.
  House house({.max_batch_rows = 64});
  house.AddWorker(1, 60);
  Job job = MakeJob(300, 5);
  const std::vector<JobId> ids = house.AddChoices(job, 3);
  job.deadline = house.now + absl::Seconds(5);
  const std::vector<JobId> late = house.AddChoices(job, 3);
  house.PlanAll();
  house.RemoveWorker(1);
  EXPECT_EQ(house.scheduler.num_waiting(), 6);
  house.now += absl::Seconds(10);
  house.Expire();
  EXPECT_EQ(house.scheduler.num_waiting(), 3);
  for (const JobId id : late) {
    EXPECT_EQ(house.outcomes[id].status.code(), absl::StatusCode::kDeadlineExceeded);
  }
  house.AddWorker(2, 60);
  ASSERT_TRUE(house.RunToEnd());
  for (const JobId id : ids) EXPECT_EQ(house.outcomes[id].end, JobEnd::kLength);
  house.CheckAllFree();
  // And none at all.
  house.RemoveWorker(2);
  const std::vector<JobId> last = house.AddChoices(MakeJob(300, 5), 3);
  house.now += absl::Seconds(70);
  EXPECT_LE(house.scheduler.NextDeadline(), house.now);
  house.Expire();
  for (const JobId id : last) {
    EXPECT_EQ(house.outcomes[id].status.code(), absl::StatusCode::kUnavailable);
  }
}

TEST(SchedulerPrefixTest, EachChoiceThatWaitsCountsInTheQueue) {
  SchedulerPolicy policy;
  policy.max_waiting = 3;
  Scheduler scheduler(policy);
  for (JobId id = 1; id <= 3; ++id) {
    EXPECT_TRUE(scheduler.Add(id, MakeJob(300, 5), absl::UnixEpoch(), id == 1 ? 0 : 1).ok());
  }
  EXPECT_EQ(scheduler.Add(4, MakeJob(300, 5), absl::UnixEpoch(), 1).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(SchedulerPrefixTest, NothingIsKeptOfAWorkerThatWasLost) {
  House house;
  house.AddWorker(1, 40);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 10, 1)), 266);
  house.RemoveWorker(1);
  house.AddWorker(1, 40);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 10, 1)), 266);
}

TEST(SchedulerPrefixTest, OffMeansOff) {
  SchedulerPolicy policy;
  policy.prefix_caching = false;
  House house(policy);
  house.AddWorker(1, 40);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 10, 1)), 266);
  EXPECT_EQ(house.scheduler.CountPages().cached, 0);
  EXPECT_EQ(house.scheduler.prefix_hits(), 0);
}

TEST(SchedulerPrefixTest, EvictsTheOldestWhenPagesAreNeeded) {
  House house;
  house.AddWorker(1, 12);
  for (const uint64_t beginning : {3, 4, 5}) {  // four pages each, one of which is not full
    EXPECT_EQ(RowsOf(&house, JobThatBegins(beginning, 192, 10, 1)), 202);
  }
  EXPECT_EQ(house.scheduler.CountPages().cached, 9);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 192, 10, 1)), 10);  // which makes it the youngest
  EXPECT_EQ(RowsOf(&house, JobThatBegins(6, 320, 10, 1)), 330);
  EXPECT_EQ(house.scheduler.CountPages().evicted, 3);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 192, 10, 1)), 10);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(5, 192, 10, 1)), 10);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(4, 192, 10, 1)), 202);
}

TEST(SchedulerPrefixTest, RunningSequencesShareAndThePageOutlivesEither) {
  House house;
  house.AddWorker(1, 8);
  const JobId first = house.Add(JobThatBegins(3, 256, 10, 40, 1));
  house.PlanAll();
  house.Work(1);
  house.Deliver(1);  // its prefill is done
  const JobId second = house.Add(JobThatBegins(3, 256, 10, 40, 2));
  ASSERT_TRUE(house.RunToEnd());  // beside each other: 5 + 1 pages, not 10
  house.CheckOutcome(first);
  house.CheckOutcome(second);
  EXPECT_EQ(house.scheduler.preemptions(), 0);
  EXPECT_EQ(house.workers[1]->rows_shared(), 256);
  house.CheckAllFree();
}

TEST(SchedulerPrefixTest, APreemptedSequenceFindsItsOwnPages) {
  House house;
  house.AddWorker(1, 9);
  const JobId old_one = house.Add(MakeJob(100, 190, 1));
  const JobId young_one = house.Add(MakeJob(150, 190, 2));
  ASSERT_TRUE(house.RunToEnd());
  for (const JobId job : {old_one, young_one}) house.CheckOutcome(job);
  EXPECT_GT(house.scheduler.preemptions(), 0);
  EXPECT_GT(house.workers[1]->rows_shared(), 0);
  house.CheckAllFree();
}

TEST(SchedulerPrefixTest, WhatAJobThatMetANaNHasComputedIsNotUsedAgain) {
  House house;
  house.AddWorker(1, 40);
  house.workers[1]->DrawNaN();
  const JobId failed = house.Add(JobThatBegins(3, 256, 10, 1));
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(house.outcomes[failed].status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 10, 1)), 266);
  house.workers[1]->DrawNaN();
  house.Add(JobThatBegins(3, 256, 10, 1));  // shares what is good
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(RowsOf(&house, JobThatBegins(3, 256, 10, 1)), 266);
}

TEST(SchedulerPrefixTest, RowsOfAStepThatFailedAreNotShared) {
  House house;
  house.AddWorker(1, 40);
  const JobId first = house.Add(JobThatBegins(3, 256, 10, 1));
  FailAt(&house, 2);
  const JobId second = house.Add(JobThatBegins(3, 256, 10, 1, 2));
  ASSERT_TRUE(house.RunToEnd());
  for (const JobId job : {first, second}) house.CheckOutcome(job);
  house.CheckAllFree();
}

// Few beginnings, tiny caches, everything that can happen: answers are right, the worker never sees
// a page where it cannot be, and afterwards every page is there again. The simulated worker looks
// at each shared page and says if it holds anything else than the sequence would have computed.
TEST(SchedulerPrefixTest, NeverIsOffByAPageUnderRandomLoad) {
  int64_t shared = 0, evicted = 0, preemptions = 0;
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](int low, int high) {
      return low + static_cast<int>(random() % (high - low + 1));
    };
    SchedulerPolicy policy;
    policy.max_batch_rows = draw(0, 1) == 0 ? 50 : 2048;
    policy.max_layers_per_step = draw(0, 2);
    policy.test_seed = draw(0, 1) == 0 ? 0 : seed;
    House house(policy);
    const int num_workers = draw(1, 2);
    const int pages = draw(7, 16);
    for (int w = 1; w <= num_workers; ++w) house.AddWorker(w, pages);
    std::vector<JobId> jobs;
    for (int i = 0; i < 300; ++i) {
      if (jobs.size() < 16 && draw(0, 4) == 0) {
        Job job = JobThatBegins(draw(1, 2), draw(1, 220), draw(1, 40), draw(0, 70), draw(1, 3));
        if (job.max_new_tokens == 0) job.scored = {{draw(0, 10), 3, false}};
        if (draw(0, 3) == 0 && job.expanded_length >= 128) job.absorbed_pages = {{1, 2}};
        jobs.push_back(house.Add(std::move(job)));
      }
      const auto worker = static_cast<WorkerId>(draw(1, num_workers));
      switch (draw(0, 7)) {
        case 0:
        case 1:
          house.Work(worker);
          break;
        case 2:
        case 3:
          house.Deliver(worker);
          break;
        case 4:
          if (draw(0, 9) == 0 && !jobs.empty()) house.Cancel(jobs[draw(0, jobs.size() - 1)]);
          break;
        case 5:
          if (draw(0, 20) == 0) house.workers[worker]->FailNextStepAt(draw(0, kLayers - 1));
          break;
        case 6:
          if (draw(0, 60) == 0) {
            shared += house.workers[worker]->rows_shared();
            house.RemoveWorker(worker);
            house.AddWorker(worker, pages);
          }
          break;
        default:
          house.PlanAll();
      }
      for (const auto& [id, w] : house.workers) house.CheckWorker(*w);
    }
    ASSERT_TRUE(house.RunToEnd());
    for (const JobId job : jobs) house.CheckOutcome(job);
    house.CheckAllFree();
    for (const auto& [id, w] : house.workers) shared += w->rows_shared();
    evicted += house.scheduler.CountPages().evicted;
    EXPECT_EQ(house.scheduler.CountPages().held, 0);
    preemptions += house.scheduler.preemptions();
    if (::testing::Test::HasFailure()) break;
  }
  EXPECT_GT(shared, 10000);
  EXPECT_GT(evicted, 1000);
  EXPECT_GT(preemptions, 100);
}

}  // namespace
}  // namespace tandem
