#include "gateway/step_driver.h"

#include <chrono>
#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/simulated_attention_link.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kLayers = 4;

class RecordingSink : public JobSink {
 public:
  void OnAdmitted(int32_t) override {
    std::lock_guard lock(mutex_);
    ++admitted_;
    changed_.notify_all();
  }
  void OnScored(const ScoredRow& row, float log_prob, std::vector<float>) override {
    std::lock_guard lock(mutex_);
    scores_.emplace_back(row.position, log_prob);
  }
  void OnToken(const DrawnToken& token) override {
    std::lock_guard lock(mutex_);
    tokens_.push_back(token.id);
    changed_.notify_all();
  }
  void OnEnd(JobEnd end, absl::Status status) override {
    std::lock_guard lock(mutex_);
    ++done_;
    end_ = end;
    status_ = std::move(status);
    changed_.notify_all();
  }

  void WaitForTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return tokens_.size() >= count || done_ > 0; });
  }
  absl::Status WaitForEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_ > 0; });
    return status_;
  }
  int done() {
    std::lock_guard lock(mutex_);
    return done_;
  }
  JobEnd end() {
    std::lock_guard lock(mutex_);
    return end_;
  }
  std::vector<int32_t> tokens() {
    std::lock_guard lock(mutex_);
    return tokens_;
  }
  size_t num_scores() {
    std::lock_guard lock(mutex_);
    return scores_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int admitted_ = 0;
  int done_ = 0;
  JobEnd end_ = JobEnd::kFailed;
  absl::Status status_;
  std::vector<int32_t> tokens_;
  std::vector<std::pair<int32_t, float>> scores_;
};

Job MakeJob(int prompt_tokens, int max_new_tokens, uint64_t seed) {
  Job job;
  for (int i = 0; i < prompt_tokens; ++i) {
    job.prompt.push_back(static_cast<int32_t>(SimulatedMix(seed + i) % kSimulatedVocab));
  }
  job.max_new_tokens = max_new_tokens;
  job.sampling.seed = seed;
  return job;
}

std::vector<int32_t> AnswerOf(const Job& job) {
  const uint64_t key =
      SimulatedKey(job.sampling, job.expanded_length, job.absorbed_pages,
                   job.mask_ids_without_token, static_cast<int32_t>(job.prompt.size()));
  return SimulatedAnswer(job.prompt, key, job.max_new_tokens, -2);
}

class StepDriverTest : public testing::Test {
 protected:
  AttentionLinkFactory Dial(int pages, int steps_until_down = -1) {
    return
        [=, this](
            AttentionLink::Observer* observer) -> absl::StatusOr<std::unique_ptr<AttentionLink>> {
          return std::make_unique<SimulatedAttentionLink>(kLayers, pages, observer, outcome_,
                                                          steps_until_down);
        };
  }
  int links_destroyed() {
    std::lock_guard lock(outcome_->mutex);
    return outcome_->links_destroyed;
  }
  void TearDown() override { EXPECT_THAT(outcome_->violations, IsEmpty()); }

  std::shared_ptr<SimulatedAttentionLink::Outcome> outcome_ =
      std::make_shared<SimulatedAttentionLink::Outcome>();
};

int64_t CounterOf(const StepDriver& driver, const std::string& name) {
  for (const auto& [key, value] : driver.Counters()) {
    if (key == name) return value;
  }
  return -1;
}

