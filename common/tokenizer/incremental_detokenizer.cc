#include "common/tokenizer/incremental_detokenizer.h"

namespace tandem {

std::string IncrementalDetokenizer::Push(int32_t id) {
  std::string text;
  if (skip_special_ && tokenizer_->IsSpecial(id)) return text;
  stream_.Append(tokenizer_->TokenBytes(id), &text);
  return text;
}

std::string IncrementalDetokenizer::Flush() {
  std::string text;
  stream_.Flush(&text);
  return text;
}

}  // namespace tandem
