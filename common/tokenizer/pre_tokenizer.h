// Cuts text into the pieces in which BPE merges, as Hugging Face `tokenizers` does with a Sequence
// of Split(Regex, Isolated), Digits(individual_digits) and ByteLevel(use_regex false).
#ifndef TANDEM_COMMON_TOKENIZER_PRE_TOKENIZER_H_
#define TANDEM_COMMON_TOKENIZER_PRE_TOKENIZER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/tokenizer/regex.h"
#include "common/tokenizer/stop_check.h"

namespace tandem {

struct PreTokenizerStep {
  enum class Kind {
    kSplit,   // every match of `pattern` and every gap between matches is a piece
    kDigits,  // every character of the categories Nd, Nl and No is a piece
  };
  Kind kind;
  std::string pattern;  // of kSplit
};

// Each step cuts the pieces that the former step left; a step never sees beyond its piece.
// Immutable; any number of threads may split with it.
class PreTokenizer {
 public:
  // Returns InvalidArgument if a pattern does not compile.
  static absl::StatusOr<PreTokenizer> Create(const std::vector<PreTokenizerStep>& steps);

  // Replaces `ends` by the offset behind each piece, in order. The pieces cover the text and none
  // is empty, so piece i is text[ends[i - 1], ends[i]).
  // Where the steps are DeepSeek's, stretches of ASCII are split by a scan (deepseek_split.h).
  // Requires valid UTF-8 of less than 2^31 bytes. Returns Internal if a regex search gives up, and
  // Cancelled if `stop` says so while the steps work.
  absl::Status Split(absl::string_view text, std::vector<uint32_t>* ends,
                     StopCheck* stop = nullptr) const;

  // The same pieces by the steps alone: the definition that Split must agree with.
  absl::Status SplitBySteps(absl::string_view text, std::vector<uint32_t>* ends,
                            StopCheck* stop = nullptr) const;

 private:
  struct Step {
    Regex regex;
    bool is_trailing_whitespace;  // the pattern is \s+$
  };

  // Buffers of one call.
  struct Scratch {
    std::vector<uint32_t> ends;
    std::vector<uint32_t> next_ends;
    std::vector<TextRange> matches;
  };

  PreTokenizer(std::vector<Step> steps, bool is_deepseek)
      : steps_(std::move(steps)), is_deepseek_(is_deepseek) {}

  absl::Status AppendBySteps(absl::string_view text, uint32_t base, StopCheck* stop,
                             Scratch* scratch, std::vector<uint32_t>* ends) const;

  std::vector<Step> steps_;
  bool is_deepseek_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_PRE_TOKENIZER_H_
