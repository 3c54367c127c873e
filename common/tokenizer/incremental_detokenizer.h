// Text from tokens as they come.
#ifndef TANDEM_COMMON_TOKENIZER_INCREMENTAL_DETOKENIZER_H_
#define TANDEM_COMMON_TOKENIZER_INCREMENTAL_DETOKENIZER_H_

#include <cstdint>
#include <string>

#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/utf8.h"

namespace tandem {

// Decodes one stream of ids. What all Push calls and the final Flush return, joined, is what
// Tokenizer::Decode returns for all ids; each return is valid UTF-8 and ends between characters.
// Belongs to one thread at a time.
class IncrementalDetokenizer {
 public:
  // `tokenizer` must outlive this object. `skip_special` leaves special tokens out.
  IncrementalDetokenizer(const Tokenizer* tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // Returns the text that `id` completes, which may be empty. An id without a token adds nothing.
  std::string Push(int32_t id);

  // Ends the stream: returns U+FFFD if a character is unfinished. A new stream may follow.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  LossyUtf8Stream stream_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_INCREMENTAL_DETOKENIZER_H_
