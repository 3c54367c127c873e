// A scheduler with simulated workers, for tests.
#ifndef TANDEM_TESTS_GATEWAY_SCHEDULER_HOUSE_H_
#define TANDEM_TESTS_GATEWAY_SCHEDULER_HOUSE_H_

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "gateway/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/simulated_attention_link.h"

namespace tandem {

inline constexpr int kLayers = 5;

inline uint64_t KeyOf(const Job& job) {
  return SimulatedKey(job.sampling, job.expanded_length, job.absorbed_pages,
                      job.mask_ids_without_token, static_cast<int32_t>(job.prompt.size()));
}

// A scheduler with simulated workers, without threads: the test says who moves when.
class House {
 public:
  struct Outcome {
    Job job;
    std::vector<int32_t> answer;  // what is to come, a stop id included
    int admitted = 0;
    int32_t cached_tokens = 0;
    int done = 0;
    int place_at_end = 0;  // among those that ended; 0: not yet
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
  JobId Add(Job job, JobId leader = 0) {
    const JobId id = ++last_job;
    outcomes[id].job = job;
    outcomes[id].answer = SimulatedAnswer(job.prompt, KeyOf(job), job.max_new_tokens, StopOf(job));
    EXPECT_TRUE(scheduler.Add(id, std::move(job), now, leader).ok());
    return id;
  }
  // As StepDriver hands in the choices of one request.
  std::vector<JobId> AddChoices(Job job, uint32_t count) {
    std::vector<JobId> ids;
    for (uint32_t i = 0; i < count; ++i, ++job.sampling.choice) {
      ids.push_back(Add(job, ids.empty() ? 0 : ids.front()));
    }
    return ids;
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
    EXPECT_THAT(worker.violations(), ::testing::IsEmpty());
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
  int num_ended = 0;

 private:
  static int32_t StopOf(const Job& job) { return job.eos_ids.empty() ? -2 : job.eos_ids[0]; }

  void Take(std::vector<SchedulerEvent> events) {
    for (SchedulerEvent& event : events) {
      Outcome& outcome = outcomes.at(event.job);
      EXPECT_EQ(outcome.done, 0) << "an event after the end";
      switch (event.kind) {
        case SchedulerEvent::Kind::kAdmitted:
          ++outcome.admitted;
          outcome.cached_tokens = event.cached_tokens;
          break;
        case SchedulerEvent::Kind::kScored:
          TakeScore(event, &outcome);
          break;
        case SchedulerEvent::Kind::kToken: {
          const std::vector<int32_t>& answer = outcome.answer;
          ASSERT_LT(outcome.tokens.size(), answer.size());
          EXPECT_EQ(event.token.id, answer[outcome.tokens.size()]);
          EXPECT_EQ(event.token.top, SimulatedTop(event.token.id, outcome.job.top_logprobs));
          EXPECT_EQ(outcome.scored, outcome.job.scored.size()) << "a token before a score";
          outcome.tokens.push_back(event.token.id);
          break;
        }
        case SchedulerEvent::Kind::kDone:
          ++outcome.done;
          outcome.place_at_end = ++num_ended;
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
      EXPECT_THAT(event.logits, ::testing::Each(SimulatedLogProb(state, -1)));
    } else {
      EXPECT_THAT(event.logits, ::testing::IsEmpty());
    }
  }
};

inline Job MakeJob(int prompt_tokens, int max_new_tokens, uint64_t seed = 7) {
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
inline void FailAt(House* house, int layer) {
  house->PlanAll();
  house->workers[1]->FailNextStepAt(layer);
  for (int i = 0; i < 2; ++i) house->Work(1);
  for (int i = 0; i < 2; ++i) house->Deliver(1);
}

inline std::set<SequenceId> SequencesOf(const std::optional<Step>& step) {
  std::set<SequenceId> sequences;
  if (!step.has_value()) return sequences;
  for (const NewBatch& batch : step->new_batches) {
    for (const RowRun& run : batch.runs) sequences.insert(run.sequence);
  }
  return sequences;
}

}  // namespace tandem

#endif  // TANDEM_TESTS_GATEWAY_SCHEDULER_HOUSE_H_
