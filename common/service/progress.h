// Shows how far loading is: a bar on a terminal, a line every tenth otherwise.
#ifndef TANDEM_COMMON_SERVICE_PROGRESS_H_
#define TANDEM_COMMON_SERVICE_PROGRESS_H_

#include <atomic>
#include <string>

#include "common/mutex.h"

namespace tandem {

// Thread-safe. Writes to standard error.
class LoadProgress {
 public:
  explicit LoadProgress(std::string what) : what_(std::move(what)) {}
  // `share` in [0, 1]; 1 ends the bar.
  void Report(float share);
  float share() const { return share_; }

 private:
  const std::string what_;
  std::atomic<float> share_ = 0;
  Mutex mutex_;
  int shown_ ABSL_GUARDED_BY(mutex_) = -1;  // percent on a terminal, tenths otherwise
};

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_PROGRESS_H_
