#include "common/tokenizer/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/tokenizer/deepseek_split.h"
#include "tests/common/tokenizer/random_text.h"
#include "tests/common/tokenizer/stop_at.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;

std::vector<PreTokenizerStep> DeepSeekSteps() {
  std::vector<PreTokenizerStep> steps;
  for (const std::string& pattern : DeepSeekPatterns()) {
    steps.push_back({PreTokenizerStep::Kind::kSplit, pattern});
  }
  steps.push_back({PreTokenizerStep::Kind::kDigits, ""});
  return steps;
}

PreTokenizer Make(const std::vector<PreTokenizerStep>& steps) {
  auto pre_tokenizer = PreTokenizer::Create(steps);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  return *std::move(pre_tokenizer);
}

std::vector<std::string> Pieces(const PreTokenizer& pre_tokenizer, const std::string& text) {
  std::vector<uint32_t> ends;
  const absl::Status status = pre_tokenizer.Split(text, &ends);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::string> pieces;
  uint32_t begin = 0;
  for (const uint32_t end : ends) {
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return pieces;
}

TEST(PreTokenizerTest, SplitsAsDeepSeek) {
  const PreTokenizer deepseek = Make(DeepSeekSteps());
  EXPECT_THAT(Pieces(deepseek, "Hello, world!"), ElementsAre("Hello", ",", " world", "!"));
  EXPECT_THAT(Pieces(deepseek, "a   b"), ElementsAre("a", "  ", " b"));
  EXPECT_THAT(Pieces(deepseek, "x\r\n\ny"), ElementsAre("x", "\r", "\n", "\n", "y"));
  EXPECT_THAT(Pieces(deepseek, "12  "), ElementsAre("1", "2", "  "));
  EXPECT_THAT(Pieces(deepseek, "\x01  5"), ElementsAre("\x01  ", "5"));
  EXPECT_THAT(Pieces(deepseek, " Führer"), ElementsAre(" F", "ü", "hrer"));
  EXPECT_THAT(Pieces(deepseek, "½²"), ElementsAre("½", "²"));
  EXPECT_THAT(Pieces(deepseek, "🙂 "), ElementsAre("🙂", " "));
  EXPECT_THAT(Pieces(deepseek, "漢字。"), ElementsAre("漢字", "。"));
  EXPECT_THAT(Pieces(deepseek, ""), ElementsAre());
}

TEST(PreTokenizerTest, FastPathAgreesWithTheSteps) {
  const PreTokenizer deepseek = Make(DeepSeekSteps());
  std::mt19937 rng(2);
  std::vector<uint32_t> fast;
  std::vector<uint32_t> by_steps;
  for (const int ascii_percent : {100, 97, 80, 30, 0}) {
    for (int round = 0; round < 4000; ++round) {
      const std::string text = RandomText(&rng, 40, ascii_percent);
      ASSERT_TRUE(deepseek.Split(text, &fast).ok());
      ASSERT_TRUE(deepseek.SplitBySteps(text, &by_steps).ok());
      ASSERT_EQ(fast, by_steps) << testing::PrintToString(text);
    }
  }
}

TEST(PreTokenizerTest, FastPathAgreesOnEveryAsciiTriple) {
  const PreTokenizer deepseek = Make(DeepSeekSteps());
  // One character of each kind that any step distinguishes, and the borders of the ranges.
  const std::string kinds = std::string("\0\x08\t\n\v\f\r\x0E\x1C", 9) + " !/09:@AZ[`az{~\x7F";
  std::vector<uint32_t> fast;
  std::vector<uint32_t> by_steps;
  for (const char a : kinds) {
    for (const char b : kinds) {
      for (const char c : kinds) {
        for (const std::string& text : {std::string{a, b, c}, std::string{'x', ' ', a, b, c, ' '},
                                        std::string{a, b, c} + "é " + std::string{a, b, c}}) {
          ASSERT_TRUE(deepseek.Split(text, &fast).ok());
          ASSERT_TRUE(deepseek.SplitBySteps(text, &by_steps).ok());
          ASSERT_EQ(fast, by_steps) << testing::PrintToString(text);
        }
      }
    }
  }
}

TEST(PreTokenizerTest, TrailingWhitespaceIsWhatTheRegexFinds) {
  // A spelling of the same regex that is not recognised goes through Oniguruma.
  const PreTokenizer recognised = Make({{PreTokenizerStep::Kind::kSplit, R"(\s+$)"}});
  const PreTokenizer by_regex = Make({{PreTokenizerStep::Kind::kSplit, R"((?:\s+$))"}});
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = absl::StrCat("a ", EncodeUtf8(c));
    ASSERT_EQ(Pieces(recognised, text), Pieces(by_regex, text))
        << std::hex << static_cast<uint32_t>(c);
  }
  std::mt19937 rng(3);
  for (int round = 0; round < 5000; ++round) {
    const std::string text = RandomText(&rng, 8, 60);
    ASSERT_EQ(Pieces(recognised, text), Pieces(by_regex, text)) << testing::PrintToString(text);
  }
}

