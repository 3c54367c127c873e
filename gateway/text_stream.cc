#include "gateway/text_stream.h"

#include <algorithm>

namespace tandem {

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop)
    : stop_(std::move(stop)) {
  if (tokenizer != nullptr) detokenizer_.emplace(tokenizer, /*skip_special=*/true);
}

std::string TextStream::Push(int32_t id) {
  if (!detokenizer_ || stopped_) return "";
  return Release(detokenizer_->Push(id));
}

std::string TextStream::Flush() {
  if (!detokenizer_ || stopped_) return "";
  std::string text = Release(detokenizer_->Flush());
  if (!stopped_) text += std::exchange(held_, "");
  return text;
}

std::string TextStream::Release(std::string text) {
  held_ += text;
  size_t cut = std::string::npos;
  for (const std::string& stop : stop_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    stopped_ = true;
    return held_.substr(0, cut);
  }
  size_t keep = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    }
  }
  std::string released = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return released;
}

}  // namespace tandem
