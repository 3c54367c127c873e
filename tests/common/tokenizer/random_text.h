// Random valid UTF-8 that visits the borders of the pre-tokenizer's character classes.
#ifndef TANDEM_TESTS_COMMON_TOKENIZER_RANDOM_TEXT_H_
#define TANDEM_TESTS_COMMON_TOKENIZER_RANDOM_TEXT_H_

#include <iterator>
#include <random>
#include <string>

namespace tandem {

inline std::string EncodeUtf8(char32_t c) {
  const auto byte = [](char32_t value) { return static_cast<char>(value); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 0x3F))};
  if (c < 0x10000) {
    return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 0x3F)), byte(0x80 | (c & 0x3F))};
  }
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 0x3F)), byte(0x80 | (c >> 6 & 0x3F)),
          byte(0x80 | (c & 0x3F))};
}

// Any character but a surrogate.
inline char32_t RandomCodePoint(std::mt19937* rng) {
  const char32_t c = (*rng)() % (0x110000 - 0x800);
  return c < 0xD800 ? c : c + 0x800;
}

// `ascii_percent` of the characters are ASCII.
inline std::string RandomText(std::mt19937* rng, int max_length, int ascii_percent) {
  static constexpr char kAscii[] = "aZbq 09\t\r\n\v\f  .,!<|-~:\x01\x1c\x7f";
  static constexpr char32_t kOther[] = {
      0xE9,   0xDF,   0xA0,   0x85,   0xB2,   0xBD,   0x3B1,  0x416,   0x5D0,   0x660,
      0x915,  0x1680, 0x2003, 0x2019, 0x2028, 0x202F, 0x2167, 0x3000,  0x3001,  0x4E00,
      0x6F22, 0x9FA6, 0xAC00, 0xFF0C, 0xFF21, 0xFF5C, 0x2581, 0x1F642, 0x10400, 0x11DE0};
  std::string text;
  const int length = static_cast<int>((*rng)() % (max_length + 1));
  for (int i = 0; i < length; ++i) {
    if (static_cast<int>((*rng)() % 100) < ascii_percent) {
      text.push_back(kAscii[(*rng)() % (sizeof(kAscii) - 1)]);
    } else if ((*rng)() % 4 != 0) {
      text += EncodeUtf8(kOther[(*rng)() % std::size(kOther)]);
    } else {
      text += EncodeUtf8(RandomCodePoint(rng));
    }
  }
  return text;
}

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TOKENIZER_RANDOM_TEXT_H_
