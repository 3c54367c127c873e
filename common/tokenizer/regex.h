// Oniguruma with Ruby's syntax over UTF-8: the engine and the settings with which Hugging Face
// `tokenizers` reads the patterns of a tokenizer.json.
#ifndef TANDEM_COMMON_TOKENIZER_REGEX_H_
#define TANDEM_COMMON_TOKENIZER_REGEX_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/tokenizer/stop_check.h"

struct re_pattern_buffer;  // Oniguruma's regex_t

namespace tandem {

struct TextRange {
  uint32_t begin;  // bytes, half-open
  uint32_t end;
};

// A compiled pattern. Immutable; any number of threads may search with it.
class Regex {
 public:
  // Returns InvalidArgument with Oniguruma's message if `pattern` does not compile.
  // Requires valid UTF-8.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);

  // Replaces `matches` by the leftmost, non-overlapping matches in `text`, in order. An empty match
  // directly behind another match does not count.
  // Requires valid UTF-8 of less than 2^31 bytes.
  // Returns Internal if the engine gives up (its limit on backtracking), and Cancelled if `stop`,
  // asked between matches, says so.
  absl::Status FindAll(absl::string_view text, std::vector<TextRange>* matches,
                       StopCheck* stop = nullptr) const;

 private:
  struct Deleter {
    void operator()(re_pattern_buffer* regex) const;
  };
  explicit Regex(re_pattern_buffer* regex) : regex_(regex) {}

  std::unique_ptr<re_pattern_buffer, Deleter> regex_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_REGEX_H_
