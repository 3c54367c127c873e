#include "common/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "common/tokenizer/byte_symbols.h"
#include "tests/common/tokenizer/random_text.h"

namespace tandem {
namespace {

std::string Lossy(const std::string& bytes) {
  LossyUtf8Stream stream;
  std::string text;
  stream.Append(bytes, &text);
  stream.Flush(&text);
  return text;
}

TEST(Utf8Test, AcceptsEveryCodePoint) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = EncodeUtf8(c);
    ASSERT_EQ(FindInvalidUtf8(text), std::nullopt) << std::hex << static_cast<uint32_t>(c);
    size_t position = 0;
    ASSERT_EQ(NextCodePoint(text, &position), c);
    ASSERT_EQ(position, text.size());
  }
}

TEST(Utf8Test, NamesTheFirstInvalidByte) {
  const struct {
    const char* bytes;
    size_t offset;
  } cases[] = {{"\x80", 0},
               {"abc\xFF", 3},
               {"\xC0\xAF", 0},
               {"\xC1\xBF", 0},
               {"\xE0\x9F\xBF", 0},
               {"ok \xED\xA0\x80", 3},
               {"\xF4\x90\x80\x80", 0},
               {"\xF5\x80\x80\x80", 0},
               {"é\xE2\x82", 2},
               {"0123456789abcde\xE2(\xA1", 15}};
  for (const auto& c : cases) EXPECT_EQ(FindInvalidUtf8(c.bytes), c.offset) << c.bytes;
}

TEST(LossyUtf8StreamTest, ReplacesEachMaximalBrokenPart) {
  // The example of Unicode 15, section 3.9, table 3-8, and its neighbours.
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(Lossy("a\xF0\x9F\x99"), "a\uFFFD");
  EXPECT_EQ(Lossy("a\xF0\x9F\x99\x82z"), "a🙂z");
}

TEST(LossyUtf8StreamTest, DoesNotDependOnTheCuts) {
  std::mt19937 rng(1);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = RandomText(&rng, 12, 30);
    for (int i = 0; i < 3 && !bytes.empty(); ++i) bytes[rng() % bytes.size()] = rng() & 0xFF;
    const std::string whole = Lossy(bytes);
    EXPECT_EQ(FindInvalidUtf8(whole), std::nullopt);
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      LossyUtf8Stream stream;
      std::string text;
      stream.Append(bytes.substr(0, cut), &text);
      EXPECT_EQ(FindInvalidUtf8(text), std::nullopt);
      for (const char c : bytes.substr(cut)) stream.Append(std::string(1, c), &text);
      stream.Flush(&text);
      ASSERT_EQ(text, whole);
    }
  }
}

TEST(ByteSymbolsTest, SymbolsReadBackAsTheirBytes) {
  std::string all;
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) {
    bytes.push_back(static_cast<char>(byte));
    all += ByteSymbol(static_cast<uint8_t>(byte));
  }
  EXPECT_EQ(TokenToBytes(all), bytes);
  EXPECT_EQ(ByteSymbol(' '), "Ġ");
  EXPECT_EQ(ByteSymbol('\n'), "Ċ");
  EXPECT_EQ(TokenToBytes("<｜User｜>"), "<｜User｜>");
}

}  // namespace
}  // namespace tandem
