// A thread that runs one function again and again, at the times that the function asks for.
#ifndef TANDEM_COMMON_TRANSPORT_TIMER_THREAD_H_
#define TANDEM_COMMON_TRANSPORT_TIMER_THREAD_H_

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

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
  std::mutex mu_;
  std::condition_variable changed_;
  bool stop_ = false;   // guarded by mu_
  bool woken_ = false;  // guarded by mu_
  std::thread thread_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_TIMER_THREAD_H_
