#include "common/tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/common/tokenizer/stop_at.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

std::vector<std::pair<uint32_t, uint32_t>> Find(const std::string& pattern,
                                                const std::string& text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  std::vector<TextRange> matches;
  const absl::Status status = regex->FindAll(text, &matches);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  for (const TextRange& match : matches) pairs.emplace_back(match.begin, match.end);
  return pairs;
}

TEST(RegexTest, FindsLeftmostMatchesInBytes) {
  EXPECT_THAT(Find(R"(\s?[a-zé]+)", "é ab  c"), ElementsAre(Pair(0, 2), Pair(2, 5), Pair(6, 8)));
}

TEST(RegexTest, DollarIsEndOfLineAsInRuby) {
  EXPECT_THAT(Find(R"(\s+$)", "a  \nb "), ElementsAre(Pair(1, 3), Pair(5, 6)));
}

TEST(RegexTest, SkipsEmptyMatchesBehindAMatch) {
  EXPECT_THAT(Find("b*", "abb€"), ElementsAre(Pair(0, 0), Pair(1, 3), Pair(6, 6)));
  EXPECT_THAT(Find("x*", ""), ElementsAre(Pair(0, 0)));
}

TEST(RegexTest, RefusesAPatternThatDoesNotCompile) {
  const auto regex = Regex::Compile("[a");
  EXPECT_EQ(regex.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(regex.status().message()), HasSubstr("[a"));
}

TEST(RegexTest, GivesUpOnEndlessBacktracking) {
  const auto regex = Regex::Compile("(?:a|b|ab)*d$");
  ASSERT_TRUE(regex.ok());
  std::string text;
  for (int i = 0; i < 50; ++i) text += "ab";
  text += "dx";
  std::vector<TextRange> matches;
  EXPECT_EQ(regex->FindAll(text, &matches).code(), absl::StatusCode::kInternal);
}

TEST(RegexTest, StopsBetweenMatches) {
  const auto regex = Regex::Compile("a");
  ASSERT_TRUE(regex.ok());
  StopAt stop(3);
  const StopFunction function = stop.Function();
  StopCheck check(function);
  std::vector<TextRange> matches;
  EXPECT_EQ(regex->FindAll(std::string(8 * StopCheck::kBytes, 'a'), &matches, &check).code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(matches.size(), 3 * StopCheck::kBytes);
}

}  // namespace
}  // namespace tandem
