// How often a line may be logged that others decide about: no stranger, and no overload, is to fill
// a disk.
#ifndef TANDEM_COMMON_LOG_RATE_H_
#define TANDEM_COMMON_LOG_RATE_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "common/mutex.h"

namespace tandem {

// kBurst lines at once, and one a second in the long run. Thread-safe.
class LogRate {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kBurst = 10;

  // What to put behind the line's sentence: nothing, or how many like it were left out since the
  // last one. None: this one is to be left out.
  std::optional<std::string> Take(Clock::time_point now) {
    MutexLock lock(mutex_);
    using Seconds = std::chrono::seconds;
    const int64_t earned = std::chrono::duration_cast<Seconds>(now - since_).count();
    if (earned > 0) {
      lines_ = std::min(lines_ + earned, kBurst);
      since_ += Seconds(earned);
    }
    if (lines_ == 0) {
      ++left_out_;
      return std::nullopt;
    }
    --lines_;
    if (left_out_ == 0) return "";
    return " (" + std::to_string(std::exchange(left_out_, 0)) + " more like this were not logged)";
  }

 private:
  Mutex mutex_;
  Clock::time_point since_ ABSL_GUARDED_BY(mutex_);
  int64_t lines_ ABSL_GUARDED_BY(mutex_) = kBurst;
  int64_t left_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_LOG_RATE_H_
