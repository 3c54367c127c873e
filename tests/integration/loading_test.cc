// What a deployment says of itself while it loads.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tests/integration/deployment.h"
#include "tests/integration/hollow_model.h"

namespace tandem::test {
namespace {

using testing::Contains;
using testing::MatchesRegex;

constexpr absl::Duration kLimit = absl::Seconds(60);

TEST(LoadingTest, StatusSaysHowMuchOfTheDigestIsRead) {
  const TempDir dir;
  const std::string model = dir.path() + "/model";
  // Some 48,000 reads.
  WriteHollowModel(
      model,
      {{"num_hidden_layers", 100}, {"n_routed_experts", 160}, {"moe_intermediate_size", 128}});
  Process gateway({Binary("tandem-gateway"), "--model", model, "--listen", "127.0.0.1:0",
                   "--registry", "127.0.0.1:0"},
                  dir.path() + "/gateway.log");
  const std::string address = gateway.WaitForWord("gateway on ", kLimit);
  ASSERT_FALSE(address.empty()) << gateway.Output();
  const auto stub =
      v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  std::set<std::string> details;
  v1::GetStatusResponse status;
  ASSERT_TRUE(WaitUntil(
      [&] {
        grpc::ClientContext context;
        if (!stub->GetStatus(&context, {}, &status).ok()) return false;
        details.insert(status.detail());
        return status.state() == "waiting for workers";
      },
      kLimit))
      << gateway.Output();
  EXPECT_THAT(details, Contains(MatchesRegex("reading the digest of .*/model: [1-9][0-9]?%")));
  EXPECT_EQ(status.workers(0).counters().at("digest_percent"), 100);
}

}  // namespace
}  // namespace tandem::test
