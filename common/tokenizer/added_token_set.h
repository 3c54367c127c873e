// The tokens that are cut out of the raw text before anything else, as Hugging Face `tokenizers`
// cuts them.
#ifndef TANDEM_COMMON_TOKENIZER_ADDED_TOKEN_SET_H_
#define TANDEM_COMMON_TOKENIZER_ADDED_TOKEN_SET_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/tokenizer/regex.h"
#include "common/tokenizer/stop_check.h"

namespace tandem {

struct AddedToken {
  int32_t id;
  std::string content;  // UTF-8, not empty
  bool special;         // left out by Decode when special tokens are skipped
  bool normalized;      // matched in what the tokens that are not `normalized` left over
  bool single_word;     // does not count with a word's character at one of its sides
  bool lstrip;          // takes the white space before it
  bool rstrip;          // takes the white space behind it
};

// Immutable; any number of threads may use one.
class AddedTokenSet {
 public:
  static constexpr int32_t kPlain = -1;

  // A stretch of a text: an added token with what it takes of the white space around it, or, with
  // the id kPlain, text between such tokens.
  struct Piece {
    size_t begin;
    size_t end;
    int32_t id;
  };

  // No two tokens have the same content.
  explicit AddedTokenSet(std::vector<AddedToken> tokens);

  // The token with that content, or nullptr.
  const AddedToken* Find(absl::string_view content) const;

  // The pieces of `text` in order, none empty. Tokens are matched leftmost, then longest, and only
  // where their content lies in one of `ranges` (ascending, disjoint): the others count as what
  // surrounds a token, but never yield one.
  // Pieces overlap where a token with rstrip takes white space that is itself an added token's
  // content: both are tokens, as in `tokenizers`.
  // Requires valid UTF-8. Ends early once `stop`, asked after some matches, says so.
  std::vector<Piece> Cut(absl::string_view text, absl::Span<const TextRange> ranges,
                         StopCheck* stop = nullptr) const;

 private:
  void CutPlain(absl::string_view text, const Piece& plain, absl::Span<const TextRange> ranges,
                bool normalized, StopCheck* stop, std::vector<Piece>* pieces) const;
  const AddedToken* LongestAtBegin(absl::string_view text, bool normalized) const;

  std::array<std::vector<AddedToken>, 256> tokens_;  // by first byte, longest first
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_ADDED_TOKEN_SET_H_
