#include "gateway/text_stream.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace tandem {

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop,
                       int32_t min_tokens)
    : tokenizer_(tokenizer), stop_(std::move(stop)), ids_before_stops_(min_tokens) {
  if (tokenizer != nullptr) detokenizer_.emplace(tokenizer, /*skip_special=*/true);
}

std::string TextStream::Echo(absl::Span<const int32_t> prompt) {
  std::string text;
  if (!detokenizer_) return text;
  for (const int32_t id : prompt) text += detokenizer_->Push(id);
  return text;
}

std::string TextStream::Push(int32_t id) {
  if (!detokenizer_ || stopped_) return "";
  Append(detokenizer_->Push(id), true);
  if (tokenizer_->IsSpecial(id)) Append(tokenizer_->TokenBytes(id), false);
  if (ids_before_stops_ > 0) {
    --ids_before_stops_;
    searched_ = held_.size();
  }
  return Release();
}

std::string TextStream::Flush() {
  if (!detokenizer_ || stopped_) return "";
  Append(detokenizer_->Flush(), true);
  std::string text = Release();
  if (!stopped_) text += Take(held_.size());
  return text;
}

void TextStream::Append(absl::string_view text, bool visible) {
  absl::StrAppend(&held_, text);
  visible_.append(text.size(), static_cast<char>(visible));
}

std::string TextStream::Take(size_t bytes) {
  std::string text;
  for (size_t i = 0; i < bytes; ++i) {
    if (visible_[i]) text += held_[i];
  }
  held_.erase(0, bytes);
  visible_.erase(0, bytes);
  searched_ -= std::min(searched_, bytes);
  return text;
}

std::string TextStream::Release() {
  const absl::string_view held = held_;
  for (; searched_ < held.size(); ++searched_) {
    size_t longest = 0;
    for (const std::string& stop : stop_) {
      if (stop.size() > longest && absl::EndsWith(held.substr(0, searched_ + 1), stop)) {
        longest = stop.size();
      }
    }
    if (longest > 0) {
      stopped_ = true;
      return Take(searched_ + 1 - longest);
    }
  }
  size_t keep = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, held.size()); n > keep; --n) {
      if (absl::EndsWith(held, absl::string_view(stop).substr(0, n))) keep = n;
    }
  }
  return Take(held.size() - keep);
}

}  // namespace tandem
