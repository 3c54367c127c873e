#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "kernels/background.h"

namespace tandem::kernels::cpu {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnceInRangesOfAtMostGrain) {
  for (int num_threads : {1, 2, 3, 5}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (int64_t count : {0, 1, 2, 7, 100, 1001}) {
      for (int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> visits(count);
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          EXPECT_LT(begin, end);
          EXPECT_LE(end - begin, grain);
          for (int64_t i = begin; i < end; ++i) ++visits[i];
        });
        for (const auto& v : visits) EXPECT_EQ(v.load(), 1);
      }
    }
  }
}

TEST(ThreadPoolTest, AThreadGoesThroughItsShareAndThenTakesTheLastOfOthers) {
  ThreadPool pool(2);
  std::vector<int64_t> of_caller, of_helper;
  std::atomic<int> num_of_helper{0};
  const std::thread::id caller = std::this_thread::get_id();
  pool.ParallelFor(16, 2, [&](int64_t begin, int64_t) {
    if (std::this_thread::get_id() != caller) {
      of_helper.push_back(begin);
      ++num_of_helper;
      return;
    }
    of_caller.push_back(begin);
    while (num_of_helper < 7) std::this_thread::yield();
  });
  EXPECT_EQ(of_caller, (std::vector<int64_t>{0}));
  EXPECT_EQ(of_helper, (std::vector<int64_t>{8, 10, 12, 14, 6, 4, 2}));
}

TEST(ThreadPoolTest, WorkInTheBackgroundTakesNoThreadOfThePool) {
  ThreadPool pool(3);
  const std::thread::id caller = std::this_thread::get_id();
  {
    Background background;
    background.Set(true);
    pool.ParallelFor(1000, 1,
                     [&](int64_t, int64_t) { EXPECT_EQ(std::this_thread::get_id(), caller); });
    // Others' is not in the background for that.
    std::thread([] { EXPECT_FALSE(Background::is_on()); }).join();
  }
  EXPECT_FALSE(Background::is_on());
}

TEST(ThreadPoolTest, WritesOfBodiesAreVisibleToTheCaller) {
  ThreadPool pool(3);
  std::vector<int64_t> values(1000);
  for (int64_t round = 0; round < 2000; ++round) {
    pool.ParallelFor(1000, 10, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] += i;
    });
  }
  for (int64_t i = 0; i < 1000; ++i) EXPECT_EQ(values[i], 2000 * i);
}

TEST(ThreadPoolTest, SeveralCallersAtOnceEachGetTheirWholeLoop) {
  ThreadPool pool(2);
  std::vector<std::thread> callers;
  std::vector<int64_t> sums(4);
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&pool, &sums, c] {
      for (int round = 0; round < 500; ++round) {
        std::atomic<int64_t> sum{0};
        pool.ParallelFor(100, 7, [&](int64_t begin, int64_t end) { sum += end - begin; });
        sums[c] += sum;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int64_t sum : sums) EXPECT_EQ(sum, 50000);
}

TEST(ThreadPoolTest, ACallFromWithinABodyRunsInline) {
  ThreadPool pool(2);
  std::atomic<int64_t> inner{0};
  pool.ParallelFor(8, 1, [&](int64_t, int64_t) {
    pool.ParallelFor(10, 1, [&](int64_t begin, int64_t end) { inner += end - begin; });
  });
  EXPECT_EQ(inner.load(), 80);
}

TEST(ThreadPoolTest, EndsWhileIdle) {
  for (int i = 0; i < 2000; ++i) {
    ThreadPool pool(3);
    if (i % 2 == 0) pool.ParallelFor(3, 1, [](int64_t, int64_t) {});
  }
}

}  // namespace
}  // namespace tandem::kernels::cpu
