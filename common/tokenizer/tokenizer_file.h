// Reads tokenizer.json and tokenizer_config.json. Both are untrusted: what would change the ids and
// is not supported is refused rather than ignored, with a sentence that names it.
#ifndef TANDEM_COMMON_TOKENIZER_TOKENIZER_FILE_H_
#define TANDEM_COMMON_TOKENIZER_TOKENIZER_FILE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/tokenizer/added_token_set.h"
#include "common/tokenizer/bpe.h"
#include "common/tokenizer/pre_tokenizer.h"

namespace tandem {

// What tokenizer.json says.
struct TokenizerFile {
  std::vector<std::string> token_bytes;  // by id; empty: the id has no token
  std::array<int32_t, 256> byte_ids;     // the token of each byte, or -1
  std::vector<BpeMerge> merges;          // in order of rank
  std::vector<AddedToken> added_tokens;
  std::vector<PreTokenizerStep> steps;
  // What a TemplateProcessing among the post-processors puts before and behind a text.
  std::optional<int32_t> template_bos;
  std::optional<int32_t> template_eos;
};

// What tokenizer_config.json says.
struct TokenizerConfig {
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::optional<bool> add_bos;  // prompts of plain text begin with bos_token
  bool add_eos = false;         // prompts of plain text end with eos_token
  // Jinja. FAILED_PRECONDITION: there is none, or several of which none is the default.
  absl::StatusOr<std::string> chat_template = absl::FailedPreconditionError(
      "the checkpoint has no chat template, so it serves completions but no chats");
};

// Both return InvalidArgument if the JSON is broken or does not have the form of such a file, and
// Unimplemented if it asks for something that this tokenizer does not do.
absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view json);
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view json);

// The bos_token_id of a model's config.json; nullopt where it has none that is an id.
std::optional<int32_t> ParseBosId(absl::string_view config_json);

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_TOKENIZER_FILE_H_
