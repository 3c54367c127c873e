#include "kernels/cuda/emulation/work_queue.h"

#include <utility>

namespace tandem::kernels::cuda::emulation {

WorkQueue::WorkQueue() : thread_([this] { Run(); }) {}

WorkQueue::~WorkQueue() {
  {
    MutexLock lock(mutex_);
    ends_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void WorkQueue::Add(std::function<void()> work) {
  MutexLock lock(mutex_);
  changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return waiting_.size() < kMostWaiting;
  });
  waiting_.push_back(std::move(work));
  changed_.NotifyAll();
}

void WorkQueue::Run() {
  MutexLock lock(mutex_);
  while (true) {
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return ends_ || !waiting_.empty();
    });
    if (waiting_.empty()) return;
    std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    changed_.NotifyAll();
    lock.Unlock();
    work();
    work = nullptr;
    lock.Lock();
  }
}

}  // namespace tandem::kernels::cuda::emulation
