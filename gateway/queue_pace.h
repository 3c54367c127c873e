// How fast a queue moves, and so how long one who comes now would wait.
#ifndef TANDEM_GATEWAY_QUEUE_PACE_H_
#define TANDEM_GATEWAY_QUEUE_PACE_H_

#include <cstdint>

#include "absl/time/time.h"

namespace tandem {

// Measures the time from one that leaves the queue to the next, but only while others wait all the
// time: how seldom somebody leaves an empty queue says nothing. Time comes from outside. Not
// thread-safe.
class QueuePace {
 public:
  // So many wait now, and so many have left so far, in all; who was put back has not left.
  void Observe(int64_t waiting, int64_t left, absl::Time now);

  // Until the last of so many has left; zero while nothing was measured.
  absl::Duration WaitOf(int64_t waiting) const { return interval_ * waiting; }

 private:
  bool waited_ = false;  // somebody, when it was looked at last
  int64_t left_ = 0;
  absl::Time since_;
  absl::Duration interval_;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_QUEUE_PACE_H_
