// What becomes of jobs: their answers, limits and ends, and one answer whatever the run.
#include "gateway/scheduler.h"

#include <algorithm>
#include <iterator>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/scheduler_house.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(SchedulerTest, GeneratesUntilTheLimit) {
  House house;
  house.AddWorker(1, 4);
  const JobId job = house.Add(MakeJob(70, 20));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(job);
  EXPECT_EQ(house.outcomes[job].end, JobEnd::kLength);
  EXPECT_EQ(house.outcomes[job].tokens.size(), 20u);
  house.CheckAllFree();
}

TEST(SchedulerTest, EndsAtAStopIdWithoutReportingIt) {
  House house;
  house.AddWorker(1, 4);
  Job job = MakeJob(10, 20);
  const std::vector<int32_t> answer = SimulatedAnswer(job.prompt, KeyOf(job), 20, -2);
  job.eos_ids = {answer[5]};
  const JobId id = house.Add(std::move(job));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(id);
  EXPECT_EQ(house.outcomes[id].end, JobEnd::kEos);
  house.CheckAllFree();
}

TEST(SchedulerTest, MergesLogProbAndLogitsOfARow) {
  House house;
  house.AddWorker(1, 4);
  Job job = MakeJob(80, 0);
  job.scored = {{3, 11, true}, {4, -1, true}, {79, 2, false}};
  const JobId id = house.Add(std::move(job));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(id);
  EXPECT_EQ(house.outcomes[id].end, JobEnd::kScored);
  house.CheckAllFree();
}

TEST(SchedulerTest, FailsAJobThatIsLongerThanEveryCache) {
  House house;
  house.AddWorker(1, 3);
  house.AddWorker(2, 2);
  const JobId too_long = house.Add(MakeJob(100, 94));
  const JobId fits = house.Add(MakeJob(100, 93));  // the last token takes no row
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(house.outcomes[too_long].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(house.outcomes[too_long].status.message()), HasSubstr("193 tokens"));
  house.CheckOutcome(fits);
  EXPECT_EQ(house.outcomes[fits].end, JobEnd::kLength);
  house.CheckAllFree();
}

TEST(SchedulerTest, AnAnswerThatMayBeShorterTakesWhatTheLargestCacheLeaves) {
  House house;
  house.AddWorker(1, 3);
  const auto add = [&](int prompt) {
    Job job = MakeJob(prompt, 1000);
    job.may_be_shorter = true;
    return house.Add(std::move(job));
  };
  const JobId shortened = add(100), exact = add(192), too_long = add(193);
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(house.outcomes[shortened].end, JobEnd::kLength);
  EXPECT_THAT(house.outcomes[shortened].tokens, SizeIs(93));  // the last token takes no row
  EXPECT_THAT(house.outcomes[exact].tokens, SizeIs(1));
  EXPECT_THAT(std::string(house.outcomes[too_long].status.message()),
              HasSubstr("the prompt keeps 193 tokens"));
  house.CheckAllFree();
}

