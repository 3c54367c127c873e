// Text out of generated ids: whole characters only, and nothing of a stop string. Special tokens
// have no text for the client, but may end the stream: stop strings see them as they are written.
#ifndef TANDEM_GATEWAY_TEXT_STREAM_H_
#define TANDEM_GATEWAY_TEXT_STREAM_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/tokenizer/incremental_detokenizer.h"

namespace tandem {

// Belongs to one thread at a time.
class TextStream {
 public:
  // Without a tokenizer (null) there is no text. `tokenizer` must outlive the stream. A stop string
  // that is complete with the first `min_tokens` ids does not count.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop, int32_t min_tokens = 0);

  // The text of a prompt that the ids go on behind; first. A character that it leaves unfinished
  // comes with the first ids. No stop string is looked for in it.
  std::string Echo(absl::Span<const int32_t> prompt);
  // The text that can be sent now that `id` has come. After a stop string nothing comes any more.
  std::string Push(int32_t id);
  // The text that was held back, when the stream has ended without a stop string.
  std::string Flush();
  bool stopped() const { return stopped_; }

 private:
  void Append(absl::string_view text, bool visible);
  // Cuts before the stop string that is complete first (of several, the longest), holds back the
  // longest tail that may become one: what comes out does not depend on how tokens split the text.
  std::string Release();
  // Takes the first `bytes` of what is held; returns what the client sees of them.
  std::string Take(size_t bytes);

  const Tokenizer* const tokenizer_;
  std::optional<IncrementalDetokenizer> detokenizer_;
  const std::vector<std::string> stop_;
  int32_t ids_before_stops_;  // that are still to come
  std::string held_;
  std::string visible_;  // by byte of held_: 1 if the client sees it
  size_t searched_ = 0;  // no stop string ends within so many first bytes of held_
  bool stopped_ = false;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_TEXT_STREAM_H_
