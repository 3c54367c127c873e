#include "interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>

namespace tandem::tool {
namespace {

constexpr std::chrono::seconds kLimit(20);

class Count {
 public:
  void Add() {
    std::lock_guard lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  // False if it was less until the limit.
  bool WaitFor(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kLimit, [&] { return count_ >= count; });
  }
  int value() {
    std::lock_guard lock(mutex_);
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

TEST(InterruptTest, EachSignalOfAScopeIsACall) {
  Count first;
  {
    const InterruptScope scope([&] { first.Add(); });
    raise(SIGINT);
    EXPECT_TRUE(first.WaitFor(1));
    raise(SIGINT);
    EXPECT_TRUE(first.WaitFor(2));
  }
  Count second;
  {
    const InterruptScope scope([&] { second.Add(); });
    raise(SIGINT);
    EXPECT_TRUE(second.WaitFor(1));
  }
  EXPECT_EQ(first.value(), 2);
  EXPECT_EQ(second.value(), 1);
}

TEST(InterruptDeathTest, AfterAScopeTheSignalEndsTheProcessAsBefore) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto after_a_scope = [] {
    signal(SIGINT, SIG_DFL);  // it may be ignored where tests run in the background
    {
      const InterruptScope scope([] {});
    }
    raise(SIGINT);
    std::exit(0);
  };
  EXPECT_EXIT(after_a_scope(), testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace tandem::tool
