#include "gateway/text_stream.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
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

// A text as stop strings see it: special tokens as they are written, which clients do not see.
struct Whole {
  std::string text;
  std::string visible;  // by byte of text

  void Add(const std::string& more, bool is_visible) {
    text += more;
    visible.append(more.size(), static_cast<char>(is_visible));
  }
  std::string Seen(size_t bytes) const {
    std::string seen;
    for (size_t i = 0; i < bytes; ++i) {
      if (visible[i]) seen += text[i];
    }
    return seen;
  }
};

// Where a search in the whole text cuts it: before the stop string that is complete first, of
// several that end at the same byte before the longest. At the text's end if there is none.
size_t Cut(const std::string& text, const std::vector<std::string>& stops) {
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
  return begin;
}

// How much of the text's end is the beginning of a stop string: no less may be held back, and no
// more needs to be.
size_t HeldBack(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t n = text.size(); n > 0; --n) {
    for (const std::string& stop : stops) {
      if (n < stop.size() && text.compare(text.size() - n, n, stop, 0, n) == 0) return n;
    }
  }
  return 0;
}

TEST_F(TextStreamTest, GivesWhatASearchInTheWholeTextGives) {
  std::mt19937_64 random(1);
  const auto draw = [&](size_t below) { return static_cast<size_t>(random() % below); };
  // By their first byte; of these a text is made up in any way: tokens of several letters, of
  // single bytes of a character, and across two characters.
  std::vector<std::pair<std::string, int32_t>> tokens[256];
  int32_t special = -1;
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const std::string bytes(tokenizer_->TokenBytes(id));
    if (bytes.empty()) continue;
    if (tokenizer_->IsSpecial(id)) special = id;
    if (!tokenizer_->IsSpecial(id)) tokens[static_cast<uint8_t>(bytes[0])].push_back({bytes, id});
  }
  ASSERT_GE(special, 0);
  const std::string special_name(tokenizer_->TokenBytes(special));
  const std::vector<std::string> letters = {"a", "e", "n", "t", " ", "é", "ê", "日", "🙂"};
  const auto draw_text = [&](size_t most) {
    std::string text;
    for (size_t i = draw(most); i + 1 > 0; --i) text += letters[draw(letters.size())];
    return text;
  };
  int stopped = 0, stopped_with_special = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = draw(4); i + 1 > 0; --i) stops.push_back(draw_text(4));
    if (draw(4) == 0) stops.push_back((draw(2) ? draw_text(2) : "") + special_name);
    if (draw(4) == 0) stops.push_back(special_name + draw_text(2));
    if (draw(2)) stops.push_back(stops[0] + draw_text(2));  // stops[0] is a prefix of it
    TextStream stream(tokenizer_.get(), stops);
    std::string sent;
    Whole whole;  // of whole characters
    for (size_t part = draw(4); part + 1 > 0 && !stream.stopped(); --part) {
      std::string rest = draw_text(6), unfinished;
      while (!rest.empty() && !stream.stopped()) {
        const auto& candidates = tokens[static_cast<uint8_t>(rest[0])];
        const auto& [bytes, id] = candidates[draw(candidates.size())];
        if (rest.compare(0, bytes.size(), bytes) != 0) continue;
        rest.erase(0, bytes.size());
        sent += stream.Push(id);
        unfinished += bytes;
        // What is left begins in the middle of a character where it begins with such a byte.
        size_t end = unfinished.size();
        if (!rest.empty() && (rest[0] & 0xC0) == 0x80) {
          do --end;
          while ((unfinished[end] & 0xC0) == 0x80);
        }
        whole.Add(unfinished.substr(0, end), true);
        unfinished.erase(0, end);
        const size_t cut = Cut(whole.text, stops);
        ASSERT_EQ(stream.stopped(), cut < whole.text.size()) << whole.text;
        const size_t known = stream.stopped() ? cut : cut - HeldBack(whole.text, stops);
        ASSERT_EQ(sent, whole.Seen(known)) << whole.text;
      }
      if (stream.stopped() || draw(2)) continue;
      sent += stream.Push(special);
      whole.Add(special_name, false);
      ASSERT_EQ(stream.stopped(), Cut(whole.text, stops) < whole.text.size()) << whole.text;
      stopped_with_special += stream.stopped();
    }
    sent += stream.Flush();
    ASSERT_EQ(sent, whole.Seen(Cut(whole.text, stops))) << whole.text;
    stopped += stream.stopped();
  }
  EXPECT_GT(stopped, 5000);
  EXPECT_LT(stopped, 19000);
  EXPECT_GT(stopped_with_special, 500);
}

TEST_F(TextStreamTest, AStopStringCountsOnceItIsCompleteBehindMinTokens) {
  const std::vector<int32_t> ids = Ids("one two one two one two");
  const auto run = [&](const std::string& stop, int32_t min_tokens, int32_t* pushed) {
    TextStream stream(tokenizer_.get(), {stop}, min_tokens);
    std::string text;
    *pushed = 0;
    for (const int32_t id : ids) {
      if (stream.stopped()) break;
      text += stream.Push(id);
      ++*pushed;
    }
    return text + stream.Flush();
  };
  int32_t first = 0, pushed = 0;
  EXPECT_EQ(run("two", 0, &first), "one ");
  EXPECT_EQ(run("two", first - 1, &pushed), "one ");
  EXPECT_EQ(pushed, first);
  EXPECT_EQ(run("two", first, &pushed), "one two one ");
  const auto all = static_cast<int32_t>(ids.size());
  EXPECT_EQ(run("two", all - 1, &pushed), "one two one two one ");
  EXPECT_EQ(run("two", all, &pushed), "one two one two one two");
  // One that has begun before: the answer ends where it begins.
  EXPECT_EQ(run("two one", first, &pushed), "one ");
  EXPECT_GT(pushed, first);
}

TEST_F(TextStreamTest, WhatThePromptLeavesUnfinishedComesWithTheAnswer) {
  std::vector<int32_t> bytes;  // of "é", one by one
  for (const char* const byte : {"\xC3", "\xA9"}) {
    for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
      if (tokenizer_->TokenBytes(id) == byte) bytes.push_back(id);
    }
  }
  ASSERT_EQ(bytes.size(), 2u);
  std::vector<int32_t> prompt = Ids("one two");
  prompt.push_back(bytes[0]);
  TextStream stream(tokenizer_.get(), {"two"});
  EXPECT_EQ(stream.Echo(prompt), "one two");
  EXPECT_EQ(stream.Push(bytes[1]), "é");
  EXPECT_FALSE(stream.stopped());
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
