#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>

#include "common/check.h"

namespace tandem::kernels::cpu {
namespace {

// The gap between two ops of a step is a few microseconds, a wake-up through the kernel tens.
constexpr std::chrono::microseconds kSpinTime(40);

// Spins until `done()` or until kSpinTime is over; returns done().
template <typename Done>
bool SpinUntil(Done done) {
  if (done()) return true;
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= 0) num_threads = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { WorkerMain(); });
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1);
  }
  wake_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::RunChunks(Loop& loop) {
  for (;;) {
    const int64_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.count) return;
    loop.body(begin, std::min(begin + loop.grain, loop.count));
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, Body body) {
  TANDEM_CHECK(grain >= 1);
  if (count <= 0) return;
  Loop loop{body, count, grain};
  const bool alone = threads_.empty() || count <= grain || taken_.exchange(true);
  if (alone) {
    RunChunks(loop);
    return;
  }
  {
    MutexLock lock(mutex_);
    loop_ = &loop;
    generation_.fetch_add(1);
  }
  wake_.NotifyAll();
  RunChunks(loop);
  AwaitHelpers();
  taken_.store(false);
}

void ThreadPool::AwaitHelpers() {
  {
    // From here on nobody joins, so a thread that wakes late is not waited for.
    MutexLock lock(mutex_);
    loop_ = nullptr;
  }
  if (SpinUntil([this] { return helpers_.load() == 0; })) return;
  MutexLock lock(mutex_);
  idle_.Wait(lock, [this] { return helpers_.load() == 0; });
}

bool ThreadPool::Join(uint64_t& seen, Loop*& loop) {
  SpinUntil([this, seen] { return generation_.load() != seen; });
  MutexLock lock(mutex_);
  wake_.Wait(lock, [this, seen] { return generation_.load() != seen; });
  if (stopping_) return false;
  seen = generation_.load();
  loop = loop_;
  if (loop != nullptr) helpers_.fetch_add(1);
  return true;
}

void ThreadPool::WorkerMain() {
  uint64_t seen = 0;
  Loop* loop = nullptr;
  while (Join(seen, loop)) {
    if (loop == nullptr) continue;
    RunChunks(*loop);
    bool last;
    {
      MutexLock lock(mutex_);
      last = helpers_.fetch_sub(1) == 1;
    }
    if (last) idle_.NotifyOne();
  }
}

}  // namespace tandem::kernels::cpu
