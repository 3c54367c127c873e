#include "common/transport/timer_thread.h"

#include <utility>

namespace tandem {

TimerThread::TimerThread(std::function<Clock::time_point()> tick)
    : tick_(std::move(tick)), thread_([this] { Run(); }) {}

TimerThread::~TimerThread() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void TimerThread::Wake() {
  {
    MutexLock lock(mu_);
    woken_ = true;
  }
  changed_.NotifyAll();
}

void TimerThread::Run() {
  while (true) {
    const Clock::time_point next = tick_();
    MutexLock lock(mu_);
    changed_.WaitUntil(lock, next,
                       [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || woken_; });
    if (stop_) return;
    woken_ = false;
  }
}

}  // namespace tandem
