#include "common/tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace tandem {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct LeadByte {
  int length;             // of the whole sequence; 0 for a byte that begins none
  uint8_t second_lowest;  // range of the second byte; all later ones are 80..BF
  uint8_t second_highest;
};

LeadByte ClassifyLead(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

enum class SequenceKind { kComplete, kBroken, kUnfinished };

struct Sequence {
  SequenceKind kind;
  size_t length;  // of the character, of the maximal broken part, or of what is left
};

// Classifies what begins at text[position].
Sequence ReadSequence(absl::string_view text, size_t position) {
  const LeadByte lead = ClassifyLead(static_cast<uint8_t>(text[position]));
  if (lead.length == 0) return {SequenceKind::kBroken, 1};
  for (int i = 1; i < lead.length; ++i) {
    if (position + i == text.size()) return {SequenceKind::kUnfinished, static_cast<size_t>(i)};
    const uint8_t byte = static_cast<uint8_t>(text[position + i]);
    const uint8_t lowest = i == 1 ? lead.second_lowest : 0x80;
    const uint8_t highest = i == 1 ? lead.second_highest : 0xBF;
    if (byte < lowest || byte > highest) {
      return {SequenceKind::kBroken, static_cast<size_t>(i)};
    }
  }
  return {SequenceKind::kComplete, static_cast<size_t>(lead.length)};
}

}  // namespace

std::optional<size_t> FindInvalidUtf8(absl::string_view text) {
  size_t position = 0;
  while (position < text.size()) {
    if (position + 8 <= text.size()) {
      uint64_t eight;
      std::memcpy(&eight, text.data() + position, sizeof(eight));
      if ((eight & 0x8080808080808080u) == 0) {
        position += 8;
        continue;
      }
    }
    const Sequence sequence = ReadSequence(text, position);
    if (sequence.kind != SequenceKind::kComplete) return position;
    position += sequence.length;
  }
  return std::nullopt;
}

char32_t NextCodePoint(absl::string_view text, size_t* position) {
  const uint8_t lead = static_cast<uint8_t>(text[(*position)++]);
  if (lead < 0x80) return lead;
  const int num_continuations = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  char32_t code_point = lead & (0x3F >> num_continuations);
  for (int i = 0; i < num_continuations; ++i) {
    code_point = code_point << 6 | (static_cast<uint8_t>(text[(*position)++]) & 0x3F);
  }
  return code_point;
}

void LossyUtf8Stream::Append(absl::string_view bytes, std::string* out) {
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_ + std::string(bytes);
    pending_.clear();
    bytes = joined;
  }
  size_t position = 0;
  while (position < bytes.size()) {
    const Sequence sequence = ReadSequence(bytes, position);
    switch (sequence.kind) {
      case SequenceKind::kComplete:
        out->append(bytes.data() + position, sequence.length);
        break;
      case SequenceKind::kBroken:
        out->append(kReplacement.data(), kReplacement.size());
        break;
      case SequenceKind::kUnfinished:
        pending_.assign(bytes.data() + position, sequence.length);
        break;
    }
    position += sequence.length;
  }
}

void LossyUtf8Stream::Flush(std::string* out) {
  if (!pending_.empty()) out->append(kReplacement.data(), kReplacement.size());
  pending_.clear();
}

}  // namespace tandem
