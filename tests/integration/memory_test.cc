// What a deployment holds in memory while it serves, over many requests.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// Bytes of a process that no file backs.
int64_t AnonymousBytes(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/smaps_rollup");
  for (std::string word; file >> word;) {
    if (word != "Anonymous:") continue;
    int64_t kib = 0;
    file >> kib;
    return kib * 1024;
  }
  return 0;
}

// (attention workers, expert workers); none: all in the gateway's process.
class MemoryTest : public testing::TestWithParam<std::pair<int, int>> {};

TEST_P(MemoryTest, IsFlatAfterTenRoundsOfLoad) {
  if (kSanitized) GTEST_SKIP() << "the sanitizer keeps what is freed";
  DeploymentOptions options;
  std::tie(options.attention_workers, options.expert_workers) = GetParam();
  Deployment deployment(options);
  std::vector<pid_t> processes = {deployment.gateway().pid()};
  for (auto& worker : deployment.workers()) processes.push_back(worker->pid());
  // The largest batches that there can be: workspaces grow to them and stay.
  std::vector<v1::GenerateRequest> long_prompts;
  for (int i = 0; i < 16; ++i) {
    long_prompts.push_back(SeededRequest(i, 2));
    while (long_prompts[i].token_ids().ids_size() < 1500) {
      long_prompts[i].mutable_token_ids()->add_ids(11);
    }
  }
  AskAll(deployment.stub(), long_prompts, 16);
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 700; ++i) requests.push_back(SeededRequest(i, 16));
  std::vector<std::vector<int64_t>> bytes;  // by round and process
  for (int round = 0; round < 10; ++round) {
    for (const Answer& answer : AskAll(deployment.stub(), requests, 32)) {
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    }
    bytes.emplace_back();
    for (const pid_t process : processes) bytes.back().push_back(AnonymousBytes(process));
  }
  for (size_t p = 0; p < processes.size(); ++p) {
    std::string series;
    for (const auto& round : bytes) series += std::to_string(round[p] >> 10) + " ";
    printf("process %zu, KiB after each round: %s\n", p, series.c_str());
    std::vector<int64_t> growth;  // from round to round
    for (size_t round = 1; round < bytes.size(); ++round) {
      growth.push_back(bytes[round][p] - bytes[round - 1][p]);
    }
    std::nth_element(growth.begin(), growth.begin() + growth.size() / 2, growth.end());
    // What is lost with each request shows in each round; a pool that comes to one more of its
    // blocks shows once.
    EXPECT_LT(growth[growth.size() / 2], 128 << 10) << series;  // 190 bytes a request
    EXPECT_LT(bytes.back()[p] - bytes[2][p], 12 << 20) << series;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, MemoryTest,
                         testing::Values(std::pair<int, int>{0, 0}, std::pair<int, int>{1, 2}),
                         [](const auto& info) {
                           return info.param.first == 0 ? "embedded" : "four_processes";
                         });

}  // namespace
}  // namespace tandem::test
