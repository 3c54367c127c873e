// Expert workers that get their experts from other expert workers instead of the checkpoint, as
// real programs: the same bits, and whoever dies meanwhile costs nothing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/checkpoint.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(60);
constexpr int kStreams = 4, kRequests = 6, kTokens = 12;

v1::GenerateRequest Request(int i) { return SeededRequest(i % kRequests, kTokens); }

struct Format {
  std::string dtype;
  std::string weights;
};

class PeerWeightsTest : public testing::TestWithParam<Format> {
 protected:
  void TearDown() override { Stop(); }
  void Stop() {
    ended_ = true;
    for (std::thread& stream : streams_) stream.join();
    streams_.clear();
    deployment_.reset();
    ended_ = false;
  }

  // With what an undisturbed deployment answers as what is expected.
  void Start(int experts, const std::string& copies, std::vector<std::string> flags = {}) {
    DeploymentOptions options;
    options.dtype = GetParam().dtype;
    options.weights_flags = {"--weights", GetParam().weights, "--packed-weights", "off"};
    if (expected_.empty()) {
      Deployment embedded(options);
      for (int i = 0; i < kRequests; ++i) expected_.push_back(Ask(embedded.stub(), Request(i)));
    }
    options.attention_workers = 1;
    options.expert_workers = experts;
    options.gateway_flags = {"--expert-copies", copies};
    options.expert_flags = std::move(flags);
    deployment_ = std::make_unique<Deployment>(options);
    for (int stream = 0; stream < kStreams; ++stream) {
      streams_.emplace_back([this, stream] {
        for (int i = stream; !ended_; ++i) {
          const Answer answer = Ask(deployment_->stub(), Request(i), kLimit);
          EXPECT_TRUE(answer == expected_[i % kRequests]) << answer.status.error_message();
          ++answers_;
        }
      });
    }
  }
  Process& Expert(size_t i) { return *deployment_->workers()[1 + i]; }
  // Of the expert worker of that process, by its last report; -1: there is none.
  int64_t Counter(size_t i, const std::string& name) {
    const std::string address = Expert(i).WaitForWord("expert worker on ", kLimit);
    const v1::GetStatusResponse status = deployment_->Status();
    for (const auto& worker : status.workers()) {
      if (worker.kind() != "expert" || worker.address() != address) continue;
      const auto it = worker.counters().find(name);
      if (it != worker.counters().end()) return it->second;
    }
    return -1;
  }
  // Whether so many expert workers are there and have what they are to have, and answers come.
  bool Settles(int wanted) {
    const bool settled = WaitUntil(
        [&] {
          const v1::GetStatusResponse status = deployment_->Status();
          int ready = 0, others = 0;
          for (const auto& worker : status.workers()) {
            if (worker.kind() == "expert") ++(worker.state() == "ready" ? ready : others);
          }
          return ready == wanted && others == 0 && status.detail() == "all workers are ready";
        },
        kLimit);
    const int before = answers_;
    return settled && WaitUntil([&] { return answers_ >= before + 2 * kStreams; }, kLimit);
  }

  std::vector<Answer> expected_;
  std::unique_ptr<Deployment> deployment_;
  std::atomic<bool> ended_ = false;
  std::atomic<int> answers_ = 0;
  std::vector<std::thread> streams_;
};

TEST_P(PeerWeightsTest, AThirdWorkerReadsNoExpertOfTheCheckpoint) {
  Start(2, "2");
  deployment_->StartExpertWorker({"--weights-from", "peers"});
  ASSERT_TRUE(Settles(3)) << Expert(2).Output();
  EXPECT_TRUE(WaitUntil(
      [&] {
        return Counter(2, "expert_loads_total") > 0 &&
               Counter(2, "expert_fetched_total") == Counter(2, "expert_loads_total");
      },
      kLimit))
      << Expert(2).Output();
  EXPECT_EQ(Counter(2, "mapped_bytes"), 0);
  EXPECT_EQ(Counter(2, "expert_fetched_bytes_total"), Counter(2, "expert_bytes"));
  EXPECT_GT(Counter(0, "mapped_bytes"), 0);
  EXPECT_TRUE(WaitUntil(
      [&] {
        return deployment_->Counter("expert", "weights_sent_total") ==
               Counter(2, "expert_fetched_total");
      },
      kLimit));
  // And now it alone has them.
  for (const size_t i : {0, 1}) Expert(i).Signal(SIGTERM);
  for (const size_t i : {0, 1}) EXPECT_EQ(Expert(i).Wait(kLimit), 0) << Expert(i).Output();
  EXPECT_TRUE(Settles(1));
  EXPECT_EQ(Counter(2, "mapped_bytes"), 0);  // from those that were leaving
}

