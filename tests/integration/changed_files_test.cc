// A checkpoint whose files change while they are served.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr absl::Duration kLimit = absl::Seconds(30);

class ChangedFilesTest : public testing::TestWithParam<int> {
 protected:
  ChangedFilesTest() {
    setenv("ASAN_OPTIONS", "handle_sigbus=0", 1);  // the sanitizer would take it before us
    options_.model = dir_.path() + "/model";
    std::filesystem::copy(TinyModel(), options_.model);
    options_.attention_workers = options_.expert_workers = GetParam();
  }
  std::string File() const { return options_.model + "/model.safetensors"; }

  const TempDir dir_;
  DeploymentOptions options_;
};

TEST_P(ChangedFilesTest, AreSeenInStatusAndLog) {
  Deployment deployment(options_);
  EXPECT_THAT(deployment.Status().detail(), Not(HasSubstr("changed")));
  std::fstream file(File(), std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(-1, std::ios::end);
  file.put('x').flush();
  // The log, before anybody asks.
  Process& process = GetParam() == 0 ? deployment.gateway() : *deployment.workers()[0];
  constexpr char kSaid[] = "model.safetensors has been written to since it was opened";
  EXPECT_TRUE(WaitUntil([&] { return process.Output().find(kSaid) != std::string::npos; }, kLimit));
  EXPECT_TRUE(WaitUntil(
      [&] {
        return deployment.Status().detail().find("files were changed under the attention worker") !=
               std::string::npos;
      },
      kLimit))
      << deployment.Status().detail();
}

TEST_P(ChangedFilesTest, ReplacedOnesDoNotMatter) {
  Deployment deployment(options_);
  const Answer before = Ask(deployment.stub(), ShortRequest(), kLimit);
  ASSERT_TRUE(before.status.ok()) << before.status.error_message();
  std::ofstream(File() + ".new") << "something else";
  std::filesystem::rename(File() + ".new", File());
  EXPECT_EQ(Ask(deployment.stub(), ShortRequest(), kLimit), before);
  EXPECT_THAT(deployment.Status().detail(), Not(HasSubstr("changed")));
}

TEST_P(ChangedFilesTest, ThatShrinkEndTheProcessWithTheirName) {
  Deployment deployment(options_);
  ASSERT_TRUE(Ask(deployment.stub(), ShortRequest(), kLimit).status.ok());
  std::filesystem::resize_file(File(), 100'000);
  Process& process = GetParam() == 0 ? deployment.gateway() : *deployment.workers()[0];
  Ask(deployment.stub(), ShortRequest(), absl::Seconds(2));  // touches the pages that are gone
  EXPECT_EQ(process.Wait(kLimit), 1);
  EXPECT_THAT(process.Output(), HasSubstr("model.safetensors has become shorter"));
}

INSTANTIATE_TEST_SUITE_P(Shapes, ChangedFilesTest, testing::Values(0, 1), [](const auto& info) {
  return info.param == 0 ? "embedded" : "three_processes";
});

}  // namespace
}  // namespace tandem::test
