#include "gateway/text_work.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

namespace tandem {
namespace {

constexpr size_t kLong = TextWork::kShortBytes + 1;

TEST(TextWorkTest, ShortTextsAreDoneWhereTheyComeAndLongOnesElsewhere) {
  TextWork work;
  std::thread::id where;
  ASSERT_TRUE(work.Do(TextWork::kShortBytes, [&] { where = std::this_thread::get_id(); }).ok());
  EXPECT_EQ(where, std::this_thread::get_id());
  std::promise<std::thread::id> elsewhere;
  ASSERT_TRUE(work.Do(kLong, [&] { elsewhere.set_value(std::this_thread::get_id()); }).ok());
  EXPECT_NE(elsewhere.get_future().get(), where);
}

TEST(TextWorkTest, WaitingBytesAreBoundedAndShortTextsPass) {
  std::promise<void> go;
  const std::shared_future<void> gate = go.get_future().share();
  std::atomic<int> done = 0;
  const auto wait = [&] {
    gate.wait();
    ++done;
  };
  {
    TextWork work;
    for (int i = 0; i < 4; ++i) {
      EXPECT_TRUE(work.Do(TextWork::kMaxWaitingBytes / 4, wait).ok());
    }
    EXPECT_EQ(work.Do(kLong, wait).code(), absl::StatusCode::kResourceExhausted);
    bool passed = false;
    EXPECT_TRUE(work.Do(10, [&] { passed = true; }).ok());
    EXPECT_TRUE(passed);
    go.set_value();
  }
  EXPECT_EQ(done, 4);  // the destructor leaves nothing undone
}

TEST(TextWorkTest, TheLongestTextsDoNotHoldThoseOfAMebibyte) {
  std::promise<void> go, passed;
  const std::shared_future<void> gate = go.get_future().share();
  TextWork work;
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(work.Do(TextWork::kMediumBytes + 1, [gate] { gate.wait(); }).ok());
  }
  EXPECT_TRUE(work.Do(TextWork::kMediumBytes, [&] { passed.set_value(); }).ok());
  EXPECT_EQ(passed.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  go.set_value();
}

TEST(TextWorkTest, OneTextMayBeLongerThanTheBoundAndItsPlaceBecomesFree) {
  std::promise<void> done;
  TextWork work;
  EXPECT_TRUE(work.Do(2 * TextWork::kMaxWaitingBytes, [&] { done.set_value(); }).ok());
  done.get_future().wait();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  absl::Status next;
  do {
    next = work.Do(kLong, [] {});
    std::this_thread::yield();
  } while (!next.ok() && std::chrono::steady_clock::now() < deadline);
  EXPECT_TRUE(next.ok()) << next;
}

}  // namespace
}  // namespace tandem
