// `tandem chat` as a person meets it on a terminal, and as a script meets it on a pipe.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr absl::Duration kLimit = absl::Seconds(60);
constexpr const char* kCtrlC = "\x03";
constexpr const char* kCtrlD = "\x04";
constexpr const char* kUp = "\x1b[A";
constexpr const char* kLeft = "\x1b[D";
constexpr const char* kNextPrompt = "]\r\n> ";  // behind the line that follows an answer

std::vector<std::string> Chat(const std::vector<std::string>& flags) {
  std::vector<std::string> command = {Binary("tandem"), "chat", "--model",
                                      SourcePath("tools/demo_model/checkpoint")};
  command.insert(command.end(), flags.begin(), flags.end());
  return command;
}

// A program on a terminal of its own.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& command) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    winsize size = {};
    size.ws_row = 50;
    size.ws_col = 200;
    pid_ = forkpty(&terminal_, nullptr, nullptr, &size);
    if (pid_ != 0) return;
    setenv("TERM", "xterm", 1);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  ~Terminal() {
    if (!ended_) kill(pid_, SIGKILL);
    if (!ended_) waitpid(pid_, nullptr, 0);
    close(terminal_);
  }

  // Types `keys`; what came before is no longer seen by WaitFor.
  void Type(const std::string& keys) {
    seen_.clear();
    ASSERT_EQ(write(terminal_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }

  // Whether `text` stands on the terminal, since the last Type, before the limit.
  bool WaitFor(const std::string& text) {
    return ReadUntil([&] { return seen_.find(text) != std::string::npos; });
  }

  // The exit code, or -1 if it was killed or still runs after the limit.
  int WaitForEnd() {
    ReadUntil([] { return false; });
    int status = 0;
    ended_ = waitpid(pid_, &status, WNOHANG) == pid_ ||
             WaitUntil([&] { return waitpid(pid_, &status, WNOHANG) == pid_; }, kLimit);
    return ended_ && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  const std::string& seen() const { return seen_; }

 private:
  // Reads until `done`, the end or the limit.
  template <typename Done>
  bool ReadUntil(const Done& done) {
    const absl::Time end = absl::Now() + kLimit;
    while (!done()) {
      pollfd readable = {terminal_, POLLIN, 0};
      const auto left = static_cast<int>(absl::ToInt64Milliseconds(end - absl::Now()));
      if (left <= 0 || poll(&readable, 1, left) <= 0) return false;
      char buffer[4096];
      const ssize_t count = read(terminal_, buffer, sizeof(buffer));
      if (count <= 0) return false;  // the program has closed it
      seen_.append(buffer, static_cast<size_t>(count));
    }
    return true;
  }

  pid_t pid_ = -1;
  int terminal_ = -1;
  bool ended_ = false;
  std::string seen_;
};

TEST(ChatTest, OnATerminalLinesAreEditedAndRemembered) {
  Terminal chat(Chat({}));
  ASSERT_TRUE(chat.WaitFor("> ")) << chat.seen();
  // The missing 3 is put in at its place.
  chat.Type("What is 47 + 285?");
  for (int i = 0; i < 9; ++i) chat.Type(kLeft);
  chat.Type("3\r");
  ASSERT_TRUE(chat.WaitFor("347 + 285 = 632")) << chat.seen();
  ASSERT_TRUE(chat.WaitFor("per second")) << chat.seen();
  ASSERT_TRUE(chat.WaitFor(kNextPrompt)) << chat.seen();
  // Ctrl-C clears what stands in the line, and does not end the chat.
  chat.Type(absl::StrCat("Sort: 9 8", kCtrlC, "What is 12 + 30?\r"));
  ASSERT_TRUE(chat.WaitFor("12 + 30 = 42")) << chat.seen();
  ASSERT_TRUE(chat.WaitFor(kNextPrompt)) << chat.seen();
  // The line before the last one is asked again.
  chat.Type(absl::StrCat(kUp, kUp, "\r"));
  ASSERT_TRUE(chat.WaitFor("347 + 285 = 632")) << chat.seen();
  ASSERT_TRUE(chat.WaitFor(kNextPrompt)) << chat.seen();
  chat.Type(kCtrlD);
  EXPECT_EQ(chat.WaitForEnd(), 0) << chat.seen();
}

TEST(ChatTest, CtrlCStopsAnAnswerAndTheChatGoesOn) {
  Terminal chat(Chat({"--ignore-eos", "--max-tokens", "2400", "--stop", "= 632"}));
  ASSERT_TRUE(chat.WaitFor("> ")) << chat.seen();
  chat.Type("Sort: 42 7 19 3\r");
  ASSERT_TRUE(chat.WaitFor("3 7 19 42")) << chat.seen();
  chat.Type(kCtrlC);
  ASSERT_TRUE(chat.WaitFor("[stopped")) << chat.seen();
  ASSERT_TRUE(chat.WaitFor(kNextPrompt)) << chat.seen();
  chat.Type("What is 347 + 285?\r");
  ASSERT_TRUE(chat.WaitFor("ended by stop")) << chat.seen();
  ASSERT_TRUE(chat.WaitFor(kNextPrompt)) << chat.seen();
  chat.Type(kCtrlD);
  EXPECT_EQ(chat.WaitForEnd(), 0) << chat.seen();
}

TEST(ChatTest, OnAPipeEachLineIsAnswered) {
  TempDir dir;
  std::string command = "printf 'What is 347 + 285?\\n\\nSort: 42 7 19 3\\n' |";
  for (const std::string& word : Chat({})) absl::StrAppend(&command, " '", word, "'");
  Process chat({"/bin/sh", "-c", command}, absl::StrCat(dir.path(), "/output"));
  EXPECT_EQ(chat.Wait(kLimit), 0) << chat.Output();
  EXPECT_THAT(chat.Output(), HasSubstr("347 + 285 = 632"));
  EXPECT_THAT(chat.Output(), HasSubstr("3 7 19 42"));
  EXPECT_THAT(chat.Output(), HasSubstr("first token after"));
}

TEST(ChatTest, JsonComesWithoutTheSpeed) {
  TempDir dir;
  Process chat(Chat({"-m", "What is 347 + 285?", "--json"}), absl::StrCat(dir.path(), "/output"));
  EXPECT_EQ(chat.Wait(kLimit), 0) << chat.Output();
  EXPECT_THAT(chat.Output(), HasSubstr("347 + 285 = 632"));
  EXPECT_THAT(chat.Output(), Not(HasSubstr("first token after")));
}

}  // namespace
}  // namespace tandem::test
