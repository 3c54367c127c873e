#include "common/tokenizer/deepseek_split.h"

#include <array>

namespace tandem {
namespace {

struct CodePointRange {
  char32_t first;
  char32_t last;
};

// The letters of step 2: the cased letters of Unicode 11 in Latin, Greek, Cyrillic and others.
constexpr CodePointRange kLetters[] = {
    {0x0041, 0x005A},   {0x0061, 0x007A},   {0x00B5, 0x00B5},   {0x00C0, 0x00D6},
    {0x00D8, 0x00F6},   {0x00F8, 0x01BA},   {0x01BC, 0x01BF},   {0x01C4, 0x0293},
    {0x0295, 0x02AF},   {0x0370, 0x0373},   {0x0376, 0x0376},   {0x0377, 0x0377},
    {0x037B, 0x037D},   {0x037F, 0x037F},   {0x0386, 0x0386},   {0x0388, 0x038A},
    {0x038C, 0x038C},   {0x038E, 0x03A1},   {0x03A3, 0x03F5},   {0x03F7, 0x0481},
    {0x048A, 0x052F},   {0x0531, 0x0556},   {0x10A0, 0x10C5},   {0x13A0, 0x13F5},
    {0x13F8, 0x13FD},   {0x1C90, 0x1CBA},   {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},
    {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},   {0x1E00, 0x1F15},   {0x1F18, 0x1F1D},
    {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},   {0x1F59, 0x1F59},
    {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},
    {0x1FB6, 0x1FBC},   {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},   {0x1FC6, 0x1FCC},
    {0x1FD0, 0x1FD3},   {0x1FD6, 0x1FDB},   {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},
    {0x1FF6, 0x1FFC},   {0x2102, 0x2102},   {0x2107, 0x2107},   {0x210A, 0x2113},
    {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},   {0x2126, 0x2126},
    {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},   {0x2139, 0x2139},
    {0x213C, 0x213F},   {0x2145, 0x2149},   {0x214E, 0x214E},   {0x2183, 0x2183},
    {0x2184, 0x2184},   {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},   {0x2CEB, 0x2CEE},
    {0x2CF2, 0x2CF2},   {0x2CF3, 0x2CF3},   {0xA640, 0xA66D},   {0xA680, 0xA69B},
    {0xA722, 0xA76F},   {0xA771, 0xA787},   {0xA78B, 0xA78E},   {0xAB70, 0xABBF},
    {0xFB00, 0xFB06},   {0xFB13, 0xFB17},   {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},
    {0x10400, 0x1044F}, {0x104B0, 0x104D3}, {0x104D8, 0x104FB}, {0x10C80, 0x10CB2},
    {0x10CC0, 0x10CF2}, {0x118A0, 0x118DF}, {0x1E900, 0x1E943}};

constexpr CodePointRange kPunctuation[] = {{'!', '/'},       {':', '~'},       {0xFF01, 0xFF0F},
                                           {0xFF1A, 0xFF5E}, {0x2018, 0x201F}, {0x3000, 0x3002}};

constexpr CodePointRange kCjk[] = {{0x4E00, 0x9FA5}, {0x0800, 0x4E00}, {0xAC00, 0xD7FF}};

void AppendUtf8(char32_t code_point, std::string* out) {
  const auto continuation = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    continuation(0);
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    continuation(6);
    continuation(0);
  } else {
    out->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

// "[a-zX]+" of ranges that are spelled with one character where first == last.
std::string ClassPattern(absl::Span<const CodePointRange> ranges) {
  std::string pattern = "[";
  for (const CodePointRange& range : ranges) {
    AppendUtf8(range.first, &pattern);
    if (range.first == range.last) continue;
    pattern.push_back('-');
    AppendUtf8(range.last, &pattern);
  }
  return pattern + "]+";
}

enum class CharClass : uint8_t { kLineBreak, kSpace, kLetter, kPunctuation, kDigit, kOther };

constexpr CharClass Classify(int c) {
  if (c == '\r' || c == '\n') return CharClass::kLineBreak;
  if (c == ' ' || c == '\t' || c == '\v' || c == '\f') return CharClass::kSpace;
  if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) return CharClass::kLetter;
  if (c >= '0' && c <= '9') return CharClass::kDigit;
  if (c >= '!' && c <= '~') return CharClass::kPunctuation;
  return CharClass::kOther;
}

constexpr std::array<CharClass, 256> MakeClasses() {
  std::array<CharClass, 256> classes{};
  for (int c = 0; c < 256; ++c) classes[c] = Classify(c);
  return classes;
}
constexpr std::array<CharClass, 256> kClasses = MakeClasses();

CharClass ClassAt(absl::string_view text, size_t position) {
  return kClasses[static_cast<uint8_t>(text[position])];
}

// Splits text[begin, end), in which steps 1 to 3 matched nothing: its trailing whitespace is a
// piece (step 4), each digit is one (step 6), and so are the stretches between.
void SplitGap(absl::string_view text, size_t begin, size_t end, uint32_t base,
              std::vector<uint32_t>* ends) {
  if (begin == end) return;
  size_t tail = end;
  while (tail > begin && ClassAt(text, tail - 1) == CharClass::kSpace) --tail;
  size_t piece = begin;
  for (size_t i = begin; i < tail; ++i) {
    if (ClassAt(text, i) != CharClass::kDigit) continue;
    if (i > piece) ends->push_back(base + i);
    ends->push_back(base + i + 1);
    piece = i + 1;
  }
  if (tail > piece) ends->push_back(base + tail);
  if (end > tail) ends->push_back(base + end);
}

}  // namespace

const std::vector<std::string>& DeepSeekPatterns() {
  static const auto* const patterns = new std::vector<std::string>{
      "[\r\n]", R"(\s?)" + ClassPattern(kLetters), R"(\s?)" + ClassPattern(kPunctuation), R"(\s+$)",
      ClassPattern(kCjk)};
  return *patterns;
}

void SplitDeepSeekAscii(absl::string_view text, uint32_t base, StopCheck* stop,
                        std::vector<uint32_t>* ends) {
  size_t gap = 0;  // begin of what no match has taken yet
  size_t i = 0;
  while (i < text.size()) {
    const CharClass c = ClassAt(text, i);
    if (c == CharClass::kLineBreak) {
      SplitGap(text, gap, i, base, ends);
      ends->push_back(base + ++i);
      if (Stops(stop, 1)) return;
      gap = i;
    } else if (c == CharClass::kLetter || c == CharClass::kPunctuation) {
      // One whitespace character before the run belongs to it.
      const size_t begin = i > gap && ClassAt(text, i - 1) == CharClass::kSpace ? i - 1 : i;
      SplitGap(text, gap, begin, base, ends);
      while (i < text.size() && ClassAt(text, i) == c) ++i;
      ends->push_back(base + i);
      if (Stops(stop, i - begin)) return;
      gap = i;
    } else {
      ++i;
      if (Stops(stop, 1)) return;
    }
  }
  SplitGap(text, gap, i, base, ends);
}

bool IsDeepSeekBoundary(absl::string_view text, size_t position) {
  if (position == 0 || position == text.size()) return true;
  const CharClass here = ClassAt(text, position);
  if (here == CharClass::kLineBreak) return true;
  if (ClassAt(text, position - 1) == CharClass::kLineBreak) return true;
  return here == CharClass::kSpace && position + 1 < text.size() &&
         ClassAt(text, position + 1) == CharClass::kLetter;
}

}  // namespace tandem
