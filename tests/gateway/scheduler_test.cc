#include "gateway/scheduler.h"

#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/simulated_attention_link.h"

namespace tandem {
namespace {

using ::testing::AnyOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int kLayers = 5;

uint64_t KeyOf(const Job& job) {
  return SimulatedKey(job.sampling, job.expanded_length, job.mask_ids_without_token);
}

// A scheduler with simulated workers, without threads: the test says who moves when.
class House {
 public:
  struct Outcome {
    Job job;
    std::vector<int32_t> answer;  // what is to come, a stop id included
    int admitted = 0;
    int done = 0;
    JobEnd end = JobEnd::kFailed;
    absl::Status status;
    std::vector<int32_t> tokens;
    size_t scored = 0;
  };

  explicit House(SchedulerPolicy policy = {}) : scheduler(policy) {}

  void AddWorker(WorkerId id, int pages, int layers = kLayers) {
    workers[id] = std::make_unique<SimulatedAttentionWorker>(layers, pages);
    ASSERT_TRUE(scheduler.AddWorker(id, workers[id]->info()).ok());
  }
  void RemoveWorker(WorkerId id) {
    CheckWorker(*workers.at(id));
    workers.erase(id);
    results.erase(id);
    Take(scheduler.RemoveWorker(id, now));
  }
  JobId Add(Job job) {
    const JobId id = ++last_job;
    outcomes[id].job = job;
    outcomes[id].answer = SimulatedAnswer(job.prompt, KeyOf(job), job.max_new_tokens, StopOf(job));
    EXPECT_TRUE(scheduler.Add(id, std::move(job), now).ok());
    return id;
  }
  void Cancel(JobId id) { Take(scheduler.Cancel(id)); }
  void Expire() { Take(scheduler.Expire(now)); }

  // Returns the step that was sent, if one was.
  std::optional<Step> Plan(WorkerId id) {
    WorkerOrders orders = scheduler.NextStep(id);
    changed = orders.changed_something();
    SimulatedAttentionWorker& worker = *workers.at(id);
    for (const SequenceId sequence : orders.cancels) worker.Cancel(sequence);
    for (const SequenceId sequence : orders.releases) worker.Release(sequence);
    for (SequenceSpec& spec : orders.opens) worker.OpenSequence(std::move(spec));
    if (orders.step.has_value()) {
      worker.Run(*orders.step);
      max_rows = std::max(max_rows, RowsOf(*orders.step));
    }
    Take(std::move(orders.events));
    return orders.step;
  }
  void PlanAll() {
    bool again = true;
    while (again) {
      again = false;
      for (const auto& [id, worker] : workers) {
        Plan(id);
        again = again || changed;
      }
    }
  }
  // The worker runs its oldest step; the gateway hears of it at Deliver.
  void Work(WorkerId id) {
    std::optional<StepResult> result = workers.at(id)->RunOne();
    if (result.has_value()) results[id].push_back(*std::move(result));
  }
  void Deliver(WorkerId id) {
    std::deque<StepResult>& queue = results[id];
    if (queue.empty()) return;
    StepResult result = std::move(queue.front());
    queue.pop_front();
    Take(scheduler.OnStepDone(id, std::move(result)));
  }
  // Until nothing is left to do; false: it did not end.
  bool RunToEnd(int limit = 100000) {
    for (int i = 0; i < limit; ++i) {
      PlanAll();
      bool worked = false;
      for (const auto& [id, worker] : workers) {
        worked = worked || worker->queued() > 0 || !results[id].empty();
        Work(id);
        Deliver(id);
      }
      if (!worked) return true;
    }
    return false;
  }
  void CheckWorker(const SimulatedAttentionWorker& worker) {
    EXPECT_THAT(worker.violations(), IsEmpty());
  }
  void CheckAllFree() {
    for (const auto& [id, worker] : workers) {
      CheckWorker(*worker);
      EXPECT_EQ(worker->free_pages(), worker->info().total_pages);
      EXPECT_EQ(worker->live_sequences(), 0u);
      EXPECT_EQ(worker->live_batches(), 0u);
      EXPECT_EQ(scheduler.free_pages(id), worker->info().total_pages);
    }
    EXPECT_EQ(scheduler.num_waiting() + scheduler.num_running(), 0);
  }
  // Tokens and scores are checked as they come; this looks at the end.
  void CheckOutcome(JobId id) {
    const Outcome& outcome = outcomes.at(id);
    EXPECT_EQ(outcome.done, 1);
    if (outcome.end == JobEnd::kFailed) {
      EXPECT_FALSE(outcome.status.ok());
      EXPECT_NE(outcome.status.code(), absl::StatusCode::kInternal) << outcome.status;
      return;
    }
    EXPECT_TRUE(outcome.status.ok());
    EXPECT_EQ(outcome.admitted, 1);
    EXPECT_EQ(outcome.scored, outcome.job.scored.size());
    const std::vector<int32_t>& answer = outcome.answer;
    const bool stopped = !answer.empty() && answer.back() == StopOf(outcome.job);
    const JobEnd end = outcome.job.max_new_tokens == 0 ? JobEnd::kScored
                       : stopped                       ? JobEnd::kEos
                                                       : JobEnd::kLength;
    EXPECT_EQ(outcome.end, end);
    EXPECT_EQ(outcome.tokens.size(), answer.size() - (stopped ? 1 : 0));
  }

