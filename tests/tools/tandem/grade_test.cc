#include "tools/tandem/grade.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tandem::tool {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

json GoodLine() {
  return {{"task", "add"},
          {"messages", json::array({{{"role", "user"}, {"content", "What is 3 + 4?"}},
                                    {{"role", "assistant"}, {"content", "3 + 4 = 7"}},
                                    {{"role", "user"}, {"content", "And 3 + 5?"}}})},
          {"answer", "3 + 5 = 8"}};
}

// One problem per letter, the letter its task.
std::vector<Problem> ProblemsOfTasks(const std::string& letters) {
  std::vector<Problem> problems;
  for (char letter : letters) {
    problems.push_back({std::string(1, letter), {{"user", "question"}}, "answer"});
  }
  return problems;
}

// `right` and `wrong` replies to a task, of ten tokens each.
void AddReplies(Tally& tally, const std::string& task, int right, int wrong) {
  for (int i = 0; i < right + wrong; ++i) tally.AddReply(task, i < right, 10);
}

TEST(GradeTest, ParsesAProblemOfSeveralTurns) {
  const auto problem = ParseProblem(GoodLine());
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_EQ(problem->task, "add");
  EXPECT_EQ(problem->answer, "3 + 5 = 8");
  ASSERT_EQ(problem->messages.size(), 3u);
  EXPECT_EQ(problem->messages[1].role, "assistant");
  EXPECT_EQ(problem->messages[2].content, "And 3 + 5?");
}

TEST(GradeTest, NamesWhatIsWrongWithAProblem) {
  struct Case {
    const char* member;
    json value;  // null: the member is missing
    const char* sentence;
  };
  const Case cases[] = {
      {"task", nullptr, "\"task\" is missing or not a string"},
      {"task", 3, "\"task\" is missing or not a string"},
      {"task", "", "\"task\" is empty"},
      {"messages", nullptr, "\"messages\" is missing or not an array"},
      {"messages", "hello", "\"messages\" is missing or not an array"},
      {"messages", json::array(), "\"messages\" does not end with a user's message"},
      {"messages", json::array({{{"role", "assistant"}, {"content", "7"}}}),
       "\"messages\" does not end with a user's message"},
      {"messages", json::array({{{"role", "user"}}}), "\"content\" is missing or not a string"},
      {"messages", json::array({"hello"}), "\"role\" is missing or not a string"},
      {"answer", nullptr, "\"answer\" is missing or not a string"},
      {"answer", "", "\"answer\" is empty"},
      {"answer", "8\n", "not one line"},
      {"answer", "3 + 5\n8", "not one line"},
      {"answer", " 8", "not one line"},
  };
  for (const Case& test : cases) {
    json line = GoodLine();
    line.erase(test.member);
    if (!test.value.is_null()) line[test.member] = test.value;
    const auto problem = ParseProblem(line);
    EXPECT_EQ(problem.status().code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(problem.status().message()), HasSubstr(test.sentence)) << line;
  }
}

TEST(GradeTest, OnlyTheLastLineCounts) {
  EXPECT_TRUE(IsRight(" 3 + 5 = 8", "3 + 5 = 8"));
  EXPECT_TRUE(IsRight("ones: 8\n tens: 0 \n\t3 + 5 = 8 \n\n", "3 + 5 = 8"));
  EXPECT_TRUE(IsRight("working\r\n3 + 5 = 8\r\n", "3 + 5 = 8"));
  EXPECT_FALSE(IsRight("3 + 5 = 8\nworking", "3 + 5 = 8"));
}

TEST(GradeTest, TheAnswerIsComparedExactly) {
  EXPECT_FALSE(IsRight("3 + 5 = 8.", "3 + 5 = 8"));
  EXPECT_FALSE(IsRight("3 + 5 =  8", "3 + 5 = 8"));
  EXPECT_FALSE(IsRight("yes", "Yes"));
  EXPECT_FALSE(IsRight("", "8"));
  EXPECT_FALSE(IsRight(" \n\t", "8"));
  EXPECT_FALSE(
      IsRight("\xC2\xA0"
              "8",
              "8"));  // a no-break space is not ASCII white space
}

TEST(GradeTest, LastLineOfNothingIsEmpty) {
  EXPECT_EQ(LastLine(""), "");
  EXPECT_EQ(LastLine("\n \n"), "");
}

