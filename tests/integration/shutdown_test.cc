// A gateway that is told to end takes nothing new, finishes what runs within its grace, and ends
// cleanly; its workers live on.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/integration/deployment.h"
#include "tests/integration/hollow_model.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(30);
constexpr int kTokens = 1000;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr absl::Duration kEndLimit = absl::Seconds(5);
#else
constexpr absl::Duration kEndLimit = absl::Seconds(2);
#endif

v1::GenerateRequest Request(uint32_t max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < 10; ++i) request.mutable_token_ids()->add_ids(i * 37 + 11);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

// (attention workers, expert workers); none: all in the gateway's process.
class ShutdownTest : public testing::TestWithParam<std::pair<int, int>> {
 protected:
  static DeploymentOptions Options(const std::vector<std::string>& gateway_flags) {
    DeploymentOptions options;
    options.attention_workers = GetParam().first;
    options.expert_workers = GetParam().second;
    options.gateway_flags = gateway_flags;
    return options;
  }
};

TEST_P(ShutdownTest, FinishesWhatRunsAndTakesNothingNew) {
  Deployment deployment(Options({}));
  grpc::ClientContext context;
  const auto stream = deployment.stub().Generate(&context, Request(kTokens));
  v1::GenerateResponse response;
  int tokens = 0;
  while (tokens < 3 && stream->Read(&response)) tokens += response.chunk().token_ids_size();
  deployment.gateway().Signal(SIGTERM);
  ASSERT_TRUE(WaitUntil([&] { return deployment.Status().state() == "draining"; }, kLimit));
  const Answer refused = Ask(deployment.stub(), Request(1), kLimit);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("shutting down"));
  while (stream->Read(&response)) tokens += response.chunk().token_ids_size();
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(tokens, kTokens);
  EXPECT_EQ(deployment.gateway().Wait(kLimit), 0) << deployment.gateway().Output();
  for (auto& worker : deployment.workers()) EXPECT_TRUE(worker->running());
}

TEST_P(ShutdownTest, EndsWhatStillRunsAfterTheGraceWithASentence) {
  Deployment deployment(Options({"--grace", "0"}));
  grpc::ClientContext context;
  const auto stream = deployment.stub().Generate(&context, Request(60000));
  v1::GenerateResponse response;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(stream->Read(&response));
  deployment.gateway().Signal(SIGTERM);
  while (stream->Read(&response)) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("shutting down"));
  EXPECT_EQ(deployment.gateway().Wait(kLimit), 0) << deployment.gateway().Output();
}

// Ends a process that loads, and says how long that took.
void ExpectGoneAtOnce(Process& process, const std::string& loading) {
  ASSERT_TRUE(WaitUntil(
      [&] { return process.Output().find(loading) != std::string::npos || !process.running(); },
      kLimit));
  const absl::Time start = absl::Now();
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(kLimit), 0) << process.Output();
  EXPECT_LT(absl::Now() - start, kEndLimit) << process.Output();
  EXPECT_THAT(process.Output(), testing::Not(HasSubstr("100%")));
}

TEST(ShutdownWhileLoadingTest, IsAtOnceInAllPrograms) {
  const TempDir dir;
  const std::string model = dir.path() + "/model";
  // Nine layers of the real widths.
  WriteHollowModel(model, {{"num_hidden_layers", 9},
                           {"hidden_size", 2048},
                           {"intermediate_size", 10944},
                           {"moe_intermediate_size", 1408},
                           {"n_routed_experts", 64},
                           {"vocab_size", 102400}});
  Process gateway({Binary("tandem-gateway"), "--model", model, "--listen", "127.0.0.1:0",
                   "--metrics-listen", "127.0.0.1:0"},
                  dir.path() + "/embedded.log");
  ExpectGoneAtOnce(gateway, "model: 20%");

  Process registry({Binary("tandem-gateway"), "--model", model, "--listen", "127.0.0.1:0",
                    "--registry", "127.0.0.1:0"},
                   dir.path() + "/gateway.log");
  const std::string address = registry.WaitForWord("registry on ", kLimit);
  ASSERT_FALSE(address.empty()) << registry.Output();
  const auto worker = [&](const std::string& binary) {
    return std::vector<std::string>{Binary(binary), "--model", model, "--registry", address};
  };
  Process experts(worker("tandem-expert-worker"), dir.path() + "/experts.log");
  ExpectGoneAtOnce(experts, "experts: 10%");
  Process attention(worker("tandem-attention-worker"), dir.path() + "/attention.log");
  ExpectGoneAtOnce(attention, "attention: 10%");
}

INSTANTIATE_TEST_SUITE_P(Shapes, ShutdownTest,
                         testing::Values(std::pair<int, int>{0, 0}, std::pair<int, int>{1, 2}),
                         [](const auto& info) {
                           return info.param.first == 0 ? "embedded" : "four_processes";
                         });

}  // namespace
}  // namespace tandem::test