// Where there is another holder, that one is asked; else the rest is read from the checkpoint. The
// kill comes with the first expert, so that it meets a transfer; not always.
TEST_P(PeerWeightsTest, AHolderThatIsKilledMeanwhileLosesNothing) {
  constexpr int64_t kExperts = 64;
  constexpr int kMostTries = 8;
  for (const int holders : {2, 1}) {
    bool in_the_middle = false;
    for (int i = 0; i < kMostTries && !in_the_middle && !HasFailure(); ++i) {
      Start(holders, "2");
      deployment_->StartExpertWorker({"--weights-from", "peers"});
      const auto late = static_cast<size_t>(holders);
      const std::string first =
          Expert(late).WaitForWord("the first from expert worker at ", kLimit);
      for (size_t e = 0; e < late; ++e) {
        if (Expert(e).WaitForWord("expert worker on ", kLimit) == first) Expert(e).Signal(SIGKILL);
      }
      ASSERT_TRUE(Settles(holders)) << Expert(late).Output();
      // What it has fetched of the first holder's is not fetched again.
      EXPECT_LE(Counter(late, "expert_fetched_total"), kExperts);
      if (holders == 2) {
        in_the_middle = Counter(late, "expert_fetch_failed_total") > 0;
        EXPECT_EQ(Counter(late, "mapped_bytes"), 0);
      } else {
        in_the_middle = Counter(late, "expert_fetched_total") < kExperts;
        EXPECT_EQ(in_the_middle, Counter(late, "mapped_bytes") > 0);
      }
      Stop();
    }
    EXPECT_TRUE(in_the_middle) << holders;
  }
}

TEST_P(PeerWeightsTest, WhereOthersGiveNothingTheCheckpointIsRead) {
  Start(1, "2", {"--weights-from", "checkpoint"});
  deployment_->StartExpertWorker({"--weights-from", "peers"});
  ASSERT_TRUE(Settles(2)) << Expert(1).Output();
  EXPECT_GT(Counter(1, "mapped_bytes"), 0);
  EXPECT_EQ(Counter(1, "expert_fetched_total"), 0);
  EXPECT_EQ(Counter(1, "expert_fetch_failed_total"), 1);  // and then not asked again
  EXPECT_THAT(Expert(1).Output(), testing::HasSubstr("is asked for no more weights"));
}

TEST_P(PeerWeightsTest, WhatLiesInMemoryIsNotFetchedUnasked) {
  const auto checkpoint = Checkpoint::Open(TinyModel());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  Start(1, "2");
  for (const auto& [name, tensor] : (*checkpoint)->tensors()) {
    if (!(*checkpoint)->IsInMemory(name)) GTEST_SKIP() << "the system does not say";
  }
  deployment_->StartExpertWorker({});
  ASSERT_TRUE(Settles(2)) << Expert(1).Output();
  EXPECT_GT(Counter(1, "mapped_bytes"), 0);
  EXPECT_EQ(Counter(1, "expert_fetched_total"), 0);
}

INSTANTIATE_TEST_SUITE_P(Formats, PeerWeightsTest,
                         testing::Values(Format{"f32", "f32"}, Format{"bf16", "bf16"},
                                         Format{"bf16", "int4"}),
                         [](const auto& info) { return info.param.weights; });

}  // namespace
}  // namespace tandem::test