TEST_F(StepDriverTest, ChoicesAreTakenAllOrNone) {
  SchedulerPolicy policy;
  policy.max_waiting = 4;
  StepDriver driver(policy);
  const auto submit = [&](int count, std::vector<std::shared_ptr<RecordingSink>>* sinks) {
    std::vector<SubmittedJob> choices;
    for (int i = 0; i < count; ++i) {
      sinks->push_back(std::make_shared<RecordingSink>());
      choices.push_back({MakeJob(200, 5, 3), sinks->back()});
      choices.back().job.sampling.choice = static_cast<uint32_t>(i);
    }
    return driver.Submit(std::move(choices));
  };
  std::vector<std::shared_ptr<RecordingSink>> sinks, refused;
  const absl::StatusOr<JobId> first = submit(3, &sinks);
  ASSERT_TRUE(first.ok());
  const absl::Status full = submit(2, &refused).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()),
              HasSubstr("3 requests wait already, and with the 2 choices of this one"));
  EXPECT_TRUE(RetryAfter(full).has_value());
  // There is no use in asking that again.
  EXPECT_EQ(submit(5, &refused).status(),
            absl::InvalidArgumentError("n is 5, but at most 4 requests may wait"));
  ASSERT_TRUE(driver.AddWorker(1, Dial(40)).ok());
  for (uint32_t i = 0; i < 3; ++i) {
    Job job = MakeJob(200, 5, 3);
    job.sampling.choice = i;
    EXPECT_TRUE(sinks[i]->WaitForEnd().ok());
    EXPECT_EQ(sinks[i]->tokens(), AnswerOf(job));
  }
  EXPECT_EQ(submit(1, &sinks).value(), *first + 3);
  EXPECT_EQ(CounterOf(driver, "prefix_cache_hits_total") > 0, true);
}

TEST_F(StepDriverTest, ManyJobsOverTwoWorkers) {
  StepDriver driver{SchedulerPolicy{}};
  ASSERT_TRUE(driver.AddWorker(1, Dial(12)).ok());
  ASSERT_TRUE(driver.AddWorker(2, Dial(9)).ok());
  EXPECT_EQ(driver.num_workers(), 2);
  std::vector<std::pair<Job, std::shared_ptr<RecordingSink>>> runs;
  for (int i = 0; i < 100; ++i) {
    Job job = MakeJob(1 + i * 3, 1 + i % 40, i);
    if (i % 10 == 0) job.scored = {{0, 5, false}};
    const auto sink = std::make_shared<RecordingSink>();
    runs.emplace_back(job, sink);
    ASSERT_TRUE(driver.Submit(std::move(job), sink).ok());
  }
  int64_t tokens = 0;
  for (const auto& [job, sink] : runs) {
    EXPECT_TRUE(sink->WaitForEnd().ok());
    EXPECT_EQ(sink->end(), JobEnd::kLength);
    EXPECT_EQ(sink->tokens(), AnswerOf(job));
    EXPECT_EQ(sink->num_scores(), job.scored.size());
    tokens += static_cast<int64_t>(sink->tokens().size());
  }
  EXPECT_TRUE(driver.Drain(absl::Seconds(10)));
  EXPECT_EQ(CounterOf(driver, "jobs_total"), 100);
  EXPECT_EQ(CounterOf(driver, "tokens_generated_total"), tokens);
  for (const auto& [job, sink] : runs) EXPECT_EQ(sink->done(), 1);
}

TEST_F(StepDriverTest, WhatIsRefusedIsToldWhenToComeAgain) {
  SchedulerPolicy policy;
  policy.max_waiting = 1;
  policy.max_prompt_tokens = 100;
  StepDriver driver{policy};
  const auto refused = [&](int tokens) {
    return driver.Submit(MakeJob(tokens, 1, 2), std::make_shared<RecordingSink>()).status();
  };
  const absl::Status too_many_tokens = refused(101);
  EXPECT_EQ(too_many_tokens.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_many_tokens.message()), HasSubstr("may have 100 together"));
  EXPECT_EQ(RetryAfter(too_many_tokens), absl::Milliseconds(100));
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(driver.Submit(MakeJob(100, 1, 1), sink).ok());
  const absl::Status queue_is_full = refused(1);
  EXPECT_THAT(std::string(queue_is_full.message()), HasSubstr("1 requests wait already"));
  EXPECT_TRUE(RetryAfter(queue_is_full).has_value());
  EXPECT_EQ(RetryAfter(absl::ResourceExhaustedError("of something else")), std::nullopt);
  ASSERT_TRUE(driver.AddWorker(1, Dial(12)).ok());
  EXPECT_TRUE(sink->WaitForEnd().ok());
  // Its tokens are counted no more.
  const auto next = std::make_shared<RecordingSink>();
  absl::Status taken = absl::ResourceExhaustedError("");
  for (int i = 0; i < 100000 && !taken.ok(); ++i) {
    taken = driver.Submit(MakeJob(100, 1, 3), next).status();
    if (!taken.ok()) std::this_thread::yield();
  }
  ASSERT_TRUE(taken.ok()) << taken;
  EXPECT_TRUE(next->WaitForEnd().ok());
}

