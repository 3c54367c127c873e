#include "common/mutex.h"

#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace tandem {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

struct Flag {
  Mutex mutex;
  CondVar changed;
  bool set ABSL_GUARDED_BY(mutex) = false;

  void Set() {
    MutexLock lock(mutex);
    set = true;
    changed.NotifyAll();
  }
};

TEST(MutexTest, OneThreadAtATimeIsInside) {
  struct {
    Mutex mutex;
    int count ABSL_GUARDED_BY(mutex) = 0;
  } shared;
  constexpr int kThreads = 4;
  constexpr int kRounds = 10000;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&shared] {
      for (int round = 0; round < kRounds; ++round) {
        MutexLock lock(shared.mutex);
        ++shared.count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  MutexLock lock(shared.mutex);
  EXPECT_EQ(shared.count, kThreads * kRounds);
}

TEST(MutexTest, AnUnlockedLockLetsOthersIn) {
  Flag flag;
  MutexLock lock(flag.mutex);
  lock.Unlock();
  std::thread other([&flag] { flag.Set(); });
  other.join();
  lock.Lock();
  EXPECT_TRUE(flag.set);
}

TEST(CondVarTest, WaitLetsGoOfTheLockAndHoldsItAgain) {
  Flag flag;
  MutexLock lock(flag.mutex);
  std::thread other([&flag] { flag.Set(); });  // gets in only while this thread waits
  flag.changed.Wait(lock, [&flag]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(flag.mutex) { return flag.set; });
  EXPECT_TRUE(flag.set);
  lock.Unlock();
  other.join();
}

TEST(CondVarTest, AWaitWithALimitSaysWhetherTheConditionCameTrue) {
  Flag flag;
  MutexLock lock(flag.mutex);
  const auto is_set = [&flag]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(flag.mutex) { return flag.set; };
  const auto start = steady_clock::now();
  EXPECT_FALSE(flag.changed.WaitFor(lock, milliseconds(20), is_set));
  EXPECT_GE(steady_clock::now() - start, milliseconds(20));
  EXPECT_FALSE(flag.changed.WaitUntil(lock, start, is_set));

  std::thread other([&flag] { flag.Set(); });
  EXPECT_TRUE(flag.changed.WaitFor(lock, seconds(60), is_set));
  EXPECT_TRUE(flag.changed.WaitUntil(lock, start, is_set));
  lock.Unlock();
  other.join();
}

}  // namespace
}  // namespace tandem
