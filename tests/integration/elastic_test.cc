// Workers come, go, stop and die under load: no request fails, and all get the bits that they get
// from one process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "deployment.h"

namespace tandem::test {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(30);
constexpr int kRequests = 16;
constexpr uint32_t kTokens = 24;
constexpr int kStreams = 6;
constexpr uint32_t kLongTokens = 600;

const std::vector<Answer>& Undisturbed() {
  static const std::vector<Answer>* const answers = [] {
    Deployment embedded({});
    std::vector<v1::GenerateRequest> requests;
    for (int i = 0; i < kRequests; ++i) requests.push_back(SeededRequest(i, kTokens));
    return new std::vector<Answer>(AskAll(embedded.stub(), requests, 8));
  }();
  return *answers;
}

// Asks, in several streams one request after the other, until it is destroyed.
class Load {
 public:
  explicit Load(Deployment& deployment) : expected_(Undisturbed()) {
    for (int stream = 0; stream < kStreams; ++stream) {
      threads_.emplace_back([this, &deployment, stream] {
        for (int i = stream; !ended_; ++i) {
          const Answer answer =
              Ask(deployment.stub(), SeededRequest(i % kRequests, kTokens), kLimit);
          EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
          EXPECT_TRUE(answer == expected_[i % kRequests]) << "request " << i % kRequests;
          ++answers_;
        }
      });
    }
  }
  ~Load() {
    ended_ = true;
    for (std::thread& thread : threads_) thread.join();
  }
  // Whether it goes on: some answers come from now on.
  bool GoesOn() {
    const int before = answers_;
    return WaitUntil([&] { return answers_ >= before + 2 * kStreams; }, kLimit);
  }

 private:
  const std::vector<Answer>& expected_;
  std::atomic<bool> ended_ = false;
  std::atomic<int> answers_ = 0;
  std::vector<std::thread> threads_;
};

class ElasticTest : public testing::Test {
 protected:
  void Start(const std::string& copies, int attention_workers = 1) {
    DeploymentOptions options;
    options.attention_workers = attention_workers;
    options.expert_workers = 1;
    options.gateway_flags = {"--expert-copies", copies};
    options.attention_flags = {"--drain-limit", "10"};
    deployment_ = std::make_unique<Deployment>(options);
    experts_ = {static_cast<size_t>(attention_workers)};  // behind them
  }
  void Add() {
    deployment_->StartExpertWorker();
    experts_.push_back(deployment_->workers().size() - 1);
  }
  Process& Attention(size_t i) { return *deployment_->workers()[i]; }
  // The number by which the gateway calls the attention worker of that process; 0: none.
  uint32_t AttentionId(size_t i) {
    const std::string address = Attention(i).WaitForWord("attention worker on ", kLimit);
    const v1::GetStatusResponse status = deployment_->Status();
    for (const auto& worker : status.workers()) {
      if (worker.kind() == "attention" && worker.address() == address) return worker.id();
    }
    return 0;
  }
  Process& Expert(size_t i) { return *deployment_->workers()[experts_[i]]; }
  // Whether so many expert workers are there, and have what they are to have.
  bool Settles(int wanted) {
    return WaitUntil(
        [&] {
          const v1::GetStatusResponse status = deployment_->Status();
          int ready = 0, others = 0;
          for (const auto& worker : status.workers()) {
            if (worker.kind() == "expert") ++(worker.state() == "ready" ? ready : others);
          }
          return ready == wanted && others == 0 && status.detail() == "all workers are ready";
        },
        kLimit);
  }
  // What the expert workers hold, by the reports after they have settled.
  bool EachHolds(int64_t least, int64_t most) {
    return WaitUntil(
        [&] {
          for (const int64_t held : deployment_->CounterEach("expert", "experts_loaded")) {
            if (held < least || held > most) return false;
          }
          return true;
        },
        kLimit);
  }