TEST_F(StepDriverTest, JobsMoveWhenTheirWorkerDies) {
  StepDriver driver{SchedulerPolicy{}};
  ASSERT_TRUE(driver.AddWorker(1, Dial(12, /*steps_until_down=*/9)).ok());
  const Job job = MakeJob(70, 60, 3);
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(driver.Submit(job, sink).ok());
  sink->WaitForTokens(8);
  ASSERT_TRUE(driver.AddWorker(2, Dial(12)).ok());
  EXPECT_TRUE(sink->WaitForEnd().ok());
  EXPECT_EQ(sink->tokens(), AnswerOf(job));
  EXPECT_FALSE(driver.HasWorker(1));
  EXPECT_TRUE(driver.HasWorker(2));
  driver.RemoveWorker(1);  // nothing is left of it
  EXPECT_EQ(links_destroyed(), 1);
  EXPECT_EQ(driver.num_workers(), 1);
}

TEST_F(StepDriverTest, RemoveWorkerReturnsWhenTheLinkIsDestroyed) {
  StepDriver driver{SchedulerPolicy{}};
  ASSERT_TRUE(driver.AddWorker(1, Dial(12)).ok());
  EXPECT_EQ(driver.AddWorker(1, Dial(12)).code(), absl::StatusCode::kAlreadyExists);
  driver.RemoveWorker(1);
  EXPECT_EQ(links_destroyed(), 1);
  EXPECT_EQ(driver.num_workers(), 0);
}

TEST_F(StepDriverTest, AFailedDialLeavesNothingBehind) {
  StepDriver driver{SchedulerPolicy{}};
  const auto dial =
      [](AttentionLink::Observer* observer) -> absl::StatusOr<std::unique_ptr<AttentionLink>> {
    observer->OnDown(absl::UnavailableError("gone at once"));
    return absl::UnavailableError("no answer");
  };
  EXPECT_EQ(driver.AddWorker(1, dial).code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(driver.AddWorker(1, Dial(4)).ok());
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(driver.Submit(MakeJob(10, 5, 1), sink).ok());
  EXPECT_TRUE(sink->WaitForEnd().ok());
}

TEST_F(StepDriverTest, CancelEndsAJobOnce) {
  StepDriver driver{SchedulerPolicy{}};
  const auto sink = std::make_shared<RecordingSink>();
  const auto id = driver.Submit(MakeJob(10, 5, 1), sink);  // waits: there is no worker
  ASSERT_TRUE(id.ok());
  driver.Cancel(*id);
  driver.Cancel(*id);
  EXPECT_EQ(sink->WaitForEnd().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(driver.Drain(absl::Seconds(10)));
  EXPECT_EQ(sink->done(), 1);
}

TEST_F(StepDriverTest, FinishEndsAJobAsASuccess) {
  StepDriver driver{SchedulerPolicy{}};
  ASSERT_TRUE(driver.AddWorker(1, Dial(200)).ok());
  const auto sink = std::make_shared<RecordingSink>();
  const auto id = driver.Submit(MakeJob(10, 10000, 1), sink);
  ASSERT_TRUE(id.ok());
  sink->WaitForTokens(3);
  driver.Finish(*id);
  driver.Finish(*id);
  EXPECT_TRUE(sink->WaitForEnd().ok());
  EXPECT_EQ(sink->end(), JobEnd::kStop);
  EXPECT_TRUE(driver.Drain(absl::Seconds(10)));
  EXPECT_EQ(sink->done(), 1);
}

TEST_F(StepDriverTest, CountsTheTimesOfTheWorkersSteps) {
  SchedulerPolicy policy;
  policy.decode_groups = 2;
  StepDriver driver(policy);
  EXPECT_EQ(CounterOf(driver, "decode_groups"), 0);
  ASSERT_TRUE(driver.AddWorker(1, Dial(12)).ok());
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(driver.Submit(MakeJob(10, 5, 1), sink).ok());
  EXPECT_TRUE(sink->WaitForEnd().ok());
  EXPECT_EQ(CounterOf(driver, "decode_groups"), 2);
  driver.RemoveWorker(1);  // so that what was handled before is published
  const int64_t steps = CounterOf(driver, "steps_total");
  EXPECT_EQ(CounterOf(driver, "worker_busy_us_total"), steps * kSimulatedBusyUs);
  EXPECT_EQ(CounterOf(driver, "worker_wait_us_total"), steps * kSimulatedWaitUs);
}

TEST_F(StepDriverTest, RefusesJobsWhenFullOrDraining) {
  SchedulerPolicy policy;
  policy.max_waiting = 2;
  auto driver = std::make_unique<StepDriver>(policy);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 2; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    ASSERT_TRUE(driver->Submit(MakeJob(10, 5, i), sinks.back()).ok());
  }
  const auto full = driver->Submit(MakeJob(10, 5, 3), sinks[0]);
  EXPECT_EQ(full.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.status().message()), HasSubstr("2"));
  EXPECT_FALSE(driver->Drain(absl::Milliseconds(1)));
  EXPECT_EQ(driver->Submit(MakeJob(10, 5, 3), sinks[0]).status().code(),
            absl::StatusCode::kUnavailable);
  driver.reset();
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->WaitForEnd().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(sink->done(), 1);
  }
}

