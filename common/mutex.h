// A mutex, its lock and its condition variable whose use Clang checks (-Wthread-safety). Thin
// wrappers of the std types: ThreadSanitizer reports races inside absl::Mutex that are none.
//
//   int Pop() {
//     MutexLock lock(mutex_);
//     wake_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !items_.empty(); });
//     ...
//   }
//   Mutex mutex_;
//   CondVar wake_;
//   std::deque<int> items_ ABSL_GUARDED_BY(mutex_);
#ifndef TANDEM_COMMON_MUTEX_H_
#define TANDEM_COMMON_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/base/thread_annotations.h"

namespace tandem {

// Held by at most one thread. Not recursive: a thread that holds it must not lock it again.
class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

  // Tells Clang that the calling thread holds this mutex, where it cannot see that two expressions
  // name one mutex. Checks nothing at run time.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

 private:
  friend class MutexLock;
  std::mutex mutex_;
};

// Holds a mutex, which must outlive it, for as long as it lives; Unlock and Lock interrupt that.
// For the thread that made it.
class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : lock_(mutex.mutex_) {}
  ~MutexLock() ABSL_UNLOCK_FUNCTION() = default;
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  // Lets go before the end of the scope. Required: held.
  void Unlock() ABSL_UNLOCK_FUNCTION() { lock_.unlock(); }
  // Takes it again after Unlock.
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { lock_.lock(); }

 private:
  friend class CondVar;
  std::unique_lock<std::mutex> lock_;
};

// Waits until another thread has made a condition true. The condition is called with the lock held;
// a lambda says so by ABSL_EXCLUSIVE_LOCKS_REQUIRED, as above, or Clang refuses what it reads.
// Whoever makes the condition true holds the mutex meanwhile and notifies then or after.
class CondVar {
 public:
  void NotifyOne() { changed_.notify_one(); }
  void NotifyAll() { changed_.notify_all(); }

  // Lets go of the lock while it waits; holds it again on return. Required: lock is held.
  template <typename Condition>
  void Wait(MutexLock& lock, Condition condition) {
    changed_.wait(lock.lock_, std::move(condition));
  }

  // As Wait, until the deadline at the latest. Returns the condition.
  template <typename Clock, typename Duration, typename Condition>
  bool WaitUntil(MutexLock& lock, std::chrono::time_point<Clock, Duration> deadline,
                 Condition condition) {
    return changed_.wait_until(lock.lock_, deadline, std::move(condition));
  }

  // As Wait, for at most timeout. Returns the condition.
  template <typename Rep, typename Period, typename Condition>
  bool WaitFor(MutexLock& lock, std::chrono::duration<Rep, Period> timeout, Condition condition) {
    return changed_.wait_for(lock.lock_, timeout, std::move(condition));
  }

 private:
  std::condition_variable changed_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_MUTEX_H_
