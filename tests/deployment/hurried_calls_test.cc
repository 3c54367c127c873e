// Very many calls at once with little time, of which a third are cancelled, over everything that is
// between gRPC and the kernels: validation, texts, the step driver, two attention workers' engines,
// their experts. The same over gRPC is tests/integration/load_test.cc; this one runs under
// ThreadSanitizer, which gRPC does not.

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/mutex.h"
#include "gateway/served_model.h"
#include "gateway/step_driver.h"
#include "gateway/text_work.h"
#include "gateway/validate.h"
#include "tests/attention_worker/engine_harness.h"

namespace tandem {
namespace {

constexpr int kCalls = 20'000;
constexpr int kAtOnce = 64;
constexpr int kPages = 24;  // of a worker: a few calls' worth, so that some are preempted

std::string TinyModel() { return std::string(TANDEM_SOURCE_DIR) + "/tests/golden/tiny"; }

// What InferenceService makes of a request, without gRPC.
class Call : public JobSink, public std::enable_shared_from_this<Call> {
 public:
  Call(StepDriver* driver, absl::Time deadline) : driver_(driver), deadline_(deadline) {}

  void Start(const v1::GenerateRequest& request, const ServedModel& model) {
    Submit(gone() ? Gone() : ValidateGenerate(request, model, [this] { return gone(); }));
  }
  void Start(const v1::ScoreRequest& request, const ServedModel& model) {
    Submit(gone() ? Gone()
                  : ValidateScore(request, model, int64_t{1} << 30, [this] { return gone(); }));
  }

  void Cancel() {
    MutexLock lock(mutex_);
    cancelled_ = true;
    if (job_ != 0) driver_->Cancel(job_);
  }
  // Until it has so many tokens, or has ended.
  void WaitForTokens(size_t count) {
    Wait([this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return tokens_.size() >= count || ends_ > 0;
    });
  }
  absl::Status WaitForEnd() {
    Wait([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ends_ > 0; });
    MutexLock lock(mutex_);
    return status_;
  }
  int ends() const {
    MutexLock lock(mutex_);
    return ends_;
  }
  std::vector<int32_t> tokens() const {
    MutexLock lock(mutex_);
    return tokens_;
  }

  void OnAdmitted(int32_t) override {}
  void OnScored(const ScoredRow&, float, std::vector<float>) override {}
  void OnToken(const DrawnToken& token) override {
    MutexLock lock(mutex_);
    EXPECT_EQ(ends_, 0);
    tokens_.push_back(token.id);
    changed_.NotifyAll();
  }
  void OnEnd(JobEnd, absl::Status status) override {
    MutexLock lock(mutex_);
    ++ends_;
    status_ = std::move(status);
    changed_.NotifyAll();
  }

 private:
  bool gone() const {
    MutexLock lock(mutex_);
    return cancelled_ || absl::Now() >= deadline_;
  }

  static absl::StatusOr<ValidRequest> Gone() {
    return absl::CancelledError("nobody waits for the call any more");
  }

  void Submit(absl::StatusOr<ValidRequest> valid) {
    absl::Status status = valid.status();
    if (status.ok()) {
      valid->job.deadline = deadline_;
      const auto job = driver_->Submit(std::move(valid->job), shared_from_this());
      status = job.status();
      if (job.ok()) {
        MutexLock lock(mutex_);
        job_ = *job;
        if (cancelled_) driver_->Cancel(job_);
      }
    }
    if (!status.ok()) OnEnd(JobEnd::kFailed, std::move(status));
  }

  template <typename Condition>
  void Wait(Condition condition) {
    MutexLock lock(mutex_);
    if (changed_.WaitFor(lock, kTestDeadline, condition)) return;
    ADD_FAILURE() << "a call does not end";
    ++ends_;
  }

  StepDriver* const driver_;
  const absl::Time deadline_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  JobId job_ ABSL_GUARDED_BY(mutex_) = 0;
  int ends_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> tokens_ ABSL_GUARDED_BY(mutex_);
};

class HurriedCallsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto checkpoint = Checkpoint::Open(TinyModel());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    auto model = LoadServedModel(**checkpoint, TinyModel(), Dtype::kF32, "", nullptr);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    TestWorkerOptions options;
    options.total_pages = kPages;
    options.num_expert_workers = 2;
    for (auto& worker : workers_) worker = std::make_unique<TestWorker>(TinyModel(), options);
    for (WorkerId id = 1; id <= 2; ++id) ASSERT_TRUE(AddWorker(id).ok());
  }

  absl::Status AddWorker(WorkerId id) {
    return driver_.AddWorker(
        id,
        [&](AttentionLink::Observer* observer) -> absl::StatusOr<std::unique_ptr<AttentionLink>> {
          return workers_[id - 1]->engine().Connect(observer);
        });
  }