TEST_F(StepDriverTest, RefusesJobsWhileItDrainsAndWaitsForThoseItHas) {
  StepDriver driver(SchedulerPolicy{});
  const auto sink = std::make_shared<RecordingSink>();
  const auto job = driver.Submit(MakeJob(10, 5, 1), sink);
  ASSERT_TRUE(job.ok());
  auto drained = std::async([&] { return driver.Drain(absl::InfiniteDuration()); });
  absl::Status refused;  // once draining has begun
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (refused.ok() && std::chrono::steady_clock::now() < deadline) {
    const auto more = driver.Submit(MakeJob(1, 1, 2), std::make_shared<RecordingSink>());
    refused = more.status();
    if (more.ok()) driver.Cancel(*more);
    std::this_thread::yield();
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  EXPECT_EQ(sink->done(), 0);
  driver.Cancel(*job);
  EXPECT_TRUE(drained.get());
  EXPECT_EQ(sink->WaitForEnd().code(), absl::StatusCode::kCancelled);
}

TEST_F(StepDriverTest, DeadlinesAreKeptWithoutAnyEvent) {
  SchedulerPolicy policy;
  policy.max_wait_without_worker = absl::Milliseconds(20);
  StepDriver driver(policy);
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(driver.Submit(MakeJob(10, 5, 1), sink).ok());
  EXPECT_EQ(sink->WaitForEnd().code(), absl::StatusCode::kUnavailable);
}

TEST_F(StepDriverTest, FailsWhatStillRunsAfterTheGrace) {
  StepDriver driver{SchedulerPolicy{}};
  ASSERT_TRUE(driver.AddWorker(1, Dial(200)).ok());
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(driver.Submit(MakeJob(10, 10000, 1), sink).ok());
  sink->WaitForTokens(3);
  EXPECT_FALSE(driver.Drain(absl::Milliseconds(1)));
  EXPECT_EQ(sink->done(), 1);
  EXPECT_EQ(sink->WaitForEnd().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(sink->WaitForEnd().message()), HasSubstr("shutting down"));
  driver.RemoveWorker(1);
  EXPECT_EQ(links_destroyed(), 1);
  EXPECT_EQ(driver.AddWorker(2, Dial(12)).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(driver.num_workers(), 0);
}

TEST_F(StepDriverTest, EndsInTheMidstOfWork) {
  const auto sink = std::make_shared<RecordingSink>();
  {
    StepDriver driver{SchedulerPolicy{}};
    ASSERT_TRUE(driver.AddWorker(1, Dial(200)).ok());
    ASSERT_TRUE(driver.Submit(MakeJob(10, 10000, 1), sink).ok());
    sink->WaitForTokens(3);
  }
  EXPECT_EQ(sink->done(), 1);
  EXPECT_EQ(sink->WaitForEnd().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace tandem
