#include "common/tokenizer/added_token_set.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "common/tokenizer/utf8.h"

namespace tandem {
namespace {

// What a match costs: as much as so many bytes of other work. What has no match is passed at a
// nanosecond a byte.
constexpr size_t kMatchBytes = 64;

// Unicode's White_Space.
bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// \w of Unicode's regular expressions (UTS 18, annex C).
bool IsWord(absl::string_view character) {
  static const Regex word = *Regex::Compile(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}])");
  std::vector<TextRange> matches;
  return word.FindAll(character, &matches).ok() && !matches.empty();
}

// Where the character that ends at text[end] begins; end > 0.
size_t PreviousCharacter(absl::string_view text, size_t end) {
  do --end;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

bool EndsWithWord(absl::string_view text) {
  return !text.empty() && IsWord(text.substr(PreviousCharacter(text, text.size())));
}

bool BeginsWithWord(absl::string_view text) {
  if (text.empty()) return false;
  size_t end = 0;
  NextCodePoint(text, &end);
  return IsWord(text.substr(0, end));
}

// Where the white space that ends at text[end] begins, but not before `floor`.
size_t SpaceBegin(absl::string_view text, size_t floor, size_t end) {
  while (end > floor) {
    const size_t previous = PreviousCharacter(text, end);
    size_t position = previous;
    if (!IsSpace(NextCodePoint(text, &position))) break;
    end = previous;
  }
  return end;
}

// Where the white space that begins at text[begin] ends.
size_t SpaceEnd(absl::string_view text, size_t begin) {
  size_t position = begin;
  while (position < text.size() && IsSpace(NextCodePoint(text, &position))) begin = position;
  return begin;
}

}  // namespace

AddedTokenSet::AddedTokenSet(std::vector<AddedToken> tokens) {
  for (AddedToken& token : tokens) {
    tokens_[static_cast<uint8_t>(token.content[0])].push_back(std::move(token));
  }
  for (std::vector<AddedToken>& same_byte : tokens_) {
    std::sort(same_byte.begin(), same_byte.end(), [](const AddedToken& a, const AddedToken& b) {
      return a.content.size() > b.content.size();
    });
  }
}

const AddedToken* AddedTokenSet::Find(absl::string_view content) const {
  if (content.empty()) return nullptr;
  for (const AddedToken& token : tokens_[static_cast<uint8_t>(content[0])]) {
    if (token.content == content) return &token;
  }
  return nullptr;
}

const AddedToken* AddedTokenSet::LongestAtBegin(absl::string_view text, bool normalized) const {
  for (const AddedToken& token : tokens_[static_cast<uint8_t>(text[0])]) {
    if (token.normalized == normalized && absl::StartsWith(text, token.content)) return &token;
  }
  return nullptr;
}

std::vector<AddedTokenSet::Piece> AddedTokenSet::Cut(absl::string_view text,
                                                     absl::Span<const TextRange> ranges,
                                                     StopCheck* stop) const {
  std::vector<Piece> first;
  CutPlain(text, {0, text.size(), kPlain}, ranges, /*normalized=*/false, stop, &first);
  std::vector<Piece> pieces;
  for (const Piece& piece : first) {
    if (piece.id == kPlain) {
      CutPlain(text, piece, ranges, /*normalized=*/true, stop, &pieces);
    } else {
      pieces.push_back(piece);
    }
  }
  return pieces;
}

void AddedTokenSet::CutPlain(absl::string_view text, const Piece& plain,
                             absl::Span<const TextRange> ranges, bool normalized, StopCheck* stop,
                             std::vector<Piece>* pieces) const {
  text = text.substr(0, plain.end);
  size_t rest = plain.begin;              // begin of what no token has taken
  size_t space_begin = 0, space_end = 0;  // white space that is known, so as to read it once
  auto range = std::partition_point(ranges.begin(), ranges.end(),
                                    [&](const TextRange& r) { return r.end <= plain.begin; });
  for (size_t i = plain.begin; i < plain.end;) {
    while (range != ranges.end() && range->end <= i) ++range;
    if (range == ranges.end()) break;
    if (i < range->begin) {
      i = range->begin;
      continue;
    }
    const size_t limit = std::min<size_t>(range->end, plain.end);
    const AddedToken* token = LongestAtBegin(text.substr(i, limit - i), normalized);
    if (token == nullptr) {
      ++i;
      if (Stops(stop, 1)) return;
      continue;
    }
    size_t begin = i;
    size_t end = i + token->content.size();
    i = end;  // no other token is tried in what matched, whether it counts or not
    if (Stops(stop, kMatchBytes)) return;
    if (token->single_word && (EndsWithWord(text.substr(plain.begin, begin - plain.begin)) ||
                               BeginsWithWord(text.substr(end)))) {
      continue;
    }
    if (token->lstrip) begin = begin < rest ? rest : SpaceBegin(text, rest, begin);
    if (token->rstrip) {
      if (end < space_begin || end > space_end) {
        space_begin = end;
        space_end = SpaceEnd(text, end);
      }
      end = space_end;
    }
    if (rest < begin) pieces->push_back({rest, begin, kPlain});
    // Nothing is left of a token whose text and space the token before it took.
    if (begin < end) pieces->push_back({begin, end, token->id});
    rest = end;
  }
  if (rest < plain.end) pieces->push_back({rest, plain.end, kPlain});
}

}  // namespace tandem
