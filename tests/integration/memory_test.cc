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
    const auto least = [&](int first, int end) {
      int64_t least = bytes[first][p];
      for (int round = first; round < end; ++round) least = std::min(least, bytes[round][p]);
      return least;
    };
    EXPECT_LT(least(7, 10) - least(2, 5), 3 << 20) << series;  // 900 bytes a request
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, MemoryTest,
                         testing::Values(std::pair<int, int>{0, 0}, std::pair<int, int>{1, 2}),
                         [](const auto& info) {
                           return info.param.first == 0 ? "embedded" : "four_processes";
                         });

}  // namespace
}  // namespace tandem::test
