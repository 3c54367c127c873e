// A text of megabytes takes seconds; whoever asked for it may be gone before.
#ifndef TANDEM_COMMON_TOKENIZER_STOP_CHECK_H_
#define TANDEM_COMMON_TOKENIZER_STOP_CHECK_H_

#include <cstddef>
#include <functional>

#include "absl/status/status.h"

namespace tandem {

// True once nobody waits for the work any more. Called from the thread that works.
using StopFunction = std::function<bool()>;

// Asks a StopFunction now and then, by the work done. Of one thread.
class StopCheck {
 public:
  static constexpr size_t kBytes = 64 << 10;  // between two questions: milliseconds

  // An empty `stop` never stops. It must outlive this.
  explicit StopCheck(const StopFunction& stop) : stop_(stop) {}
  StopCheck(const StopCheck&) = delete;
  StopCheck& operator=(const StopCheck&) = delete;

  // Counts work on `bytes` more. True, from then on, if the work is to end: what it has given so
  // far is of no use.
  bool After(size_t bytes) {
    bytes_ += bytes;
    return bytes_ >= kBytes && Ask();
  }

  // CANCELLED if After was true.
  absl::Status status() const {
    return stopped_ ? absl::CancelledError("nobody waits for the text any more") : absl::OkStatus();
  }

 private:
  bool Ask() {
    if (stopped_) return true;
    stopped_ = stop_ && stop_();
    if (!stopped_) bytes_ = 0;
    return stopped_;
  }

  const StopFunction& stop_;
  size_t bytes_ = 0;  // since the last question
  bool stopped_ = false;
};

// As `stop`, which may be null, says.
inline bool Stops(StopCheck* stop, size_t bytes) { return stop != nullptr && stop->After(bytes); }

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_STOP_CHECK_H_
