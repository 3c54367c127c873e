// The fast path of the DeepSeek-V2 pre-tokenizer: ASCII text split by one scan instead of seven
// passes of regular expressions.
//
// The pipeline (isolated matches, each step over the pieces that the former left):
//   1. [\r\n]   2. \s?[LETTERS]+   3. \s?[PUNCTUATION]+   4. \s+$   5. [CJK]+   6. digits, one each
// Step 3's class holds the ASCII letters too; on ASCII text that changes nothing, since its pieces
// are already either all letters or free of letters.
#ifndef TANDEM_COMMON_TOKENIZER_DEEPSEEK_SPLIT_H_
#define TANDEM_COMMON_TOKENIZER_DEEPSEEK_SPLIT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/tokenizer/stop_check.h"

namespace tandem {

// The five patterns of steps 1 to 5, exactly as DeepSeek's tokenizer.json spells them.
const std::vector<std::string>& DeepSeekPatterns();

// Appends to `ends` the offset behind each piece of `text`, plus `base`.
// Ends early if `stop`, which may be null, says so. Requires ASCII only. Cost: one pass.
void SplitDeepSeekAscii(absl::string_view text, uint32_t base, StopCheck* stop,
                        std::vector<uint32_t>* ends);

// True if the pipeline always begins a piece at text[position], whatever surrounds it, so that both
// sides can be split apart: before whitespace that a letter follows, and on both sides of a line
// break. Looks at ASCII only.
bool IsDeepSeekBoundary(absl::string_view text, size_t position);

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_DEEPSEEK_SPLIT_H_
