// Which ids may be drawn: models have rows for more ids than there are tokens.
#ifndef TANDEM_COMMON_TOKENIZER_ALLOWED_IDS_H_
#define TANDEM_COMMON_TOKENIZER_ALLOWED_IDS_H_

#include <cstdint>
#include <vector>

#include "common/tokenizer/tokenizer.h"

namespace tandem {

// [vocab_size], 1 where the tokenizer has a token; empty (all are allowed) without a tokenizer.
inline std::vector<uint8_t> IdsWithToken(const Tokenizer* tokenizer, int32_t vocab_size) {
  std::vector<uint8_t> allowed;
  if (tokenizer == nullptr) return allowed;
  for (int32_t id = 0; id < vocab_size; ++id) allowed.push_back(tokenizer->HasToken(id) ? 1 : 0);
  return allowed;
}

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_ALLOWED_IDS_H_
