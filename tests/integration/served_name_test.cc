// A model has one name everywhere: what --served-name says, in both ways to deploy.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

v1::GenerateRequest Request(const std::string& model) {
  v1::GenerateRequest request;
  request.set_model(model);
  request.set_text("one two three");
  request.set_max_tokens(2);
  return request;
}

class ServedNameTest : public testing::TestWithParam<int> {};  // workers of each kind

TEST_P(ServedNameTest, IsTheOneThatModelStatusAndRequestsKnow) {
  DeploymentOptions options;
  options.attention_workers = GetParam();
  options.expert_workers = GetParam();
  options.gateway_flags = {"--served-name", "my/model"};
  Deployment deployment(options);

  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(deployment.stub().GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.name(), "my/model");
  EXPECT_EQ(deployment.Status().model(), "my/model");
  EXPECT_TRUE(Ask(deployment.stub(), Request("my/model")).status.ok());
  EXPECT_TRUE(Ask(deployment.stub(), Request("")).status.ok());
  const Answer by_folder = Ask(deployment.stub(), Request("tiny"));
  EXPECT_EQ(by_folder.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(by_folder.status.error_message(), testing::HasSubstr("this server has \"my/model\""));
}

INSTANTIATE_TEST_SUITE_P(Deployments, ServedNameTest, testing::Values(0, 1), [](const auto& info) {
  return info.param == 0 ? "OneProcess" : "ThreeProcesses";
});

TEST(ToolServedNameTest, IsOfTheToolsOwnDeployment) {
  TempDir dir;
  Process tool({Binary("tandem"), "generate", "one two", "--max-tokens", "1", "--json", "--model",
                TinyModel(), "--served-name", "mine"},
               absl::StrCat(dir.path(), "/output"));
  EXPECT_EQ(tool.Wait(absl::Seconds(60)), 0) << tool.Output();
  EXPECT_THAT(tool.Output(), testing::HasSubstr("\"model\":\"mine\""));
}

}  // namespace
}  // namespace tandem::test
