// Text to token ids and back, for checkpoints with DeepSeek-V2's byte-level BPE pipeline. Equal to
// Hugging Face `tokenizers` on the same tokenizer.json.
#ifndef TANDEM_COMMON_TOKENIZER_TOKENIZER_H_
#define TANDEM_COMMON_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/tokenizer/added_token_set.h"
#include "common/tokenizer/bpe.h"
#include "common/tokenizer/chat_template.h"
#include "common/tokenizer/pre_tokenizer.h"
#include "common/tokenizer/stop_check.h"
#include "common/tokenizer/tokenizer_file.h"

namespace tandem {

// Tokens [first, end).
struct TokenRange {
  int32_t first = 0;
  int32_t end = 0;
};

// Encode: added tokens are cut out of the raw text (AddedTokenSet); the rest is cut into pieces
// (PreTokenizer), and each piece into tokens (Bpe). Decode: the tokens' bytes, joined.
// Immutable; any number of threads may use one.
class Tokenizer {
 public:
  // Whether text such as <｜end▁of▁sentence｜> becomes the added token of that name. Text that
  // is not trusted must not be able to write such tokens: as kPlain it never yields the id of one,
  // not even where the vocabulary could merge to it.
  enum class AddedTokens { kMatch, kPlain };

  // Reads tokenizer.json and, where they are there, tokenizer_config.json, chat_template.jinja and
  // config.json (only its bos_token_id, where no bos_token is named) in `checkpoint_dir`;
  // docs/checkpoints.md says what comes before what.
  // Returns NotFound if there is no tokenizer.json, Unimplemented if it describes another pipeline,
  // a named BOS or EOS is no added token, or one is to be added and none is named (such checkpoints
  // serve token ids), InvalidArgument if a file is broken; the message names the file. An unknown
  // chat template is no error until a chat is encoded.
  // Cost: about 0.3 s for 100,000 tokens.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::string& checkpoint_dir);

  // Whether a checkpoint whose Load ended so serves token ids all the same.
  static bool CostsOnlyText(const absl::Status& load) {
    return absl::IsNotFound(load) || absl::IsUnimplemented(load);
  }

  // As Load, from the contents of the files; an empty `config_json` stands for no such file.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Parse(absl::string_view tokenizer_json,
                                                                absl::string_view config_json);

  // The ids of `text`, behind the BOS id if `add_bos` and before the EOS id if `add_eos`. Which to
  // choose for a plain prompt say add_bos() and add_eos(). Returns InvalidArgument if `text` is not
  // valid UTF-8, with the offset of the first bad byte, if it has 1 GiB or more, or if there is no
  // such token to add.
  // This and the next two return Cancelled once `stop` is true. It is asked every few milliseconds,
  // but not by what passes over the bytes once: checking UTF-8, rendering, splitting ASCII, looking
  // for added tokens where there are none.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, AddedTokens added_tokens,
                                              bool add_bos, bool add_eos = false,
                                              const StopFunction& stop = nullptr) const;

  // The ids of a rendered chat, BOS included. Added tokens count only where the template writes
  // them, never in the contents; the text between two of them is encoded as one.
  // Returns FailedPrecondition if the checkpoint has no chat template or an unknown one, and
  // InvalidArgument for messages that ChatTemplate::Validate refuses or that are not valid UTF-8.
  // `assistant_turns`, if it is not null, gets which of the ids are an assistant's turns, each from
  // the last token of what was its generation prompt to its end.
  absl::StatusOr<std::vector<int32_t>> EncodeChat(
      absl::Span<const ChatMessage> messages, bool add_generation_prompt,
      const StopFunction& stop = nullptr, std::vector<TokenRange>* assistant_turns = nullptr) const;

  // The text of `ids`. Each broken UTF-8 sequence becomes U+FFFD. `skip_special` leaves special
  // tokens out. Returns InvalidArgument for an id without a token.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special,
                                     const StopFunction& stop = nullptr) const;

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

  // Whether a prompt of plain text begins with BOS and ends with EOS.
  bool add_bos() const { return add_bos_; }
  bool add_eos() const { return add_eos_; }

  // Which tokens a prompt of plain text gets, and which file says so: a sentence for the log.
  const std::string& prompt_rule() const { return prompt_rule_; }

 private:
  Tokenizer(TokenizerFile file, PreTokenizer pre_tokenizer);

  // `config_bos_id`: config.json's bos_token_id.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(
      absl::string_view tokenizer_json, const TokenizerConfig& config,
      std::optional<int32_t> config_bos_id);

  absl::Status Configure(const TokenizerConfig& config, std::optional<int32_t> config_bos_id,
                         std::optional<int32_t> template_bos, std::optional<int32_t> template_eos);
  absl::StatusOr<int32_t> FindToken(const std::string& content) const;

  // Where a piece of a text begins, and which of the ids is its first.
  struct PieceStart {
    uint32_t byte;
    size_t token;
  };

  // Appends the ids of `text`. Added tokens count within `ranges`; the text between two of them is
  // one text for the pre-tokenizer. Requires valid UTF-8. `starts`, if it is not null, gets one per
  // added token and per text between two.
  absl::Status AppendPieces(absl::string_view text, absl::Span<const TextRange> ranges,
                            AddedTokens between, StopCheck* stop, std::vector<int32_t>* ids,
                            std::vector<PieceStart>* starts = nullptr) const;

  // Which tokens the ranges of a text touch, in which they ascend and do not overlap.
  std::vector<TokenRange> TokensOf(absl::Span<const TextRange> ranges,
                                   absl::Span<const PieceStart> starts,
                                   absl::Span<const int32_t> ids) const;

  // Appends the ids of valid UTF-8 in which no added tokens are looked for. With kPlain, tokens of
  // the vocabulary that are added tokens as well are spelled out.
  absl::Status AppendText(absl::string_view text, AddedTokens added_tokens, StopCheck* stop,
                          std::vector<int32_t>* ids) const;

  std::vector<std::string> token_bytes_;  // by id; empty: no token
  std::vector<bool> is_special_;          // by id
  size_t max_token_bytes_ = 0;
  AddedTokenSet added_tokens_;
  // Added tokens to which merges of the vocabulary could lead too: the tokens of their bytes.
  absl::flat_hash_map<int32_t, std::vector<int32_t>> spelled_out_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
  bool add_bos_ = false;
  bool add_eos_ = false;
  std::string prompt_rule_;
  absl::StatusOr<ChatTemplate> chat_template_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_TOKENIZER_H_
