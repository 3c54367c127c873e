// A fixed set of threads that share the loops of the CPU kernels.
#ifndef TANDEM_KERNELS_CPU_THREAD_POOL_H_
#define TANDEM_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/mutex.h"

namespace tandem::kernels::cpu {

// Thread-safety: any number of threads may call ParallelFor at once; one has the pool, the others
// meanwhile run their loops alone. Destroy it only when no call is under way.
class ThreadPool {
 public:
  using Body = absl::FunctionRef<void(int64_t begin, int64_t end)>;

  // `num_threads` counts the calling thread: 1 starts none, 0 means one per core.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(begin, end) for disjoint ranges of at most `grain` >= 1 that cover [0, count), on
  // the caller and the pool's threads in no particular order, and returns when all are done. What
  // the caller wrote before is visible to the bodies, and what they wrote, to the caller after.
  // `body` must not throw. A call from within a body runs inline. Allocates nothing.
  void ParallelFor(int64_t count, int64_t grain, Body body);

 private:
  // One ParallelFor; lives on its caller's stack.
  struct Loop {
    Body body;
    int64_t count;
    int64_t grain;
    std::atomic<int64_t> next{0};
  };

  static void RunChunks(Loop& loop);
  void WorkerMain();
  // Waits for a change since generation `seen` and joins the loop that is then under way, null
  // where it is over already; false: the pool ends.
  bool Join(uint64_t& seen, Loop*& loop);
  void AwaitHelpers();

  std::atomic<bool> taken_{false};       // a caller has the pool
  std::atomic<uint64_t> generation_{0};  // counts loops, and the end; written under mutex_
  std::atomic<int> helpers_{0};          // threads inside the current loop; written under mutex_
  Mutex mutex_;
  CondVar wake_;                                  // generation_ changed
  CondVar idle_;                                  // helpers_ became 0
  Loop* loop_ ABSL_GUARDED_BY(mutex_) = nullptr;  // null: nothing to join
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_THREAD_POOL_H_
