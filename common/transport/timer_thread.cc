#include "common/transport/timer_thread.h"

#include <utility>

namespace tandem {

TimerThread::TimerThread(std::function<Clock::time_point()> tick)
    : tick_(std::move(tick)), thread_([this] { Run(); }) {}

TimerThread::~TimerThread() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void TimerThread::Wake() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    woken_ = true;
  }
  changed_.notify_all();
}

void TimerThread::Run() {
  while (true) {
    const Clock::time_point next = tick_();
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait_until(lock, next, [this] { return stop_ || woken_; });
    if (stop_) return;
    woken_ = false;
  }
}

}  // namespace tandem
