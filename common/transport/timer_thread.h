// A thread that runs one function again and again, at the times that the function asks for.
#ifndef TANDEM_COMMON_TRANSPORT_TIMER_THREAD_H_
#define TANDEM_COMMON_TRANSPORT_TIMER_THREAD_H_

#include <chrono>
#include <functional>
#include <thread>

#include "common/mutex.h"

namespace tandem {

class TimerThread {
 public:
  using Clock = std::chrono::steady_clock;

  // `tick` runs on the thread, at once and then whenever the time that it returned last has come or
  // Wake() was called. It may block, but must not destroy this object.
  explicit TimerThread(std::function<Clock::time_point()> tick);
  // Waits until a running tick is over; none runs afterwards.
  ~TimerThread();

  // Runs `tick` soon. From any thread; never blocks on a running tick.
  void Wake();

 private:
  void Run();

  const std::function<Clock::time_point()> tick_;
  Mutex mu_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_TIMER_THREAD_H_
