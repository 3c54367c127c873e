// Workers on a GPU and on the CPU, whose numerics class is one: in a deployment of both, and after
// the loss of an expert worker, every answer has the bits that the CPU alone gives.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

std::vector<v1::GenerateRequest> Requests() {
  std::vector<v1::GenerateRequest> requests;
  for (int seed = 0; seed < 16; ++seed) requests.push_back(SeededRequest(seed, 24));
  return requests;
}

DeploymentOptions Options(const std::string& dtype) {
  DeploymentOptions options;
  options.dtype = dtype;
  options.weights_flags = {"--numerics", "portable"};
  return options;
}

std::vector<Answer> OfTheCpu(const std::string& dtype) {
  DeploymentOptions options = Options(dtype);
  options.device = "cpu";
  Deployment deployment(options);
  return AskAll(deployment.stub(), Requests(), 1);
}

void ExpectSame(const std::vector<Answer>& got, const std::vector<Answer>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_TRUE(got[i].status.ok()) << i << ": " << got[i].status.error_message();
    EXPECT_EQ(got[i].ids, want[i].ids) << i;
    EXPECT_EQ(got[i].bits, want[i].bits) << i;
  }
}

class MixedDevicesTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Modes, MixedDevicesTest, testing::Values("f32", "bf16"),
                         [](const auto& info) { return info.param; });

TEST_P(MixedDevicesTest, AttentionOnAGpuWithExpertsOnTheCpu) {
  DeploymentOptions options = Options(GetParam());
  options.attention_workers = 1;
  options.expert_workers = 2;
  options.expert_device = "cpu";
  Deployment deployment(options);
  ExpectSame(AskAll(deployment.stub(), Requests(), 8), OfTheCpu(GetParam()));
}

TEST_P(MixedDevicesTest, AKilledExpertWorkersReplacementGoesOnWithTheSameBits) {
  DeploymentOptions options = Options(GetParam());
  options.attention_workers = 1;
  options.expert_workers = 2;
  Deployment deployment(options);
  std::vector<Answer> answers;
  std::thread asking([&] { answers = AskAll(deployment.stub(), Requests(), 8); });
  EXPECT_TRUE(WaitUntil([&] { return deployment.Counter("expert", "rows_total") > 50; },
                        absl::Seconds(60)));
  deployment.workers().back()->Signal(SIGKILL);
  deployment.StartExpertWorker();
  asking.join();
  ExpectSame(answers, OfTheCpu(GetParam()));
}

TEST(MixedDevicesDemoTest, AHundredQuestionsHaveTheCpusAnswers) {
  TempDir dir;
  std::vector<std::string> replies;
  for (const char* const device : {"cpu", "cuda"}) {
    const std::string file = absl::StrCat(dir.path(), "/replies-", device);
    Process eval({Binary("tandem"), "eval", SourcePath("tools/demo_model/held_out.jsonl"), "-n",
                  "100", "--model", SourcePath("tools/demo_model/checkpoint"), "--numerics",
                  "portable", "--device", device, "--replies", file},
                 absl::StrCat(dir.path(), "/output"));
    ASSERT_EQ(eval.Wait(absl::Seconds(300)), 0) << eval.Output();
    std::ifstream stream(file);
    replies.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  EXPECT_EQ(std::count(replies[0].begin(), replies[0].end(), '\n'), 100);
  EXPECT_EQ(replies[0], replies[1]);
}

}  // namespace
}  // namespace tandem::test
