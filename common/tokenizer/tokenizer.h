// Text to token ids and back, for checkpoints with DeepSeek-V2's byte-level BPE pipeline. Equal to
// Hugging Face `tokenizers` on the same tokenizer.json.
#ifndef TANDEM_COMMON_TOKENIZER_TOKENIZER_H_
#define TANDEM_COMMON_TOKENIZER_TOKENIZER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/tokenizer/bpe.h"
#include "common/tokenizer/chat_template.h"
#include "common/tokenizer/pre_tokenizer.h"
#include "common/tokenizer/tokenizer_file.h"

namespace tandem {

// Encode: added tokens are cut out of the raw text (leftmost, then longest); the rest is cut into
// pieces (PreTokenizer), and each piece into tokens (Bpe). Decode: the tokens' bytes, joined.
// Immutable; any number of threads may use one.
class Tokenizer {
 public:
  // Whether text such as <｜end▁of▁sentence｜> becomes the added token of that name. Text that
  // is not trusted must not be able to write such tokens.
  enum class AddedTokens { kMatch, kPlain };

  // Reads tokenizer.json and, if there is one, tokenizer_config.json in `checkpoint_dir`.
  // Returns NotFound if there is no tokenizer.json (such a checkpoint serves token ids),
  // InvalidArgument if a file is broken, Unimplemented if it describes another pipeline; the
  // message names the file. An unknown chat template is no error until a chat is encoded.
  // Cost: about 0.3 s for 100,000 tokens.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::string& checkpoint_dir);

  // As Load, from the contents of the files; an empty `config_json` stands for no such file.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Parse(absl::string_view tokenizer_json,
                                                                absl::string_view config_json);

  // The ids of `text`, behind the BOS id if `add_bos`. Which to choose for a plain prompt says
  // add_bos(). Returns InvalidArgument if `text` is not valid UTF-8, with the offset of the first
  // bad byte, if it has 1 GiB or more, or if `add_bos` and there is no BOS token.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, AddedTokens added_tokens,
                                              bool add_bos) const;

  // The ids of a rendered chat, BOS included. Added tokens count only where the template writes
  // them, never in the contents; the text between two of them is encoded as one.
  // Returns FailedPrecondition if the checkpoint has no chat template or an unknown one, and
  // InvalidArgument for messages that ChatTemplate::Validate refuses or that are not valid UTF-8.
  absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::Span<const ChatMessage> messages,
                                                  bool add_generation_prompt) const;

  // The text of `ids`. Each broken UTF-8 sequence becomes U+FFFD. `skip_special` leaves special
  // tokens out. Returns InvalidArgument for an id without a token.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // The bytes that a token stands for, not always valid UTF-8; empty for an id without a token.
  // The view lives as long as the tokenizer.
  absl::string_view TokenBytes(int32_t id) const;

  // False for ids that the model may have rows for but the tokenizer has no token for, and for any
  // other number.
  bool HasToken(int32_t id) const { return !TokenBytes(id).empty(); }

  // True for the tokens that Decode leaves out with `skip_special`.
  bool IsSpecial(int32_t id) const;

  // All tokens have ids in [0, vocab_size()).
  int32_t vocab_size() const { return static_cast<int32_t>(token_bytes_.size()); }

  // Of any token, added ones included.
  size_t max_token_bytes() const { return max_token_bytes_; }

  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }

  // Whether a prompt of plain text begins with BOS (tokenizer_config.json's add_bos_token).
  bool add_bos() const { return add_bos_; }

 private:
  Tokenizer(TokenizerFile file, PreTokenizer pre_tokenizer);

  absl::Status Configure(const TokenizerConfig& config);
  absl::StatusOr<int32_t> FindToken(const std::string& content) const;

  // Appends the ids of the joined segments. Added tokens are matched within the segments that are
  // the template's; the text between two of them is one text for the pre-tokenizer.
  // Requires valid UTF-8.
  absl::Status AppendSegments(absl::Span<const ChatSegment> segments,
                              std::vector<int32_t>* ids) const;

  // Appends the ids of valid UTF-8 in which no added tokens are looked for.
  absl::Status AppendPlain(absl::string_view text, std::vector<int32_t>* ids) const;

  // Appends the added tokens in `text` to `found`, in order: first, over all of `text`, those that
  // are not normalized, then, in what these leave over, those that are.
  struct FoundToken {
    size_t begin;
    size_t end;
    int32_t id;
  };
  void FindAddedTokens(absl::string_view text, size_t base, bool normalized,
                       std::vector<FoundToken>* found) const;

  std::vector<std::string> token_bytes_;  // by id; empty: no token
  std::vector<bool> is_special_;          // by id
  size_t max_token_bytes_ = 0;
  // By first byte, longest first.
  std::array<std::vector<AddedToken>, 256> added_tokens_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
  bool add_bos_ = false;
  absl::StatusOr<ChatTemplate> chat_template_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_TOKENIZER_H_
