// Text out of generated ids: whole characters only, and nothing of a stop string.
#ifndef TANDEM_GATEWAY_TEXT_STREAM_H_
#define TANDEM_GATEWAY_TEXT_STREAM_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/tokenizer/incremental_detokenizer.h"

namespace tandem {

// Belongs to one thread at a time.
class TextStream {
 public:
  // Without a tokenizer (null) there is no text. `tokenizer` must outlive the stream.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop);

  // The text that can be sent now that `id` has come. After a stop string nothing comes any more.
  std::string Push(int32_t id);
  // The text that was held back, when the stream has ended without a stop string.
  std::string Flush();
  bool stopped() const { return stopped_; }

 private:
  // Cuts at the first stop string, holds back the longest tail that may become one.
  std::string Release(std::string text);

  std::optional<IncrementalDetokenizer> detokenizer_;
  const std::vector<std::string> stop_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_TEXT_STREAM_H_
