// The demo model answers what it was trained to, through every part of the service.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(120);

std::string DemoModel() { return SourcePath("tools/demo_model/checkpoint"); }
std::string HeldOut() { return SourcePath("tools/demo_model/held_out.jsonl"); }

DeploymentOptions ThreeProcesses() {
  DeploymentOptions options;
  options.model = DemoModel();
  options.dtype = "bf16";
  options.attention_workers = 1;
  options.expert_workers = 1;
  return options;
}

v1::GenerateRequest Question(const std::string& text) {
  v1::GenerateRequest request;
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(text);
  return request;
}

TEST(DemoModelTest, FiftyHeldOutProblemsThroughThreeProcesses) {
  Deployment deployment(ThreeProcesses());
  TempDir dir;
  Process eval({Binary("tandem"), "eval", HeldOut(), "-n", "50", "--wrong", "--json",
                "--require-overall", "92", "--server", deployment.address()},
               absl::StrCat(dir.path(), "/output"));
  EXPECT_EQ(eval.Wait(kLimit), 0) << eval.Output();
  EXPECT_THAT(eval.Output(), testing::HasSubstr("\"problems\":50,"));
}

TEST(DemoModelTest, AnswersWithoutBeingToldHowToSample) {
  Deployment deployment(ThreeProcesses());
  const Answer sum = Ask(deployment.stub(), Question("What is 347 + 285?"));
  EXPECT_EQ(absl::StripAsciiWhitespace(sum.text), "347 + 285 = 632");
  const Answer sorted = Ask(deployment.stub(), Question("Sort: 42 7 19 3"));
  EXPECT_EQ(absl::StripAsciiWhitespace(sorted.text), "3 7 19 42");
}

TEST(DemoModelTest, RemembersEarlierTurns) {
  Deployment deployment(ThreeProcesses());
  v1::GenerateRequest request = Question("Remember: red is 42, blue is 17, green is 63.");
  for (const auto& [role, text] :
       std::vector<std::pair<std::string, std::string>>{{"assistant", "I will remember that."},
                                                        {"user", "What is 12 + 30?"},
                                                        {"assistant", "12 + 30 = 42"},
                                                        {"user", "What is blue?"}}) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(text);
  }
  const Answer answer = Ask(deployment.stub(), request);
  EXPECT_EQ(absl::StripAsciiWhitespace(answer.text), "blue is 17");
}

}  // namespace
}  // namespace tandem::test
