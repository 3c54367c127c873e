// tandem eval asks the service and grades what it replies. The tiny checkpoint replies with noise,
// so the problems' answers are made from what it replies.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/integration/deployment.h"
#include "tools/tandem/grade.h"

namespace tandem::test {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

constexpr int kMaxTokens = 12;
constexpr absl::Duration kLimit = absl::Seconds(60);
constexpr char kNoAnswer[] = "no reply of the model";

struct Result {
  int exit_code = 0;
  std::string output;  // standard output and standard error
};

class EvalTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { deployment_ = new Deployment({}); }
  static void TearDownTestSuite() {
    delete deployment_;
    deployment_ = nullptr;
  }

  std::string Path(const std::string& name) const { return absl::StrCat(dir_.path(), "/", name); }

  // Six problems of each of two tasks. All of "repeat" are answered by what the service replies,
  // of "guess" those at even places.
  std::string WriteProblems() {
    std::vector<v1::GenerateRequest> requests;
    for (int i = 0; i < 12; ++i) {
      v1::GenerateRequest request;
      auto* message = request.mutable_chat()->add_messages();
      message->set_role("user");
      message->set_content(Question(i));
      request.mutable_sampling()->set_temperature(0);
      request.set_max_tokens(kMaxTokens);
      requests.push_back(request);
    }
    replies_ = AskAll(deployment_->stub(), requests, 4);
    std::ofstream file(Path("problems.jsonl"));
    for (int i = 0; i < 12; ++i) {
      EXPECT_TRUE(replies_[i].status.ok()) << replies_[i].status.error_message();
      const bool guess = i % 2 == 1;
      const bool right = !guess || i / 2 % 2 == 0;
      file << Line(guess ? "guess" : "repeat", "user", Question(i),
                   right ? std::string(tool::LastLine(replies_[i].text)) : kNoAnswer);
    }
    return Path("problems.jsonl");
  }

  static std::string Question(int i) { return absl::StrCat("What is ", i, " + ", 7 * i, "?"); }

  static std::string Line(const std::string& task, const std::string& role,
                          const std::string& question, const std::string& answer) {
    const Json line = {{"task", task},
                       {"messages", Json::array({{{"role", role}, {"content", question}}})},
                       {"answer", answer}};
    return line.dump() + "\n";
  }

  std::string WriteFile(const std::string& text) {
    std::ofstream(Path("file.jsonl")) << text;
    return Path("file.jsonl");
  }

  Result Eval(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {Binary("tandem"), "eval"});
    return Run(arguments);
  }
  Result EvalServer(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--server", deployment_->address(), "--max-tokens",
                                       std::to_string(kMaxTokens)});
    return Eval(arguments);
  }
  Result Run(const std::vector<std::string>& command) {
    Process process(command, Path("output"));
    const int exit_code = process.Wait(kLimit);
    return {exit_code, process.Output()};
  }

  static std::vector<Json> ReadLines(const std::string& path) {
    std::ifstream file(path);
    std::vector<Json> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
    return lines;
  }

  static Deployment* deployment_;
  TempDir dir_;
  std::vector<Answer> replies_;
};

Deployment* EvalTest::deployment_ = nullptr;

TEST_F(EvalTest, PrintsTheAccuracyOfEveryTask) {
  const Result result = EvalServer({WriteProblems()});
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("guess          6       3     50.0%"));
  EXPECT_THAT(result.output, HasSubstr("repeat         6       6    100.0%"));
  EXPECT_THAT(result.output, HasSubstr("all           12       9     75.0%"));
}

TEST_F(EvalTest, JsonHasTheSameFiguresOfASelection) {
  const Result result = EvalServer({WriteProblems(), "--json", "-n", "5"});
  EXPECT_EQ(result.exit_code, 0) << result.output;
  const Json figures = Json::parse(result.output, nullptr, false);
  ASSERT_TRUE(figures.is_object()) << result.output;
  EXPECT_EQ(figures["tasks"]["guess"]["problems"], 3);
  EXPECT_EQ(figures["tasks"]["guess"]["right"], 2);
  EXPECT_EQ(figures["tasks"]["repeat"]["problems"], 2);
  EXPECT_EQ(figures["all"]["right"], 4);
}