TEST(SchedulerTest, RefusesJobsWhenTheQueueIsFull) {
  SchedulerPolicy policy;
  policy.max_waiting = 1;
  Scheduler scheduler(policy);
  EXPECT_TRUE(scheduler.Add(1, MakeJob(1, 1), absl::UnixEpoch()).ok());
  EXPECT_EQ(scheduler.Add(2, MakeJob(1, 1), absl::UnixEpoch()).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(SchedulerTest, LowerPrioritiesGoFirst) {
  SchedulerPolicy policy;
  policy.max_running_per_worker = 1;
  House house(policy);
  house.AddWorker(1, 40);
  std::vector<JobId> jobs;
  for (const int32_t priority : {0, 5, 0, -1, 5}) {
    Job job = MakeJob(20, 3, 10 + jobs.size());
    job.priority = priority;
    jobs.push_back(house.Add(std::move(job)));
  }
  std::vector<JobId> order;
  while (order.size() < jobs.size()) {
    house.PlanAll();
    house.Work(1);
    house.Deliver(1);
    for (const JobId job : jobs) {
      const bool known = std::find(order.begin(), order.end(), job) != order.end();
      if (!known && house.outcomes[job].admitted > 0) order.push_back(job);
    }
  }
  EXPECT_THAT(order, testing::ElementsAre(jobs[3], jobs[0], jobs[2], jobs[1], jobs[4]));
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, NothingWaitsForeverBehindLowerPriorities) {
  SchedulerPolicy policy;
  policy.max_running_per_worker = 1;
  House house(policy);
  house.AddWorker(1, 40);
  Job patient = MakeJob(5, 1, 1);
  patient.priority = 1;
  const JobId waits = house.Add(std::move(patient));
  int others = 0;
  for (house.Add(MakeJob(5, 1, 2)); house.outcomes[waits].admitted == 0; ++others) {
    ASSERT_LE(others, Scheduler::kArrivalsPerPriority);
    house.Add(MakeJob(5, 1, 3));
    house.PlanAll();
    house.Work(1);
    house.Deliver(1);
  }
  EXPECT_GT(others, Scheduler::kArrivalsPerPriority / 2);
}

TEST(SchedulerTest, TheLastInTurnIsPreempted) {
  House house;
  house.AddWorker(1, 5);
  Job job = MakeJob(100, 150, 1);
  job.priority = 1;
  const JobId late = house.Add(std::move(job));
  const JobId early = house.Add(MakeJob(100, 150, 2));
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_GT(house.scheduler.preemptions(), 0);
  EXPECT_GT(house.outcomes[late].place_at_end, house.outcomes[early].place_at_end);
  house.CheckAllFree();
}

TEST(SchedulerTest, CancelFreesThePages) {
  House house;
  house.AddWorker(1, 8);
  const JobId job = house.Add(MakeJob(200, 40));
  house.PlanAll();
  house.Cancel(job);
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kCancelled);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, FinishEndsAJobAsASuccessAndFreesThePages) {
  House house;
  house.AddWorker(1, 8);
  const JobId running = house.Add(MakeJob(100, 40));
  house.PlanAll();
  const JobId waiting = house.Add(MakeJob(400, 40));
  house.PlanAll();
  EXPECT_EQ(house.scheduler.num_waiting(), 1);
  for (const JobId job : {running, waiting}) {
    const std::vector<SchedulerEvent> events = house.scheduler.Finish(job);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].job, job);
    EXPECT_EQ(events[0].end, JobEnd::kStop);
    EXPECT_TRUE(events[0].status.ok());
    EXPECT_THAT(house.scheduler.Finish(job), IsEmpty());
  }
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, RefusesAWorkerWithoutLayersPagesOrVocabulary) {
  Scheduler scheduler{SchedulerPolicy{}};
  for (const AttentionWorkerInfo& info :
       {AttentionWorkerInfo{0, 8, 50}, {5, 0, 50}, {5, 8, 0}, {-1, -1, -1}}) {
    EXPECT_EQ(scheduler.AddWorker(1, info).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(SchedulerTest, DeadlinesEndWaitingAndRunningJobs) {
  SchedulerPolicy policy;
  policy.max_running_per_worker = 1;
  House house(policy);
  house.AddWorker(1, 8);
  Job job = MakeJob(100, 20);
  job.deadline = house.now + absl::Seconds(1);
  const JobId running = house.Add(job);
  job.deadline = house.now + absl::Seconds(2);
  const JobId waiting = house.Add(job);
  house.PlanAll();
  EXPECT_EQ(house.scheduler.NextDeadline(), house.now + absl::Seconds(1));
  house.now += absl::Seconds(2);
  house.Expire();
  for (const JobId id : {running, waiting}) {
    EXPECT_EQ(house.outcomes[id].status.code(), absl::StatusCode::kDeadlineExceeded);
  }
  EXPECT_EQ(house.scheduler.NextDeadline(), absl::InfiniteFuture());
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
}

TEST(SchedulerTest, JobsWaitForAWorkerOnlySoLong) {
  House house;
  const JobId job = house.Add(MakeJob(10, 2));
  EXPECT_EQ(house.scheduler.NextDeadline(), house.now + absl::Seconds(60));
  house.now += absl::Seconds(59);
  house.Expire();
  EXPECT_EQ(house.outcomes[job].done, 0);
  house.now += absl::Seconds(1);
  house.Expire();
  EXPECT_EQ(house.outcomes[job].status.code(), absl::StatusCode::kUnavailable);
}

// ---- Random runs --------------------------------------------------------------------------------

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int Draw(int low, int high) {
    return low + static_cast<int>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Draw(1, 100) <= percent; }

 private:
  std::mt19937_64 engine_;
};

Job RandomJob(Random* random) {
  Job job = MakeJob(random->Chance(20) ? random->Draw(100, 350) : random->Draw(1, 140),
                    random->Chance(20) ? 0 : random->Draw(1, random->Chance(20) ? 150 : 30),
                    random->Draw(0, 1 << 20));
  if (random->Chance(50)) job.eos_ids = {random->Draw(0, kSimulatedVocab - 1)};
  if (random->Chance(20)) job.max_rows_per_batch = random->Draw(1, 100);
  job.sampling.temperature = static_cast<float>(random->Draw(0, 3));
  job.sampling.top_k = random->Draw(0, 3);
  job.sampling.top_p = 1.0f / static_cast<float>(random->Draw(1, 3));
  job.sampling.choice = static_cast<uint32_t>(random->Draw(0, 3));
  job.sampling.min_p = static_cast<float>(random->Draw(0, 3)) / 4;
  job.sampling.repetition_penalty = static_cast<float>(random->Draw(1, 3));
  job.sampling.frequency_penalty = static_cast<float>(random->Draw(-2, 2));
  job.sampling.presence_penalty = static_cast<float>(random->Draw(-2, 2));
  job.top_logprobs = random->Chance(30) ? random->Draw(1, 5) : 0;
  if (random->Chance(30)) job.sampling.logit_bias = {{random->Draw(0, 9), 0.5f}, {10, -3}};
  if (random->Chance(30)) {
    job.sampling.min_tokens = random->Draw(1, 5);
    job.sampling.end_ids = job.eos_ids;
  }
  job.mask_ids_without_token = random->Chance(50);
  if (job.max_new_tokens == 0 || random->Chance(10)) {
    for (size_t i = 0; i < job.prompt.size(); ++i) {
      if (!random->Chance(30)) continue;
      const int32_t target = random->Chance(70) ? random->Draw(0, kSimulatedVocab - 1) : -1;
      job.scored.push_back({static_cast<int32_t>(i), target, target < 0 || random->Chance(30)});
    }
  }
  return job;
}

SchedulerPolicy RandomPolicy(Random* random, uint64_t seed) {
  SchedulerPolicy policy;
  policy.max_running_per_worker = random->Draw(1, 8);
  policy.max_batch_rows = random->Chance(50) ? random->Draw(1, 200) : 2048;
  policy.max_layers_per_step = random->Draw(0, kLayers);
  policy.decode_groups = random->Draw(0, 2);
  if (random->Chance(50)) policy.test_seed = seed + 1;
  return policy;
}

// The last worker that is left only goes when another one comes.
void ChangeWorkers(House* house, Random* random, WorkerId* last_worker) {
  if (house->workers.size() < 3 && random->Chance(50)) {
    house->AddWorker(++*last_worker, random->Draw(6, 16));
  } else if (house->workers.size() > 1) {
    const int index = random->Draw(0, static_cast<int>(house->workers.size()) - 1);
    house->RemoveWorker(std::next(house->workers.begin(), index)->first);
  }
}

// Lets workers fall silent, speak again, and drain.
class Disturber {
 public:
  Disturber(House* house, Random* random) : house_(house), random_(random) {}

  void Disturb(WorkerId worker) {
    if (random_->Chance(20)) {
      house_->scheduler.DrainWorker(worker, random_->Chance(50));
      draining_.insert(worker);
    } else {
      house_->scheduler.SetSilent(worker, random_->Chance(60));
    }
  }
  // All speak; those that drain go, and another comes.
  void End(WorkerId next) {
    for (const auto& [id, worker] : house_->workers) house_->scheduler.SetSilent(id, false);
    if (draining_.empty()) return;
    house_->AddWorker(next, 16);
    for (const WorkerId id : draining_) {
      if (house_->workers.contains(id)) house_->RemoveWorker(id);
    }
  }

 private:
  House* const house_;
  Random* const random_;
  std::set<WorkerId> draining_;
};

void RunRandomly(uint64_t seed) {
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  Random random(seed);
  House house(RandomPolicy(&random, seed));
  WorkerId last_worker = 1;
  house.AddWorker(last_worker, random.Draw(6, 16));
  int jobs_left = random.Draw(1, 25);
  const int unavailable_percent = random.Chance(50) ? 0 : random.Draw(1, 20);
  const bool workers_change = random.Chance(30);
  const int moves = random.Draw(50, 600);
  Disturber disturber(&house, &random);
  for (int move = 0; move < moves; ++move) {
    if (jobs_left > 0 && random.Chance(10)) {
      --jobs_left;
      Job job = RandomJob(&random);
      if (random.Chance(5)) job.deadline = house.now + absl::Seconds(random.Draw(0, 100));
      house.AddChoices(std::move(job), random.Chance(20) ? random.Draw(2, 4) : 1);
    }
    if (house.last_job > 0 && random.Chance(1)) house.Cancel(random.Draw(1, house.last_job));
    if (workers_change && random.Chance(1)) ChangeWorkers(&house, &random, &last_worker);
    if (workers_change && random.Chance(2)) {
      disturber.Disturb(random.Draw(1, static_cast<int>(last_worker)));
    }
    if (random.Chance(10)) {
      house.now += absl::Seconds(1);
      house.Expire();
    }
    const int index = random.Draw(0, static_cast<int>(house.workers.size()) - 1);
    const WorkerId worker = std::next(house.workers.begin(), index)->first;
    switch (random.Draw(0, 3)) {
      case 0:
        house.Plan(worker);
        break;
      case 1:
        house.PlanAll();
        break;
      case 2:
        if (random.Chance(unavailable_percent)) {
          house.workers.at(worker)->FailNextStepAt(random.Draw(0, kLayers - 1));
        }
        house.Work(worker);
        break;
      case 3:
        house.Deliver(worker);
        break;
    }
  }
  disturber.End(++last_worker);
  ASSERT_TRUE(house.RunToEnd());
  int admitted = 0;
  for (JobId id = 1; id <= house.last_job; ++id) {
    house.CheckOutcome(id);
    admitted += house.outcomes[id].admitted;
  }
  house.CheckAllFree();
  if (!workers_change && house.scheduler.preemptions() == 0) {
    EXPECT_EQ(house.workers.begin()->second->sequences_opened(), admitted) << "prefilled anew";
  }
}

TEST(SchedulerTest, AnswersDoNotDependOnTheRun) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    RunRandomly(seed);
    if (testing::Test::HasFailure()) return;
  }
}

