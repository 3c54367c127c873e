// A fixed set of threads that share the loops of the CPU kernels.
#ifndef TANDEM_KERNELS_CPU_THREAD_POOL_H_
#define TANDEM_KERNELS_CPU_THREAD_POOL_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace tandem::kernels::cpu {

// Thread-safety: any number of threads may call ParallelFor at once; one has the pool, the others
// meanwhile run their loops alone. Destroy it only when no call is under way.
class ThreadPool {
 public:
  using Body = absl::FunctionRef<void(int64_t begin, int64_t end)>;

  // `num_threads` counts the calling thread: 1 starts none, 0 means one per core; 1,024 at most.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(begin, end) for disjoint ranges of at most `grain` >= 1 that cover [0, count), on
  // the caller and the pool's threads, and returns when all are done. Each thread begins with a
  // share of its own, the ranges of which lie one after the other, so that it can ask for what the
  // next one reads; then it takes the last ranges of others' shares. What the caller wrote before
  // is visible to the bodies, and what they wrote, to the caller after. `body` must not throw. A
  // call from within a body runs inline. Allocates nothing.
  void ParallelFor(int64_t count, int64_t grain, Body body);

 private:
  // One ParallelFor; lives on its caller's stack.
  struct Loop {
    Body body;
    int64_t count;
    int64_t grain;

    int64_t chunks() const { return (count - 1) / grain + 1; }
    void RunChunk(int64_t chunk) const {
      const int64_t begin = chunk * grain;
      body(begin, begin + std::min(grain, count - begin));
    }
  };

  // Chunks of the current loop that nobody has taken: at first the share of one thread.
  class alignas(64) Share {
   public:
    void Reset(int64_t begin, int64_t end) { rest_ = Pack(begin, end); }
    // The first, or the last, or -1 where none is left.
    int64_t TakeFirst();
    int64_t TakeLast();

   private:
    static uint64_t Pack(int64_t begin, int64_t end) {
      return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
    }
    static int64_t Begin(uint64_t rest) { return static_cast<int64_t>(rest >> 32); }
    static int64_t End(uint64_t rest) { return static_cast<int64_t>(rest & 0xFFFFFFFF); }

    std::atomic<uint64_t> rest_{0};
  };

  // What thread `index`, 0 for the caller, does for the loop.
  void RunShares(const Loop& loop, size_t index);
  void WorkerMain(size_t index);
  // Waits for a loop after generation `seen`, which becomes its generation, and joins it, unless it
  // is over already; false: it is, or the pool ends.
  bool Join(uint32_t& seen);
  void AwaitHelpers();

  // The state of the pool in one word, so that no thread ever waits for another's lock: the number
  // of the loop, whether it takes helpers, and how many it has.
  static constexpr uint32_t kHelper = 1;
  static constexpr uint32_t kOpen = 1 << 10;
  static constexpr uint32_t kGeneration = 1 << 11;
  static uint32_t Generation(uint32_t state) { return state / kGeneration; }
  static uint32_t Helpers(uint32_t state) { return state % kOpen; }

  std::atomic<bool> taken_{false};  // a caller has the pool
  std::atomic<bool> ending_{false};
  std::atomic<uint32_t> state_{0};
  const Loop* loop_ = nullptr;  // while it is open, or has helpers
  std::vector<Share> shares_;   // of each thread, the caller's first
  std::vector<std::thread> threads_;
};

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_THREAD_POOL_H_
