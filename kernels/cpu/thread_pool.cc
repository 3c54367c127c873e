#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "common/check.h"
#include "kernels/background.h"

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
  num_threads = std::min(num_threads, static_cast<int>(kOpen));
  shares_ = std::vector<Share>(num_threads);
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { WorkerMain(i); });
}

ThreadPool::~ThreadPool() {
  ending_ = true;
  state_.fetch_add(kGeneration);
  state_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

int64_t ThreadPool::Share::TakeFirst() {
  uint64_t rest = rest_.load();
  while (Begin(rest) < End(rest)) {
    if (rest_.compare_exchange_weak(rest, Pack(Begin(rest) + 1, End(rest)))) return Begin(rest);
  }
  return -1;
}

int64_t ThreadPool::Share::TakeLast() {
  uint64_t rest = rest_.load();
  while (Begin(rest) < End(rest)) {
    if (rest_.compare_exchange_weak(rest, Pack(Begin(rest), End(rest) - 1))) return End(rest) - 1;
  }
  return -1;
}

void ThreadPool::RunShares(const Loop& loop, size_t index) {
  for (int64_t chunk; (chunk = shares_[index].TakeFirst()) >= 0;) loop.RunChunk(chunk);
  for (size_t i = 1; i < shares_.size(); ++i) {
    Share& other = shares_[(index + i) % shares_.size()];
    for (int64_t chunk; (chunk = other.TakeLast()) >= 0;) loop.RunChunk(chunk);
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, Body body) {
  TANDEM_CHECK(grain >= 1);
  if (count <= 0) return;
  Loop loop{body, count, grain};
  const int64_t chunks = loop.chunks();
  TANDEM_CHECK(chunks <= std::numeric_limits<uint32_t>::max());
  const bool alone =
      threads_.empty() || chunks == 1 || Background::is_on() || taken_.exchange(true);
  if (alone) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) loop.RunChunk(chunk);
    return;
  }
  const auto num_shares = static_cast<int64_t>(shares_.size());
  for (int64_t i = 0; i < num_shares; ++i) {
    shares_[i].Reset(chunks * i / num_shares, chunks * (i + 1) / num_shares);
  }
  loop_ = &loop;
  state_.store((Generation(state_.load()) + 1) * kGeneration + kOpen);
  state_.notify_all();
  RunShares(loop, 0);
  AwaitHelpers();
  taken_.store(false);
}

void ThreadPool::AwaitHelpers() {
  // From here on nobody joins, so a thread that wakes late is not waited for.
  state_.fetch_and(~kOpen);
  if (SpinUntil([this] { return Helpers(state_.load()) == 0; })) return;
  for (uint32_t state; Helpers(state = state_.load()) != 0;) state_.wait(state);
}

bool ThreadPool::Join(uint32_t& seen) {
  SpinUntil([this, seen] { return Generation(state_.load()) != seen; });
  uint32_t state;
  while (Generation(state = state_.load()) == seen) state_.wait(state);
  seen = Generation(state);
  while (!ending_ && Generation(state) == seen && (state & kOpen) != 0) {
    if (state_.compare_exchange_weak(state, state + kHelper)) return true;
  }
  return false;
}

void ThreadPool::WorkerMain(size_t index) {
  uint32_t seen = 0;
  while (!ending_) {
    if (!Join(seen)) continue;
    RunShares(*loop_, index);
    const uint32_t before = state_.fetch_sub(kHelper);
    // Whoever closed the loop may wait for its last helper.
    if (Helpers(before) == 1 && (before & kOpen) == 0) state_.notify_all();
  }
}

}  // namespace tandem::kernels::cpu
