#include "gateway/live_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

namespace tandem {
namespace {

using ::testing::HasSubstr;

int64_t Counter(const LiveCalls& calls, const std::string& name) {
  for (const auto& [key, value] : calls.Counters()) {
    if (key == name) return value;
  }
  return -1;
}

class FakeCall : public LiveCall {
 public:
  explicit FakeCall(LiveCalls* live, absl::Duration stalled = absl::ZeroDuration())
      : live_(live), stalled_(stalled) {
    live_->Add(this);
  }
  ~FakeCall() override { live_->Remove(this); }
  void Push(int64_t bytes) {
    unread_ += bytes;
    live_->Unread(bytes);
    live_->Enforce();
  }
  int64_t unread_bytes() const override { return unread_; }
  absl::Duration stalled_for() const override { return stalled_; }
  bool Shed(const absl::Status& status) override {
    ++asked;
    if (shed) return false;
    why = status;
    live_->Unread(-unread_.exchange(0));
    shed = true;
    return true;
  }

  absl::Status why;
  std::atomic<bool> shed = false;
  std::atomic<int> asked = 0;  // to be shed

 private:
  LiveCalls* const live_;
  const absl::Duration stalled_;
  std::atomic<int64_t> unread_ = 0;
};

LiveCallLimits Unread(int64_t bytes) {
  LiveCallLimits limits;
  limits.unread_bytes = bytes;
  return limits;
}

TEST(LiveCallsTest, PastTheBoundTheSlowestEnds) {
  LiveCalls live(Unread(100));
  FakeCall slow(&live), quick(&live), quicker(&live);
  slow.Push(70);
  quick.Push(20);
  quicker.Push(10);
  EXPECT_FALSE(slow.shed || quick.shed || quicker.shed);
  quicker.Push(1);
  EXPECT_TRUE(slow.shed);
  EXPECT_FALSE(quick.shed || quicker.shed);
  EXPECT_EQ(slow.why.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(slow.why.message()), HasSubstr("101 bytes"));
  EXPECT_THAT(std::string(slow.why.message()), HasSubstr("70 of this call's"));
  EXPECT_EQ(Counter(live, "unread_bytes"), 31);
  EXPECT_EQ(Counter(live, "requests_shed_total"), 1);
  EXPECT_EQ(Counter(live, "requests_live"), 3);
}

TEST(LiveCallsTest, EndsNoMoreThanItTakes) {
  LiveCalls live(Unread(100));
  FakeCall a(&live), b(&live), c(&live);
  a.Push(50);
  b.Push(50);
  c.Push(300);
  EXPECT_TRUE(c.shed);
  EXPECT_FALSE(a.shed || b.shed);
}

TEST(LiveCallsTest, AWriteThatStallsEndsItsCall) {
  LiveCallLimits limits;
  limits.stall = absl::Milliseconds(80);
  LiveCalls live(limits);
  FakeCall moving(&live, absl::Milliseconds(79)), stalled(&live, absl::Milliseconds(80));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (stalled.asked < 3 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  ASSERT_TRUE(stalled.shed);
  EXPECT_GE(stalled.asked, 3);  // its write stalls on until gRPC is done with it
  EXPECT_EQ(Counter(live, "requests_shed_total"), 1);
  EXPECT_FALSE(moving.shed);
  EXPECT_EQ(stalled.why.code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace tandem
