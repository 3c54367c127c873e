#include "gateway/text_stream.h"

#include <gtest/gtest.h>

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

TEST_F(TextStreamTest, WithoutATokenizerThereIsNoText) {
  TextStream stream(nullptr, {});
  EXPECT_EQ(stream.Push(3), "");
  EXPECT_EQ(stream.Flush(), "");
}

}  // namespace
}  // namespace tandem