  std::unique_ptr<Deployment> deployment_;
  std::vector<size_t> experts_;  // indices of workers
};

TEST_F(ElasticTest, OneTwoFourTwoOneWithoutALostRequest) {
  Start("1");
  const int64_t all = deployment_->CounterEach("expert", "experts_loaded")[0];
  Load load(*deployment_);
  Add();
  ASSERT_TRUE(Settles(2)) << deployment_->gateway().Output();
  EXPECT_TRUE(EachHolds(all / 2, all / 2));
  Add();
  Add();
  ASSERT_TRUE(Settles(4));
  EXPECT_TRUE(EachHolds(all / 4, all / 4));
  EXPECT_TRUE(load.GoesOn());
  for (const size_t i : {0, 2}) Expert(i).Signal(SIGTERM);
  for (const size_t i : {0, 2}) EXPECT_EQ(Expert(i).Wait(kLimit), 0) << Expert(i).Output();
  ASSERT_TRUE(Settles(2));
  EXPECT_TRUE(load.GoesOn());
  Expert(1).Signal(SIGTERM);
  EXPECT_EQ(Expert(1).Wait(kLimit), 0) << Expert(1).Output();
  ASSERT_TRUE(Settles(1));
  EXPECT_TRUE(EachHolds(all, all));
  EXPECT_TRUE(load.GoesOn());
  EXPECT_EQ(deployment_->Counter("gateway", "preemptions_total"), 0);
}

TEST_F(ElasticTest, KillingAnyExpertWorkerLosesNothing) {
  Start("2");
  Load load(*deployment_);
  Add();
  Add();
  ASSERT_TRUE(Settles(3)) << deployment_->gateway().Output();
  for (const size_t i : {0, 1, 2}) {
    Expert(i).Signal(SIGKILL);
    Add();
    EXPECT_TRUE(load.GoesOn());
    ASSERT_TRUE(Settles(3));
  }
}

// The only one: the others are where all goes, and it waits for them.
TEST_F(ElasticTest, TheLastOneWaitsForItsSuccessor) {
  Start("1");
  Load load(*deployment_);
  Expert(0).Signal(SIGTERM);
  ASSERT_TRUE(WaitUntil(
      [&] {
        const v1::GetStatusResponse status = deployment_->Status();
        return std::any_of(status.workers().begin(), status.workers().end(),
                           [](const auto& worker) { return worker.state() == "draining"; });
      },
      kLimit));
  EXPECT_TRUE(load.GoesOn());
  EXPECT_TRUE(Expert(0).running());
  Add();
  EXPECT_EQ(Expert(0).Wait(kLimit), 0) << Expert(0).Output();
  EXPECT_TRUE(load.GoesOn());
}

// What runs there ends there or goes on elsewhere; the last one that is left has it all.
TEST_F(ElasticTest, AttentionWorkersDrainWithoutALostRequest) {
  Start("1", 3);
  Load load(*deployment_);
  ASSERT_TRUE(load.GoesOn());
  Attention(0).Signal(SIGTERM);
  const TempDir dir;
  Process drain({Binary("tandem"), "drain", "--registry", deployment_->registry(),
                 std::to_string(AttentionId(1))},
                dir.path() + "/drain");
  EXPECT_EQ(drain.Wait(kLimit), 0) << drain.Output();
  for (const size_t i : {0, 1}) {
    EXPECT_EQ(Attention(i).Wait(kLimit), 0) << Attention(i).Output();
    EXPECT_THAT(Attention(i).Output(), testing::Not(testing::HasSubstr("it ends now")));
  }
  EXPECT_TRUE(load.GoesOn());
  EXPECT_EQ(deployment_->CounterEach("attention", "reports_total").size(), 1u);
}

// Its sequences go on elsewhere, though it is still a member.
TEST_F(ElasticTest, AStoppedAttentionWorkerHoldsNobodyUp) {
  Start("1", 2);
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 8; ++i) requests.push_back(SeededRequest(i, kLongTokens));
  Deployment embedded({});
  const std::vector<Answer> expected = AskAll(embedded.stub(), requests, 8);
  auto answers =
      std::async(std::launch::async, [&] { return AskAll(deployment_->stub(), requests, 8); });
  ASSERT_TRUE(WaitUntil(
      [&] { return deployment_->Counter("gateway", "tokens_generated_total") > 100; }, kLimit));
  Attention(0).Signal(SIGSTOP);
  EXPECT_EQ(answers.get(), expected);
  EXPECT_THAT(deployment_->gateway().Output(), testing::HasSubstr("is silent"));
  EXPECT_GT(deployment_->Counter("gateway", "moves_total"), 0);
  Attention(0).Signal(SIGCONT);
  // Its lease may be over by then: it joins anew.
  ASSERT_TRUE(WaitUntil(
      [&] { return deployment_->Counter("gateway", "attention_workers_ready") == 2; }, kLimit));
  EXPECT_TRUE(deployment_->WaitIdle());
}

// A gateway that is started again takes its workers as they are.
TEST_F(ElasticTest, ANewGatewayLoadsNothingTwice) {
  Start("1");
  Add();
  ASSERT_TRUE(Settles(2));
  const int64_t all = deployment_->Counter("expert", "expert_loads_total");
  deployment_->gateway().Signal(SIGKILL);
  deployment_->gateway().Wait(kLimit);
  deployment_->RestartGateway();
  ASSERT_TRUE(Settles(2));
  EXPECT_EQ(deployment_->Counter("expert", "expert_loads_total"), all);
  EXPECT_TRUE(Ask(deployment_->stub(), SeededRequest(1, kTokens)) == Undisturbed()[1]);
}

}  // namespace
}  // namespace tandem::test
