// A worker whose engine hangs while the rest of it, heartbeats included, goes on: the engine's
// thread is stopped by ptrace.

#include <dirent.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <optional>
#include <string>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(60);
constexpr absl::Duration kSeenLimit = absl::Seconds(12);  // of a hang of more than a second
// Long enough to be seen by a heartbeat.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kTokens = 300;
#else
constexpr int kTokens = 3000;
#endif

// The thread of a process by its name; 0 if there is none.
pid_t FindThread(pid_t process, const std::string& name) {
  const std::string tasks = "/proc/" + std::to_string(process) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks)) {
    std::string comm;
    std::getline(std::ifstream(task.path() / "comm"), comm);
    if (comm == name) return std::stoi(task.path().filename());
  }
  return 0;
}

// Holds a thread still as long as it lives. Belongs to one thread of this process, as ptrace does.
class StoppedThread {
 public:
  explicit StoppedThread(pid_t thread) : thread_(thread) {
    stopped_ = ptrace(PTRACE_SEIZE, thread_, nullptr, nullptr) == 0 &&
               ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr) == 0 &&
               waitpid(thread_, nullptr, __WALL) == thread_;
  }
  ~StoppedThread() {
    if (stopped_) ptrace(PTRACE_DETACH, thread_, nullptr, nullptr);
  }
  StoppedThread(const StoppedThread&) = delete;
  StoppedThread& operator=(const StoppedThread&) = delete;
  bool stopped() const { return stopped_; }

 private:
  const pid_t thread_;
  bool stopped_ = false;
};

v1::GenerateRequest Request() {
  v1::GenerateRequest request;
  for (int i = 0; i < 100; ++i) request.mutable_token_ids()->add_ids(i * 37 % 500 + 11);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(kTokens);
  request.set_ignore_eos(true);
  return request;
}

class HangTest : public testing::TestWithParam<int> {};

TEST_P(HangTest, IsSeenAndCostsAPauseOnly) {
  DeploymentOptions options;
  options.attention_workers = 1;
  options.expert_workers = 1;
  options.gateway_flags = {"--hang-limit", "1"};
  Deployment deployment(options);
  const Answer expected = Ask(deployment.stub(), Request(), kLimit);
  ASSERT_TRUE(expected.status.ok()) << expected.status.error_message();

  auto answer = std::async(std::launch::async,
                           [&] { return Ask(deployment.stub(), Request(), absl::Seconds(120)); });
  ASSERT_TRUE(WaitUntil(
      [&] { return deployment.Counter("attention", "sampled_total") > kTokens + 10; }, kLimit));
  const pid_t engine = FindThread(deployment.workers()[GetParam()]->pid(), "engine");
  ASSERT_NE(engine, 0);
  std::optional<StoppedThread> hanging;
  std::string detail;
  const auto is_seen = [&] {
    detail = deployment.Status().detail();
    return detail.find("0 of 1 ") != std::string::npos;
  };
  // Stopped within the lock of its queue, the engine gets no work and so does not hang: once more.
  bool seen = false;
  for (int attempt = 0; attempt < 5 && !seen; ++attempt) {
    hanging.reset();
    hanging.emplace(engine);
    if (!hanging->stopped()) {
      answer.wait();
      GTEST_SKIP() << "ptrace is not permitted here";
    }
    seen = WaitUntil(is_seen, kSeenLimit);
  }
  EXPECT_TRUE(seen) << detail;
  // A thread may have been stopped with a lock that heartbeats need.
  EXPECT_THAT(detail, AnyOf(HasSubstr("hangs: its engine has made no progress for"),
                            HasSubstr("has sent no heartbeat for")));
  hanging.reset();
  EXPECT_EQ(answer.get(), expected);
  // The answer may be there before the worker has joined again.
  ASSERT_TRUE(WaitUntil([&] { return deployment.Status().state() == "serving"; }, kLimit));
  EXPECT_TRUE(deployment.WaitIdle()) << deployment.Status().DebugString();
}

INSTANTIATE_TEST_SUITE_P(Workers, HangTest, testing::Values(0, 1),
                         [](const auto& info) { return info.param == 0 ? "attention" : "expert"; });

}  // namespace
}  // namespace tandem::test
