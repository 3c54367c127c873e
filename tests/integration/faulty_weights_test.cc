// A NaN in one expert's weights: who is routed to it fails, and nobody else notices.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;

// The golden checkpoint with a NaN in the down projection of one expert of the first MoE layer:
// rows of the next layer then put NaN into the latent cache.
void CopyWithNaN(const std::string& to) {
  std::filesystem::copy(TinyModel(), to);
  const std::string path = to + "/model.safetensors";
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof(length));
  std::string header(length, '\0');
  file.read(header.data(), static_cast<std::streamsize>(length));
  const auto tensor =
      nlohmann::json::parse(header)["model.layers.1.mlp.experts.3.down_proj.weight"];
  ASSERT_EQ(tensor["dtype"], "BF16");
  const uint16_t nan = 0x7FC0;
  file.seekp(static_cast<std::streamoff>(8 + length + tensor["data_offsets"][0].get<uint64_t>()));
  file.write(reinterpret_cast<const char*>(&nan), sizeof(nan));
}

std::vector<v1::GenerateRequest> Requests() {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 64; ++i) {
    v1::GenerateRequest request;
    request.mutable_token_ids()->add_ids(i * 31 % 500 + 20);
    request.mutable_sampling()->set_temperature(0);
    request.set_max_tokens(3);
    request.set_ignore_eos(true);
    requests.push_back(request);
  }
  return requests;
}

class FaultyWeightsTest : public testing::TestWithParam<int> {};

TEST_P(FaultyWeightsTest, ANaNInOneExpertFailsOnlyRequestsThatTouchIt) {
  DeploymentOptions options;
  options.attention_workers = GetParam() > 0 ? 1 : 0;
  options.expert_workers = GetParam();
  // Few pages, so that each is used by many requests one after the other.
  (GetParam() > 0 ? options.attention_flags : options.gateway_flags) = {"--cache-tokens", "1024"};
  const std::vector<Answer> expected = [&] {
    Deployment sound(options);
    return AskAll(sound.stub(), Requests(), 16);
  }();
  const TempDir dir;
  options.model = dir.path() + "/model";
  CopyWithNaN(options.model);
  Deployment deployment(options);
  for (int round = 0; round < 3; ++round) {
    const std::vector<Answer> answers = AskAll(deployment.stub(), Requests(), 16);
    int failed = 0;
    for (size_t i = 0; i < answers.size(); ++i) {
      ASSERT_TRUE(expected[i].status.ok()) << expected[i].status.error_message();
      if (answers[i].status.ok()) {
        EXPECT_EQ(answers[i], expected[i]) << i;
        continue;
      }
      ++failed;
      EXPECT_EQ(answers[i].status.error_code(), grpc::StatusCode::INTERNAL);
      EXPECT_THAT(answers[i].status.error_message(), HasSubstr("NaN"));
    }
    EXPECT_GT(failed, 8);
    EXPECT_LT(failed, 56);
  }
  EXPECT_TRUE(deployment.WaitIdle());
}

INSTANTIATE_TEST_SUITE_P(Shapes, FaultyWeightsTest, testing::Values(0, 2), [](const auto& info) {
  return info.param == 0 ? "embedded" : "two_experts";
});

}  // namespace
}  // namespace tandem::test
