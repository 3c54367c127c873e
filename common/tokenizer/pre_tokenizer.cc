#include "common/tokenizer/pre_tokenizer.h"

#include <cstddef>
#include <cstring>
#include <utility>

#include "common/status.h"
#include "common/tokenizer/deepseek_split.h"
#include "common/tokenizer/utf8.h"

namespace tandem {
namespace {

constexpr absl::string_view kTrailingWhitespace = R"(\s+$)";

// Rust's char::is_numeric, which defines the Digits step, follows a newer Unicode than Oniguruma
// 6.9.8: the ranges are the numerals that Unicode 15, 16 and 17 added.
constexpr absl::string_view kNumerals =
    R"([\p{N}\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11DE0}-\x{11DE9})"
    R"(\x{11F50}-\x{11F59}\x{16130}-\x{16139}\x{16D70}-\x{16D79}\x{16FF4}-\x{16FF6})"
    R"(\x{1CCF0}-\x{1CCF9}\x{1D2C0}-\x{1D2D3}\x{1E4F0}-\x{1E4F9}\x{1E5F1}-\x{1E5FA}])";

bool IsDeepSeek(const std::vector<PreTokenizerStep>& steps) {
  const std::vector<std::string>& patterns = DeepSeekPatterns();
  if (steps.size() != patterns.size() + 1) return false;
  if (steps.back().kind != PreTokenizerStep::Kind::kDigits) return false;
  for (size_t i = 0; i < patterns.size(); ++i) {
    if (steps[i].kind != PreTokenizerStep::Kind::kSplit || steps[i].pattern != patterns[i]) {
      return false;
    }
  }
  return true;
}

// Oniguruma's \s in UTF-8.
bool IsWhitespace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// The only match of \s+$ in a piece without line feed (before which Ruby's $ matches too), found
// from behind: from the front a regex engine takes quadratic time over inner whitespace.
void FindTrailingWhitespace(absl::string_view piece, std::vector<TextRange>* matches) {
  matches->clear();
  size_t begin = piece.size();
  while (begin > 0) {
    size_t previous = begin - 1;
    while ((static_cast<uint8_t>(piece[previous]) & 0xC0) == 0x80) --previous;
    size_t position = previous;
    if (!IsWhitespace(NextCodePoint(piece, &position))) break;
    begin = previous;
  }
  if (begin == piece.size()) return;
  matches->push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(piece.size())});
}

void PushEnd(uint32_t end, std::vector<uint32_t>* ends) {
  if (end > (ends->empty() ? 0 : ends->back())) ends->push_back(end);
}

size_t FindNonAscii(absl::string_view text, size_t position) {
  for (; position + 8 <= text.size(); position += 8) {
    uint64_t eight;
    std::memcpy(&eight, text.data() + position, sizeof(eight));
    if ((eight & 0x8080808080808080u) != 0) break;
  }
  while (position < text.size() && static_cast<uint8_t>(text[position]) < 0x80) ++position;
  return position;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<PreTokenizerStep>& steps) {
  std::vector<Step> compiled;
  for (const PreTokenizerStep& step : steps) {
    const absl::string_view pattern =
        step.kind == PreTokenizerStep::Kind::kDigits ? kNumerals : absl::string_view(step.pattern);
    TANDEM_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(pattern));
    compiled.push_back({std::move(regex), pattern == kTrailingWhitespace});
  }
  return PreTokenizer(std::move(compiled), IsDeepSeek(steps));
}

absl::Status PreTokenizer::AppendBySteps(absl::string_view text, uint32_t base, StopCheck* stop,
                                         Scratch* scratch, std::vector<uint32_t>* ends) const {
  if (text.empty()) return absl::OkStatus();
  scratch->ends.assign(1, static_cast<uint32_t>(text.size()));
  for (const Step& step : steps_) {
    scratch->next_ends.clear();
    uint32_t begin = 0;
    for (const uint32_t end : scratch->ends) {
      const absl::string_view piece = text.substr(begin, end - begin);
      if (Stops(stop, piece.size())) return stop->status();
      if (step.is_trailing_whitespace && piece.find('\n') == absl::string_view::npos) {
        FindTrailingWhitespace(piece, &scratch->matches);
      } else {
        TANDEM_RETURN_IF_ERROR(step.regex.FindAll(piece, &scratch->matches, stop));
      }
      for (const TextRange& match : scratch->matches) {
        PushEnd(begin + match.begin, &scratch->next_ends);
        PushEnd(begin + match.end, &scratch->next_ends);
      }
      PushEnd(end, &scratch->next_ends);
      begin = end;
    }
    scratch->ends.swap(scratch->next_ends);
  }
  for (const uint32_t end : scratch->ends) ends->push_back(base + end);
  return absl::OkStatus();
}

absl::Status PreTokenizer::SplitBySteps(absl::string_view text, std::vector<uint32_t>* ends,
                                        StopCheck* stop) const {
  ends->clear();
  Scratch scratch;
  return AppendBySteps(text, 0, stop, &scratch, ends);
}

absl::Status PreTokenizer::Split(absl::string_view text, std::vector<uint32_t>* ends,
                                 StopCheck* stop) const {
  if (!is_deepseek_) return SplitBySteps(text, ends, stop);
  ends->clear();
  Scratch scratch;
  size_t position = 0;
  while (position < text.size()) {
    const size_t non_ascii = FindNonAscii(text, position);
    if (non_ascii == text.size()) {
      SplitDeepSeekAscii(text.substr(position), position, stop, ends);
      break;
    }
    // The steps take the stretch around the other characters, from boundary to boundary.
    size_t begin = non_ascii;
    while (begin > position && !IsDeepSeekBoundary(text, begin)) --begin;
    size_t end = non_ascii + 1;
    while (!IsDeepSeekBoundary(text, end)) {
      if (Stops(stop, 1)) return stop->status();
      ++end;
    }
    SplitDeepSeekAscii(text.substr(position, begin - position), position, stop, ends);
    TANDEM_RETURN_IF_ERROR(
        AppendBySteps(text.substr(begin, end - begin), begin, stop, &scratch, ends));
    position = end;
  }
  return stop == nullptr ? absl::OkStatus() : stop->status();
}

}  // namespace tandem
