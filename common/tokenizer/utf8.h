// UTF-8: where a text is not valid, and how broken bytes become text.
#ifndef TANDEM_COMMON_TOKENIZER_UTF8_H_
#define TANDEM_COMMON_TOKENIZER_UTF8_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace tandem {

// The offset of the first byte that does not belong to a well-formed sequence (Unicode 15, table
// 3-7: no surrogates, no overlong forms, nothing above U+10FFFF), or nothing if `text` is valid.
std::optional<size_t> FindInvalidUtf8(absl::string_view text);

// Reads the code point that begins at text[*position] and moves *position behind it.
// Requires valid UTF-8 and *position < text.size().
char32_t NextCodePoint(absl::string_view text, size_t* position);

// Turns a stream of bytes into valid UTF-8. Each maximal part of a broken sequence becomes one
// U+FFFD (Unicode 15, section 3.9, as Rust's String::from_utf8_lossy does), and an unfinished
// character is held back until its last byte comes. What all calls append does not depend on how
// the bytes were cut.
class LossyUtf8Stream {
 public:
  // Appends to `out` the text that `bytes` completes.
  void Append(absl::string_view bytes, std::string* out);

  // Ends the stream: an unfinished character becomes U+FFFD. The stream can be used again.
  void Flush(std::string* out);

 private:
  std::string pending_;  // at most 3 bytes: the beginning of one well-formed sequence
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_UTF8_H_