  static int RowsOf(const Step& step) {
    int rows = 0;
    for (const NewBatch& batch : step.new_batches) {
      for (const RowRun& run : batch.runs) rows += run.last_sampled ? 0 : run.count;
    }
    return rows;
  }

  Scheduler scheduler;
  std::map<WorkerId, std::unique_ptr<SimulatedAttentionWorker>> workers;
  std::map<WorkerId, std::deque<StepResult>> results;
  std::map<JobId, Outcome> outcomes;
  absl::Time now = absl::UnixEpoch();
  JobId last_job = 0;
  bool changed = false;
  int max_rows = 0;  // of prefill in one step

 private:
  static int32_t StopOf(const Job& job) { return job.eos_ids.empty() ? -2 : job.eos_ids[0]; }

  void Take(std::vector<SchedulerEvent> events) {
    for (SchedulerEvent& event : events) {
      Outcome& outcome = outcomes.at(event.job);
      EXPECT_EQ(outcome.done, 0) << "an event after the end";
      switch (event.kind) {
        case SchedulerEvent::Kind::kAdmitted:
          ++outcome.admitted;
          break;
        case SchedulerEvent::Kind::kScored:
          TakeScore(event, &outcome);
          break;
        case SchedulerEvent::Kind::kToken: {
          const std::vector<int32_t>& answer = outcome.answer;
          ASSERT_LT(outcome.tokens.size(), answer.size());
          EXPECT_EQ(event.token, answer[outcome.tokens.size()]);
          EXPECT_EQ(outcome.scored, outcome.job.scored.size()) << "a token before a score";
          outcome.tokens.push_back(event.token);
          break;
        }
        case SchedulerEvent::Kind::kDone:
          ++outcome.done;
          outcome.end = event.end;
          outcome.status = event.status;
          break;
      }
    }
  }

  static void TakeScore(const SchedulerEvent& event, Outcome* outcome) {
    ASSERT_LT(outcome->scored, outcome->job.scored.size());
    const ScoredRow& wanted = outcome->job.scored[outcome->scored++];
    EXPECT_EQ(event.row.position, wanted.position);
    const uint64_t state = SimulatedState(outcome->job.prompt, wanted.position + 1);
    const bool has_target = wanted.target >= 0;
    EXPECT_EQ(event.log_prob, has_target ? SimulatedLogProb(state, wanted.target) : 0.0f);
    if (wanted.logits) {
      EXPECT_EQ(event.logits.size(), static_cast<size_t>(kSimulatedVocab));
      EXPECT_THAT(event.logits, Each(SimulatedLogProb(state, -1)));
    } else {
      EXPECT_THAT(event.logits, IsEmpty());
    }
  }
};

Job MakeJob(int prompt_tokens, int max_new_tokens, uint64_t seed = 7) {
  Job job;
  for (int i = 0; i < prompt_tokens; ++i) {
    job.prompt.push_back(static_cast<int32_t>(SimulatedMix(seed + i) % kSimulatedVocab));
  }
  job.expanded_length = SequenceSpec::ExpandedLength(prompt_tokens);
  job.max_new_tokens = max_new_tokens;
  job.sampling.seed = seed;
  return job;
}

// Plans two steps, lets the first one fail before `layer` and the second one meet that.
void FailAt(House* house, int layer) {
  house->PlanAll();
  house->workers[1]->FailNextStepAt(layer);
  for (int i = 0; i < 2; ++i) house->Work(1);
  for (int i = 0; i < 2; ++i) house->Deliver(1);
}

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

std::set<SequenceId> SequencesOf(const std::optional<Step>& step) {
  std::set<SequenceId> sequences;
  if (!step.has_value()) return sequences;
  for (const NewBatch& batch : step->new_batches) {
    for (const RowRun& run : batch.runs) sequences.insert(run.sequence);
  }
  return sequences;
}

SchedulerPolicy TwoGroups() {
  SchedulerPolicy policy;
  policy.decode_groups = 2;
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

TEST(SchedulerTest, JobsGoToTheWorkerWithMostFreePages) {
  House house;
  house.AddWorker(1, 4);
  house.AddWorker(2, 8);
  house.Add(MakeJob(60, 10));
  EXPECT_FALSE(house.Plan(1).has_value());
  EXPECT_TRUE(house.Plan(2).has_value());
}

TEST(SchedulerTest, RefusesJobsWhenTheQueueIsFull) {
  SchedulerPolicy policy;
  policy.max_waiting = 1;
  Scheduler scheduler(policy);
  EXPECT_TRUE(scheduler.Add(1, MakeJob(1, 1), absl::UnixEpoch()).ok());
  EXPECT_EQ(scheduler.Add(2, MakeJob(1, 1), absl::UnixEpoch()).code(),
            absl::StatusCode::kResourceExhausted);
}

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
  House house;
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
  for (int move = 0; move < moves; ++move) {
    if (jobs_left > 0 && random.Chance(10)) {
      --jobs_left;
      Job job = RandomJob(&random);
      if (random.Chance(5)) job.deadline = house.now + absl::Seconds(random.Draw(0, 100));
      house.Add(std::move(job));
    }
    if (house.last_job > 0 && random.Chance(1)) house.Cancel(random.Draw(1, house.last_job));
    if (workers_change && random.Chance(1)) ChangeWorkers(&house, &random, &last_worker);
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

}  // namespace
}  // namespace tandem
