// Moves what is mapped from files into huge pages, while it is read. The pages of a file are small
// ones (4 KiB) unless its file system and who read it did something about it, and memory in small
// pages is read more slowly (docs/performance.md, "Starting").
#ifndef TANDEM_COMMON_CHECKPOINT_HUGE_PAGE_MOVER_H_
#define TANDEM_COMMON_CHECKPOINT_HUGE_PAGE_MOVER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>

#include "common/mutex.h"

namespace tandem {

// Has one thread, from the first mapping on, that runs only where no other of its control group
// would (SCHED_IDLE; where it may not be that, it does nothing), and that takes no more memory once
// an eighth of what the process may use is all that is available: what was moved is the process's
// own, and no longer the system's to take back. While there is no memory or no huge page it tries
// again each minute. Where the system gives no huge pages (transparent_hugepage: never) it does
// nothing. Thread-safe.
class HugePageMover {
 public:
  HugePageMover();
  ~HugePageMover();
  HugePageMover(const HugePageMover&) = delete;
  HugePageMover& operator=(const HugePageMover&) = delete;

  // Moves what of [memory, memory + bytes) is in small pages and can fill huge ones, soon, unless
  // it is gone by then: it keeps its address and its content, and may be read all the while.
  // Requires that it is a private mapping that begins at a huge page's boundary and that nobody
  // writes to.
  void Move(std::weak_ptr<const std::byte> memory, int64_t bytes);

  int64_t moved_bytes() const { return moved_bytes_; }
  // Of what Move was asked for, and has not looked at yet.
  int64_t waiting_bytes() const { return waiting_bytes_; }

 private:
  struct Job {
    std::weak_ptr<const std::byte> memory;
    int64_t bytes = 0;
    int64_t done = 0;  // bytes at its beginning that are moved, or were in huge pages
  };

  void Run();
  bool MoveAll(Job* job, int pagemap, int64_t spare_bytes);

  const bool enabled_;
  std::atomic<int64_t> moved_bytes_ = 0;
  std::atomic<int64_t> waiting_bytes_ = 0;
  std::atomic<bool> ending_ = false;

  Mutex mutex_;
  CondVar wake_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_HUGE_PAGE_MOVER_H_
