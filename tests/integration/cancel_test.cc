// A client's cancel, deadline or disconnect reaches every process.

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

constexpr absl::Duration kIdleLimit = absl::Seconds(20);

v1::GenerateRequest LongRequest(int prompt_tokens, uint32_t max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < prompt_tokens; ++i)
    request.mutable_token_ids()->add_ids((i * 37 + 11) % 1000);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

class CancelTest : public testing::Test {
 protected:
  CancelTest() : deployment_(Options()) {}

  static DeploymentOptions Options() {
    DeploymentOptions options;
    options.attention_workers = 1;
    options.expert_workers = 2;
    return options;
  }

  // Everything is quiet, and no row was computed for more than a layer after its cancel.
  void ExpectIdleWithinALayer() {
    EXPECT_TRUE(deployment_.WaitIdle(kIdleLimit)) << deployment_.Status().DebugString();
    EXPECT_LE(deployment_.Counter("attention", "cancel_layers_max"), 1);
    for (int64_t live : deployment_.CounterEach("expert", "requests_live")) EXPECT_EQ(live, 0);
    EXPECT_GT(deployment_.Counter("attention", "cancels_total"), 0);
    const Answer after = Ask(deployment_.stub(), LongRequest(5, 4));
    EXPECT_TRUE(after.status.ok()) << after.status.error_message();
    EXPECT_EQ(after.ids.size(), 4u);
  }

  bool Busy() { return deployment_.Counter("attention", "sequences_live") > 0; }

  Deployment deployment_;
};

TEST_F(CancelTest, CancelWhileDecoding) {
  grpc::ClientContext context;
  const auto stream = deployment_.stub().Generate(&context, LongRequest(20, 20000));
  v1::GenerateResponse response;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(stream->Read(&response));
  context.TryCancel();
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectIdleWithinALayer();
}

TEST_F(CancelTest, CancelInTheMiddleOfALongPrompt) {
  grpc::ClientContext context;
  const auto stream = deployment_.stub().Generate(&context, LongRequest(30000, 8));
  ASSERT_TRUE(WaitUntil([&] { return Busy(); }, kIdleLimit));
  context.TryCancel();
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectIdleWithinALayer();
}

TEST_F(CancelTest, DeadlinePasses) {
  const Answer answer = Ask(deployment_.stub(), LongRequest(200, 50000), absl::Milliseconds(600));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectIdleWithinALayer();
}

TEST_F(CancelTest, ClientProcessIsKilled) {
  TempDir dir;
  Process client({Binary("tandem"), "generate", "--server", deployment_.address(), "--max-tokens",
                  "50000", "--ignore-eos", "one two three"},
                 dir.path() + "/client");
  ASSERT_TRUE(WaitUntil([&] { return Busy(); }, kIdleLimit)) << client.Output();
  client.Signal(SIGKILL);
  ExpectIdleWithinALayer();
}

TEST_F(CancelTest, KilledGatewayFreesTheWorkers) {
  grpc::ClientContext context;
  const auto stream = deployment_.stub().Generate(&context, LongRequest(20, 20000));
  v1::GenerateResponse response;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(stream->Read(&response));
  deployment_.gateway().Signal(SIGKILL);
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  // The workers live on, dial again, and have nothing left of the old gateway's work.
  for (auto& worker : deployment_.workers()) EXPECT_TRUE(worker->running());
  deployment_.RestartGateway();
  ExpectIdleWithinALayer();
}

}  // namespace
}  // namespace tandem::test
