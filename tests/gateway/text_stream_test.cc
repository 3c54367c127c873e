#include "gateway/text_stream.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace tandem {
namespace {

class TextStreamTest : public testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(std::string(TANDEM_SOURCE_DIR) + "/tests/golden/tiny");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::vector<int32_t> Ids(const std::string& text) {
    const auto ids = tokenizer_->Encode(text, Tokenizer::AddedTokens::kPlain, false);
    EXPECT_TRUE(ids.ok());
    return ids.value_or(std::vector<int32_t>());
  }

  std::string Stream(const std::string& text, std::vector<std::string> stop, bool* stopped) {
    TextStream stream(tokenizer_.get(), std::move(stop));
    std::string out;
    for (int32_t id : Ids(text)) out += stream.Push(id);
    out += stream.Flush();
    *stopped = stream.stopped();
    return out;
  }

  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_F(TextStreamTest, CutsBeforeTheFirstStopString) {
  bool stopped = false;
  EXPECT_EQ(Stream("one two three", {"three", "two"}, &stopped), "one ");
  EXPECT_TRUE(stopped);
}

TEST_F(TextStreamTest, GivesBackWhatOnlyBeganLikeAStopString) {
  bool stopped = true;
  EXPECT_EQ(Stream("aab aab aa", {"aaa", "b aac"}, &stopped), "aab aab aa");
  EXPECT_FALSE(stopped);
}

TEST_F(TextStreamTest, NeverSplitsACharacter) {
  TextStream stream(tokenizer_.get(), {});
  std::string out;
  for (int32_t id : Ids("日本語 ☃ 🙂")) {
    const std::string piece = stream.Push(id);
    if (!piece.empty()) {
      EXPECT_NE(static_cast<uint8_t>(piece[0]) & 0xC0, 0x80);
    }
    out += piece;
  }
  EXPECT_EQ(out + stream.Flush(), "日本語 ☃ 🙂");
}

// What the whole text says: cut before the stop string that is complete first, of several that end
// at the same byte before the longest.
std::string CutWhole(const std::string& text, const std::vector<std::string>& stops) {
  size_t first_end = std::string::npos, begin = text.size();
  for (const std::string& stop : stops) {
    const size_t at = text.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < first_end || (end == first_end && at < begin)) {
      first_end = end;
      begin = at;
    }
  }
  return text.substr(0, begin);
}

TEST_F(TextStreamTest, GivesWhatASearchInTheWholeTextGives) {
  std::mt19937_64 random(1);
  const auto draw = [&](const std::string& letters, int most) {
    std::string text;
    const int length = 1 + static_cast<int>(random() % most);
    for (int i = 0; i < length; ++i) text += letters[random() % letters.size()];
    return text;
  };
  // Tokens of one to a few letters, so that stop strings begin and end within them.
  std::vector<int32_t> tokens;
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const auto bytes = tokenizer_->TokenBytes(id);
    if (!bytes.empty() && bytes.find_first_not_of("aent ") == bytes.npos) tokens.push_back(id);
  }
  ASSERT_GT(tokens.size(), 10u);
  int stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (int i = static_cast<int>(random() % 5); i >= 0; --i) stops.push_back(draw("aent ", 6));
    if (random() % 2) stops.push_back(stops[0].substr(0, 1 + random() % stops[0].size()));
    std::string text, sent;
    TextStream stream(tokenizer_.get(), stops);
    for (int i = static_cast<int>(random() % 12); i >= 0; --i) {
      const int32_t id = tokens[random() % tokens.size()];
      text += std::string(tokenizer_->TokenBytes(id));
      sent += stream.Push(id);
      const std::string cut = CutWhole(text, stops);
      // Nothing that is cut away later is ever sent, and no more than a stop string is held back.
      ASSERT_EQ(cut.substr(0, sent.size()), sent);
      ASSERT_EQ(stream.stopped(), cut.size() < text.size());
    }
    sent += stream.Flush();
    ASSERT_EQ(sent, CutWhole(text, stops)) << text;
    stopped += stream.stopped();
  }
  EXPECT_GT(stopped, 5000);
  EXPECT_LT(stopped, 19000);
}

TEST_F(TextStreamTest, SendsAtOnceWhatCannotBecomeAStopString) {
  TextStream stream(tokenizer_.get(), {"xyz"});
  std::string sent;
  for (const int32_t id : Ids("ab x")) sent += stream.Push(id);
  EXPECT_EQ(sent, "ab ");
  for (const int32_t id : Ids("q")) sent += stream.Push(id);
  EXPECT_EQ(sent, "ab xq");
}

TEST_F(TextStreamTest, ASpecialTokenMatchesAStopStringAndIsNeverSent) {
  int32_t special = 0;
  while (!tokenizer_->IsSpecial(special)) ++special;
  const std::string name(tokenizer_->TokenBytes(special));
  const std::vector<int32_t> one = Ids("one"), two = Ids("two");
  const auto run = [&](std::vector<std::string> stop, bool* stopped) {
    TextStream stream(tokenizer_.get(), std::move(stop));
    std::string text;
    for (const auto& ids : {one, {special}, two}) {
      for (const int32_t id : ids) text += stream.Push(id);
    }
    text += stream.Flush();
    *stopped = stream.stopped();
    return text;
  };
  bool stopped = false;
  EXPECT_EQ(run({name}, &stopped), "one");
  EXPECT_TRUE(stopped);
  EXPECT_EQ(run({"ne" + name + "tw"}, &stopped), "o");
  EXPECT_TRUE(stopped);
  EXPECT_EQ(run({name + "x", "onetwo"}, &stopped), "onetwo");
  EXPECT_FALSE(stopped);
}

TEST_F(TextStreamTest, WithoutATokenizerThereIsNoText) {
  TextStream stream(nullptr, {});
  EXPECT_EQ(stream.Push(3), "");
  EXPECT_EQ(stream.Flush(), "");
}

}  // namespace
}  // namespace tandem