TEST(PreTokenizerTest, DigitsAreRustsNumericCharacters) {
  const PreTokenizer digits = Make({{PreTokenizerStep::Kind::kDigits, ""}});
  int num_numeric = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    num_numeric += Pieces(digits, absl::StrCat("a", EncodeUtf8(c), "a")).size() == 3;
  }
  // char::is_numeric of Rust with Unicode 17, as in tokenizers 0.23.3.
  EXPECT_EQ(num_numeric, 1924);
}

TEST(PreTokenizerTest, OtherPatternsAreData) {
  const PreTokenizer custom =
      Make({{PreTokenizerStep::Kind::kSplit, "b"}, {PreTokenizerStep::Kind::kSplit, R"(\s+$)"}});
  EXPECT_THAT(Pieces(custom, "abba "), ElementsAre("a", "b", "b", "a", " "));
}

TEST(PreTokenizerTest, TakesLinearTimeOnInnerWhitespace) {
  const PreTokenizer deepseek = Make(DeepSeekSteps());
  const std::string text = absl::StrCat("é", std::string(1 << 18, ' '), "1");
  EXPECT_EQ(Pieces(deepseek, text).size(), 3u);
}

TEST(PreTokenizerTest, StopsWithinAStretchWithoutBoundary) {
  const PreTokenizer deepseek = Make(DeepSeekSteps());
  std::string text;
  while (text.size() < 8 * StopCheck::kBytes) text += "漢é ";
  const auto split = [&](int last) {
    StopAt stop(last);
    const StopFunction function = stop.Function();
    StopCheck check(function);
    std::vector<uint32_t> ends;
    EXPECT_EQ(deepseek.Split(text, &ends, &check).code(),
              last == kNever ? absl::StatusCode::kOk : absl::StatusCode::kCancelled);
    return stop.asked();
  };
  const int all = split(kNever);
  // Every step reads all of it; the gaps between a step's matches are counted with its pieces.
  EXPECT_GE(all, 6 * 7);
  for (const int last : {1, all / 2, all}) EXPECT_EQ(split(last), last);
}

TEST(PreTokenizerTest, StopsWithinAscii) {
  const PreTokenizer deepseek = Make(DeepSeekSteps());
  for (const std::string unit : {"word 12, line\n", "1", " ", "\n"}) {
    std::string text;
    while (text.size() < 8 * StopCheck::kBytes) text += unit;
    StopAt stop(3);
    const StopFunction function = stop.Function();
    StopCheck check(function);
    std::vector<uint32_t> ends;
    EXPECT_EQ(deepseek.Split(text, &ends, &check).code(), absl::StatusCode::kCancelled) << unit;
    EXPECT_EQ(stop.asked(), 3);
    for (const uint32_t end : ends) ASSERT_LT(end, 4 * StopCheck::kBytes);
  }
}

}  // namespace
}  // namespace tandem