TEST_F(EvalTest, WritesTheRepliesInTheOrderOfTheFile) {
  const Result result = EvalServer({WriteProblems(), "--replies", Path("replies.jsonl")});
  EXPECT_EQ(result.exit_code, 0) << result.output;
  const std::vector<Json> lines = ReadLines(Path("replies.jsonl"));
  ASSERT_EQ(lines.size(), replies_.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["messages"][0]["content"], Question(static_cast<int>(i)));
    EXPECT_EQ(lines[i]["reply"], replies_[i].text);
    EXPECT_EQ(lines[i]["ids"], replies_[i].ids);
    EXPECT_EQ(lines[i]["log_probs"].size(), replies_[i].ids.size());
    EXPECT_EQ(lines[i]["right"], lines[i]["answer"] != kNoAnswer);
  }
}

TEST_F(EvalTest, ACheckpointInTheProcessIsGradedAsTheServerIs) {
  const std::string problems = WriteProblems();
  EXPECT_EQ(EvalServer({problems, "--replies", Path("server.jsonl")}).exit_code, 0);
  const Result result = Eval({problems, "--model", TinyModel(), "--dtype", "f32", "--max-tokens",
                              std::to_string(kMaxTokens), "--replies", Path("process.jsonl")});
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(ReadLines(Path("process.jsonl")), ReadLines(Path("server.jsonl")));
}

TEST_F(EvalTest, ALimitThatIsMissedIsNamedAndFails) {
  const std::string problems = WriteProblems();
  EXPECT_EQ(EvalServer({problems, "--require-overall", "75", "--require-task", "50"}).exit_code, 0);
  const Result result = EvalServer({problems, "--require-overall", "75", "--require-task", "85"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("all           12       9     75.0%"));
  EXPECT_THAT(result.output, HasSubstr("guess is at 50.0% (3 of 6), under the 85% asked for\n"));
}

TEST_F(EvalTest, WrongRepliesAreShownBesideTheAnswers) {
  const Result result = EvalServer({WriteProblems(), "--wrong"});
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("guess: \"What is 3 + 21?\"\n"
                                       "  expected \"no reply of the model\"\n"
                                       "  got      \""));
  EXPECT_THAT(result.output, testing::Not(HasSubstr("repeat: ")));
}

TEST_F(EvalTest, ARequestThatFailsIsCountedAndFails) {
  const Result result =
      EvalServer({WriteFile(Line("good", "user", "What is 1 + 1?", "1 + 1 = 2") +
                            Line("long", "user", std::string(100000, '7'), "too long"))});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("1 of 2 requests failed, the first so: "));
  EXPECT_THAT(result.output, HasSubstr("all "));
}

TEST_F(EvalTest, WithoutAServerThereIsNoTable) {
  const Result result =
      Eval({WriteFile(Line("good", "user", "?", "!")), "--server", "127.0.0.1:1"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("no server answers at 127.0.0.1:1"));
  EXPECT_THAT(result.output, testing::Not(HasSubstr("accuracy")));
}

TEST_F(EvalTest, BadFilesAreNamedWithTheirLine) {
  const std::string good = Line("good", "user", "?", "!");
  EXPECT_THAT(EvalServer({WriteFile(good + "\n{\"task\": 3}\n")}).output,
              HasSubstr("file.jsonl line 3: \"task\" is missing or not a string\n"));
  EXPECT_THAT(EvalServer({WriteFile("\n")}).output, HasSubstr("file.jsonl holds no problems\n"));
  EXPECT_THAT(EvalServer({Path("nothing.jsonl")}).output, HasSubstr("cannot read "));
  EXPECT_THAT(EvalServer({WriteFile(good), "--replies", Path("no/folder")}).output,
              HasSubstr("cannot write "));
  EXPECT_EQ(EvalServer({}).exit_code, 2);
}

}  // namespace
}  // namespace tandem::test