// ---- workers that are to end, and workers that are silent
// ----------------------------------------

TEST(SchedulerTest, AWorkerThatDrainsFinishesWhatItHasAndGetsNothingNew) {
  House house;
  house.AddWorker(1, 100);
  const JobId old = house.Add(MakeJob(10, 20));
  house.PlanAll();
  house.AddWorker(2, 100);
  house.scheduler.DrainWorker(1, false);
  EXPECT_FALSE(house.scheduler.IsDrained(1));
  const JobId young = house.Add(MakeJob(10, 20, 8));
  house.PlanAll();
  EXPECT_EQ(house.workers[1]->live_sequences(), 1u);
  EXPECT_EQ(house.workers[2]->live_sequences(), 1u);
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_TRUE(house.scheduler.IsDrained(1));
  EXPECT_FALSE(house.scheduler.IsDrained(2));
  EXPECT_EQ(house.scheduler.moves(), 0);
  house.CheckOutcome(old);
  house.CheckOutcome(young);
  house.CheckAllFree();
}

TEST(SchedulerTest, WhatIsToldToMoveGoesOnElsewhereAsFarAsThereIsRoom) {
  House house;
  house.AddWorker(1, 100);
  std::vector<JobId> jobs;
  for (int i = 0; i < 3; ++i) jobs.push_back(house.Add(MakeJob(100, 30, i)));
  house.PlanAll();
  house.AddWorker(2, 6);  // pages: for two of the three
  house.Work(1);
  house.Deliver(1);
  house.scheduler.DrainWorker(1, true);
  house.PlanAll();
  EXPECT_EQ(house.scheduler.moves(), 2);
  EXPECT_FALSE(house.scheduler.IsDrained(1));
  EXPECT_EQ(house.scheduler.num_running(), 3);
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_TRUE(house.scheduler.IsDrained(1));
  for (const JobId job : jobs) house.CheckOutcome(job);
  house.CheckAllFree();
}

