#include "common/tokenizer/incremental_detokenizer.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/tokenizer/utf8.h"
#include "tests/common/tokenizer/mini_tokenizer.h"

namespace tandem {
namespace {

class IncrementalDetokenizerTest : public testing::Test {
 protected:
  IncrementalDetokenizerTest() {
    auto parsed = Tokenizer::Parse(MiniTokenizerJson().dump(), MiniConfigJson().dump());
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    tokenizer_ = *std::move(parsed);
  }

  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_F(IncrementalDetokenizerTest, HoldsBackUnfinishedCharacters) {
  IncrementalDetokenizer detokenizer(tokenizer_.get(), /*skip_special=*/true);
  EXPECT_EQ(detokenizer.Push(259), "hello");
  EXPECT_EQ(detokenizer.Push(0xF0), "");
  EXPECT_EQ(detokenizer.Push(0x9F), "");
  EXPECT_EQ(detokenizer.Push(kMiniEos), "");
  EXPECT_EQ(detokenizer.Push(0x99), "");
  EXPECT_EQ(detokenizer.Push(0x82), "🙂");
  EXPECT_EQ(detokenizer.Push(0xE2), "");
  EXPECT_EQ(detokenizer.Push('a'), "\uFFFDa");
  EXPECT_EQ(detokenizer.Push(0xE2), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST_F(IncrementalDetokenizerTest, IgnoresIdsWithoutAToken) {
  IncrementalDetokenizer detokenizer(tokenizer_.get(), false);
  EXPECT_EQ(detokenizer.Push(-1) + detokenizer.Push(290) + detokenizer.Push(1 << 30), "");
  EXPECT_EQ(detokenizer.Push('a'), "a");
}

TEST_F(IncrementalDetokenizerTest, JoinsToWhatDecodeReturns) {
  std::mt19937 rng(6);
  for (int round = 0; round < 5000; ++round) {
    std::vector<int32_t> ids;
    const int length = static_cast<int>(rng() % 20);
    for (int i = 0; i < length; ++i) {
      // Mostly bytes above ASCII, so that characters form, break and end early.
      int32_t id = rng() % 8 == 0 ? static_cast<int32_t>(rng() % 264)
                                  : static_cast<int32_t>(0x80 + rng() % 0x80);
      if (rng() % 16 == 0) id = kMiniBos + static_cast<int32_t>(rng() % 3);
      ids.push_back(id);
    }
    for (const bool skip_special : {false, true}) {
      IncrementalDetokenizer detokenizer(tokenizer_.get(), skip_special);
      std::string joined;
      for (const int32_t id : ids) {
        const std::string text = detokenizer.Push(id);
        ASSERT_EQ(FindInvalidUtf8(text), std::nullopt);
        joined += text;
      }
      joined += detokenizer.Flush();
      ASSERT_EQ(joined, *tokenizer_->Decode(ids, skip_special)) << testing::PrintToString(ids);
    }
  }
}

TEST_F(IncrementalDetokenizerTest, StreamsEverySplitOfMultiByteText) {
  const std::string text = "aé漢🙂\uFFFDz\u0301";
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  IncrementalDetokenizer detokenizer(tokenizer_.get(), false);
  std::string streamed;
  for (const int32_t id : ids) {
    const std::string more = detokenizer.Push(id);
    EXPECT_EQ(FindInvalidUtf8(more), std::nullopt);
    streamed += more;
    EXPECT_EQ(text.compare(0, streamed.size(), streamed), 0);
  }
  EXPECT_EQ(streamed, text);
  EXPECT_EQ(detokenizer.Flush(), "");
}

}  // namespace
}  // namespace tandem
