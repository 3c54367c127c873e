// The 256 printable characters by which byte-level BPE files write bytes (GPT-2's
// bytes_to_unicode): printable Latin-1 stands for itself, the other 68 bytes for U+0100 on.
#ifndef TANDEM_COMMON_TOKENIZER_BYTE_SYMBOLS_H_
#define TANDEM_COMMON_TOKENIZER_BYTE_SYMBOLS_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace tandem {

// The symbol of `byte`, as UTF-8.
std::string ByteSymbol(uint8_t byte);

// The bytes that `token` stands for. A token with any character that is no byte symbol (such as
// <｜User｜>) stands for its own UTF-8. Requires valid UTF-8.
std::string TokenToBytes(absl::string_view token);

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_BYTE_SYMBOLS_H_