TEST(SchedulerTest, WithoutAnotherWorkerWhatRunsGoesOnAndWhatIsNewWaits) {
  House house;
  house.AddWorker(1, 5);
  // Together they outgrow the cache, so one is preempted and comes back.
  const JobId first = house.Add(MakeJob(100, 90));
  const JobId second = house.Add(MakeJob(100, 90, 8));
  house.PlanAll();
  house.scheduler.DrainWorker(1, true);
  const JobId young = house.Add(MakeJob(10, 5, 9));
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_GT(house.scheduler.preemptions(), 0);
  house.CheckOutcome(first);
  house.CheckOutcome(second);
  EXPECT_EQ(house.outcomes[young].admitted, 0);
  EXPECT_TRUE(house.scheduler.IsDrained(1));
  house.AddWorker(2, 5);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(young);
}

// Two that are to end do not play ball.
TEST(SchedulerTest, NothingMovesToAWorkerThatDrains) {
  House house;
  house.AddWorker(1, 100);
  house.AddWorker(2, 100);
  const JobId first = house.Add(MakeJob(10, 20));
  const JobId second = house.Add(MakeJob(10, 20, 8));
  house.PlanAll();
  house.scheduler.DrainWorker(1, true);
  house.scheduler.DrainWorker(2, true);
  ASSERT_TRUE(house.RunToEnd());
  EXPECT_EQ(house.scheduler.moves(), 0);
  house.CheckOutcome(first);
  house.CheckOutcome(second);
}