  // A prompt of 5 to 94 ids.
  template <typename Request>
  static void SetIds(std::mt19937_64& random, Request* request) {
    const uint64_t count = 5 + random() % 90;
    for (uint64_t i = 0; i < count; ++i) request->mutable_token_ids()->add_ids(random() % 1000);
  }

  // Text of as many bytes and more is tokenized by TextWork's threads.
  static v1::GenerateRequest Text(size_t bytes) {
    v1::GenerateRequest request;
    while (request.text().size() < bytes) request.mutable_text()->append("one two three ");
    request.set_max_tokens(5);
    return request;
  }

  template <typename Request>
  void Start(const std::shared_ptr<Call>& call, Request request) {
    const size_t bytes = TextBytes(request);
    const absl::Status taken = text_work_.Do(
        bytes, [this, call, request = std::move(request)] { call->Start(request, model_); });
    if (!taken.ok()) call->OnEnd(JobEnd::kFailed, taken);
  }

  absl::StatusCode Hurry(int number) {
    std::mt19937_64 random(number);
    const double ms = 0.1 * std::pow(400.0, std::uniform_real_distribution<>(0, 1)(random));
    // Fifty have all the time that they need, so that there is work in a slow build as well.
    const auto call =
        std::make_shared<Call>(&driver_, number % 400 == 1 ? absl::InfiniteFuture()
                                                           : absl::Now() + absl::Milliseconds(ms));
    if (number % 8 == 6) {
      v1::ScoreRequest score;
      SetIds(random, &score);
      Start(call, std::move(score));
    } else if (number % 8 == 7) {
      Start(call, Text(number % 16 == 7 ? 100 : 8 * TextWork::kShortBytes));
    } else {
      v1::GenerateRequest generate;
      SetIds(random, &generate);
      generate.set_max_tokens(1 + random() % 60);
      Start(call, std::move(generate));
    }
    if (number % 3 == 0) {
      call->WaitForTokens(random() % 4);
      call->Cancel();
    }
    const absl::Status status = call->WaitForEnd();
    EXPECT_EQ(call->ends(), 1);
    return status.code();
  }

  // By how they ended.
  std::map<absl::StatusCode, int> HurryAll() {
    Mutex mutex;
    std::map<absl::StatusCode, int> codes;
    std::atomic<int> next = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < kAtOnce; ++t) {
      threads.emplace_back([&, t] {
        int returns = 0;
        for (int i; (i = next++) < kCalls;) {
          const absl::StatusCode code = Hurry(i);
          // One worker goes and comes back, not so often that a job is given up for it.
          if (t == 0 && returns < 4 && i > (returns + 1) * kCalls / 5) {
            ++returns;
            driver_.RemoveWorker(2);
            EXPECT_TRUE(AddWorker(2).ok());
          }
          MutexLock lock(mutex);
          ++codes[code];
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return codes;
  }

  std::vector<int32_t> Answer() {
    std::mt19937_64 random(7);
    v1::GenerateRequest request;
    SetIds(random, &request);
    request.set_max_tokens(20);
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_temperature(0);
    const auto call = std::make_shared<Call>(&driver_, absl::InfiniteFuture());
    Start(call, std::move(request));
    EXPECT_TRUE(call->WaitForEnd().ok());
    return call->tokens();
  }

  ServedModel model_;
  std::unique_ptr<TestWorker> workers_[2];
  StepDriver driver_{SchedulerPolicy{}};
  TextWork text_work_;  // last: what it does uses the rest
};

TEST_F(HurriedCallsTest, TwentyThousandLeaveNothingBehind) {
  const std::vector<int32_t> before = Answer();
  EXPECT_EQ(before.size(), 20u);
  const std::map<absl::StatusCode, int> codes = HurryAll();
  for (const auto& [code, count] : codes) {
    EXPECT_TRUE(code == absl::StatusCode::kOk || code == absl::StatusCode::kCancelled ||
                code == absl::StatusCode::kDeadlineExceeded ||
                code == absl::StatusCode::kResourceExhausted)
        << code << " was seen " << count << " times";
    std::cout << code << ": " << count << "\n";
  }
  for (const absl::StatusCode code :
       {absl::StatusCode::kOk, absl::StatusCode::kCancelled, absl::StatusCode::kDeadlineExceeded}) {
    ASSERT_TRUE(codes.contains(code)) << code;
    EXPECT_GT(codes.at(code), 20) << code;
  }
  EXPECT_EQ(Answer(), before);
  EXPECT_TRUE(driver_.Drain(absl::Seconds(60)));
  for (const auto& worker : workers_) {
    EXPECT_TRUE(worker->WaitForCount("pages_free", kPages));
    for (const char* live : {"sequences_live", "batches_live", "rows_live"}) {
      EXPECT_TRUE(worker->WaitForCount(live, 0)) << live;
    }
  }
}

}  // namespace
}  // namespace tandem
