// Shows how far loading is: a bar on a terminal, a line every tenth otherwise.
#ifndef TANDEM_COMMON_SERVICE_PROGRESS_H_
#define TANDEM_COMMON_SERVICE_PROGRESS_H_

#include <atomic>
#include <string>

#include "absl/time/time.h"
#include "common/mutex.h"

namespace tandem {

// Thread-safe. Writes to standard error.
class LoadProgress {
 public:
  // Shows nothing until `quiet` after the first report: for what is done at once nearly everywhere.
  explicit LoadProgress(std::string what, absl::Duration quiet = absl::ZeroDuration())
      : what_(std::move(what)), quiet_(quiet) {}
  // `share` in [0, 1]; 1 ends the bar.
  void Report(float share);
  float share() const { return share_; }

 private:
  const std::string what_;
  const absl::Duration quiet_;
  std::atomic<float> share_ = 0;
  Mutex mutex_;
  absl::Time first_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  int shown_ ABSL_GUARDED_BY(mutex_) = -1;  // percent on a terminal, tenths otherwise
};

// Most disks give what a checkpoint's digest is read from within this.
constexpr absl::Duration kQuietDigest = absl::Milliseconds(500);

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_PROGRESS_H_