TEST(SchedulerTest, TheSequencesOfASilentWorkerGoOnElsewhere) {
  House house;
  house.AddWorker(1, 100);
  const JobId job = house.Add(MakeJob(100, 30));
  house.PlanAll();
  house.AddWorker(2, 100);
  house.scheduler.SetSilent(1, true);
  for (int i = 0; i < 1000 && house.outcomes[job].done == 0; ++i) {
    house.PlanAll();
    house.Work(2);
    house.Deliver(2);
  }
  EXPECT_EQ(house.scheduler.moves(), 1);
  house.CheckOutcome(job);
  // It comes back: its answers are of no use any more, and it gets work again.
  house.scheduler.SetSilent(1, false);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckAllFree();
  const JobId next = house.Add(MakeJob(10, 5));
  house.PlanAll();
  EXPECT_EQ(house.workers[1]->live_sequences() + house.workers[2]->live_sequences(), 1u);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(next);
}

TEST(SchedulerTest, ASilentWorkerKeepsWhatNobodyElseHasRoomFor) {
  House house;
  house.AddWorker(1, 100);
  const JobId job = house.Add(MakeJob(100, 30));
  house.PlanAll();
  house.scheduler.SetSilent(1, true);
  house.AddWorker(2, 1);
  house.PlanAll();
  EXPECT_EQ(house.scheduler.moves(), 0);
  house.scheduler.SetSilent(1, false);
  ASSERT_TRUE(house.RunToEnd());
  house.CheckOutcome(job);
  house.CheckAllFree();
}

}  // namespace
}  // namespace tandem
