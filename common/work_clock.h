// How long a thread has been at one piece of its work: what tells a worker that is slow from one
// that hangs.
#ifndef TANDEM_COMMON_WORK_CLOCK_H_
#define TANDEM_COMMON_WORK_CLOCK_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/time/time.h"

namespace tandem {

// The thread says where a piece begins and that it has none; who gives it work says so, and anyone
// asks. Rest and Given belong under the lock of the work, so that neither undoes the other.
class WorkClock {
 public:
  void Begin() { since_ns_ = Now(); }
  void Rest() { since_ns_ = 0; }
  // There is work: the time until the thread begins it counts.
  void Given() {
    int64_t rest = 0;
    since_ns_.compare_exchange_strong(rest, Now());
  }

  // Since the last Begin, or since work was given to a thread at rest; zero while there is none.
  absl::Duration elapsed() const {
    const int64_t since = since_ns_;
    return since == 0 ? absl::ZeroDuration() : absl::Nanoseconds(Now() - since);
  }

 private:
  static int64_t Now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  std::atomic<int64_t> since_ns_ = 0;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_WORK_CLOCK_H_