TEST(GradeTest, SelectionTakesTheFirstOfEachTaskEvenly) {
  EXPECT_THAT(SelectEvenly(ProblemsOfTasks("aaabacbcbc"), 6), ElementsAre(0, 1, 3, 5, 6, 7));
}

TEST(GradeTest, SelectionGivesOddOnesToTheFirstTasksByName) {
  EXPECT_THAT(SelectEvenly(ProblemsOfTasks("ccbbaa"), 4), ElementsAre(0, 2, 4, 5));
}

TEST(GradeTest, SelectionFillsUpFromTasksThatHaveMore) {
  EXPECT_THAT(SelectEvenly(ProblemsOfTasks("aaaaab"), 4), ElementsAre(0, 1, 2, 5));
}

TEST(GradeTest, SelectionOfMoreThanThereAreIsAll) {
  EXPECT_THAT(SelectEvenly(ProblemsOfTasks("ba"), 100), ElementsAre(0, 1));
  EXPECT_THAT(SelectEvenly({}, 100), IsEmpty());
}

TEST(GradeTest, ScoresAddUp) {
  Tally tally;
  AddReplies(tally, "sort", 3, 1);
  AddReplies(tally, "add", 1, 0);
  tally.AddFailure("add");
  const Score& add = tally.tasks().at("add");
  EXPECT_EQ(add.problems, 2);
  EXPECT_EQ(add.failed, 1);
  EXPECT_DOUBLE_EQ(add.accuracy_percent(), 50.0);
  EXPECT_DOUBLE_EQ(add.mean_tokens(), 10.0);
  const Score all = tally.All();
  EXPECT_EQ(all.problems, 6);
  EXPECT_EQ(all.right, 4);
  EXPECT_EQ(all.tokens, 50);
}

TEST(GradeTest, AnEmptyTallyHasNoAccuracy) {
  const Tally tally;
  EXPECT_EQ(tally.All().accuracy_percent(), 0.0);
  EXPECT_EQ(tally.All().mean_tokens(), 0.0);
}

TEST(GradeTest, TableHasALinePerTaskAndOneForAll) {
  Tally tally;
  AddReplies(tally, "sort", 3, 1);
  AddReplies(tally, "look-up", 2, 0);
  EXPECT_EQ(Table(tally),
            "task     problems   right  accuracy  tokens\n"
            "look-up         2       2    100.0%    10.0\n"
            "sort            4       3     75.0%    10.0\n"
            "all             6       5     83.3%    10.0\n");
}

TEST(GradeTest, JsonHasTheFiguresOfTheTable) {
  Tally tally;
  AddReplies(tally, "sort", 3, 1);
  tally.AddFailure("add");
  const json figures = ToJson(tally);
  EXPECT_EQ(figures["tasks"]["sort"], json({{"problems", 4},
                                            {"right", 3},
                                            {"failed", 0},
                                            {"accuracy_percent", 75.0},
                                            {"mean_tokens", 10.0}}));
  EXPECT_EQ(figures["tasks"]["add"]["failed"], 1);
  EXPECT_EQ(figures["all"]["accuracy_percent"], 60.0);
}

TEST(GradeTest, LimitsThatAreReachedExactlyHold) {
  Tally tally;
  AddReplies(tally, "sort", 3, 1);
  AddReplies(tally, "add", 4, 0);
  EXPECT_TRUE(CheckLimits(tally, 87.5, 75.0).ok());
  EXPECT_TRUE(CheckLimits(tally, std::nullopt, std::nullopt).ok());
}

TEST(GradeTest, NamesEveryLimitThatWasMissed) {
  Tally tally;
  AddReplies(tally, "sort", 83, 17);
  AddReplies(tally, "add", 100, 0);
  EXPECT_EQ(CheckLimits(tally, 90.0, 85.0),
            absl::FailedPreconditionError("sort is at 83.0% (83 of 100), under the 85% asked for"));
  EXPECT_EQ(CheckLimits(tally, 95.5, 85.0),
            absl::FailedPreconditionError(
                "the overall accuracy is at 91.5% (183 of 200), under the 95.5% asked for; "
                "sort is at 83.0% (83 of 100), under the 85% asked for"));
}

}  // namespace
}  // namespace tandem::tool
