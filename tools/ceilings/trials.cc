#include "tools/ceilings/trials.h"

#include <sched.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

namespace tandem {
namespace {

// Gives the calling thread a core of its own, that of this index among those that it may use: one
// that another thread wakes is often put on the other's core, and a trial is over before that is
// mended. Where there are too few it stays as it is.
void Pin(int index) {
  cpu_set_t usable, chosen;
  CPU_ZERO(&chosen);
  if (sched_getaffinity(0, sizeof(usable), &usable) != 0 || index >= CPU_COUNT(&usable)) return;
  int cpu = 0;
  for (int left = index + 1; left > 0; ++cpu) left -= CPU_ISSET(cpu, &usable) ? 1 : 0;
  CPU_SET(cpu - 1, &chosen);
  sched_setaffinity(0, sizeof(chosen), &chosen);
}

}  // namespace

double ShortestTrial(int num_threads, int trials,
                     absl::FunctionRef<void(int thread, int trial)> work) {
  using Clock = std::chrono::steady_clock;
  struct Span {
    Clock::time_point begin, end;
  };
  std::vector<std::vector<Span>> spans(num_threads, std::vector<Span>(trials));
  std::barrier all_ready(num_threads);
  const auto run = [&](int thread) {
    Pin(thread);
    for (int trial = 0; trial < trials; ++trial) {
      all_ready.arrive_and_wait();
      spans[thread][trial].begin = Clock::now();
      work(thread, trial);
      spans[thread][trial].end = Clock::now();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(num_threads);
  for (int thread = 0; thread < num_threads; ++thread) threads.emplace_back(run, thread);
  for (std::thread& thread : threads) thread.join();

  double shortest = std::numeric_limits<double>::infinity();
  for (int trial = 0; trial < trials; ++trial) {
    Span all = spans[0][trial];
    for (const std::vector<Span>& of_thread : spans) {
      all.begin = std::min(all.begin, of_thread[trial].begin);
      all.end = std::max(all.end, of_thread[trial].end);
    }
    shortest = std::min(shortest, std::chrono::duration<double>(all.end - all.begin).count());
  }
  return shortest;
}

}  // namespace tandem
