// Many calls at once that end in every way that a call can, and what they leave behind: nothing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr absl::Duration kLimit = absl::Seconds(60);
constexpr int kAtOnce = 64;

// Calls with deadlines from 0.1 to 40 ms, of which a third are cancelled by the client, by their
// status codes.
class HurriedCalls {
 public:
  explicit HurriedCalls(const std::string& address) : address_(address) {}

  std::map<grpc::StatusCode, int> Run(int count) {
    std::vector<std::thread> threads;
    std::atomic<int> next = 0;
    for (int t = 0; t < kAtOnce; ++t) {
      threads.emplace_back([&] {
        const auto stub = v1::Inference::NewStub(
            grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
        for (int i; (i = next++) < count;) Add(Call(*stub, i));
      });
    }
    for (std::thread& thread : threads) thread.join();
    return std::exchange(codes_, {});
  }

 private:
  static grpc::StatusCode Call(v1::Inference::Stub& stub, int number) {
    std::mt19937_64 random(number);
    const double ms = 0.1 * std::pow(400.0, std::uniform_real_distribution<>(0, 1)(random));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(static_cast<int64_t>(ms * 1000)));
    const bool cancel = number % 3 == 0;
    int reads = cancel ? static_cast<int>(random() % 4) : 1 << 30;
    const auto read_all = [&](auto stream, auto response) {
      while (reads-- > 0 && stream->Read(&response)) {
      }
      if (cancel) context.TryCancel();
      while (stream->Read(&response)) {
      }
      return stream->Finish().error_code();
    };
    switch (number % 8) {
      case 6: {
        v1::ScoreRequest request;
        *request.mutable_token_ids() = SeededRequest(number, 1).token_ids();
        return read_all(stub.Score(&context, request), v1::ScoreResponse());
      }
      case 7: {
        v1::TokenizeRequest request;
        request.set_text("one two three four five six seven");
        v1::TokenizeResponse response;
        return stub.Tokenize(&context, request, &response).error_code();
      }
      default:
        return read_all(stub.Generate(&context, SeededRequest(number, 1 + random() % 60)),
                        v1::GenerateResponse());
    }
  }

  void Add(grpc::StatusCode code) {
    std::lock_guard<std::mutex> lock(mutex_);
    ++codes_[code];
  }

  const std::string address_;
  std::mutex mutex_;
  std::map<grpc::StatusCode, int> codes_;
};

// (attention workers, expert workers); none: all in the gateway's process.
class LoadTest : public testing::TestWithParam<std::pair<int, int>> {};

TEST_P(LoadTest, TwentyThousandHurriedCallsLeaveNothingBehind) {
  DeploymentOptions options;
  std::tie(options.attention_workers, options.expert_workers) = GetParam();
  Deployment deployment(options);
  const Answer before = Ask(deployment.stub(), SeededRequest(7, 20), kLimit);
  ASSERT_TRUE(before.status.ok()) << before.status.error_message();
  const auto codes = HurriedCalls(deployment.address()).Run(20'000);
  for (const auto& [code, count] : codes) {
    EXPECT_TRUE(code == grpc::OK || code == grpc::CANCELLED || code == grpc::DEADLINE_EXCEEDED ||
                code == grpc::RESOURCE_EXHAUSTED)
        << "status code " << code << " was seen " << count << " times";
  }
  EXPECT_GT(codes.at(grpc::DEADLINE_EXCEEDED), 1000);
  EXPECT_TRUE(deployment.WaitIdle()) << deployment.Status().DebugString();
  EXPECT_EQ(Ask(deployment.stub(), SeededRequest(7, 20), kLimit), before);
  // With leaks, a sanitized build ends with another code.
  deployment.gateway().Signal(SIGTERM);
  EXPECT_EQ(deployment.gateway().Wait(kLimit), 0) << deployment.gateway().Output();
  for (auto& worker : deployment.workers()) {
    worker->Signal(SIGTERM);
    EXPECT_EQ(worker->Wait(kLimit), 0) << worker->Output();
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LoadTest,
                         testing::Values(std::pair<int, int>{0, 0}, std::pair<int, int>{1, 2}),
                         [](const auto& info) {
                           return info.param.first == 0 ? "embedded" : "four_processes";
                         });

}  // namespace
}  // namespace tandem::test
