#include "gateway/live_calls.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace tandem {

LiveCalls::LiveCalls(LiveCallLimits limits)
    : limits_(limits), timer_([this] { return EndStalled(); }) {}

void LiveCalls::Add(LiveCall* call) {
  ++total_;
  MutexLock lock(mutex_);
  calls_.insert(call);
}

void LiveCalls::Remove(LiveCall* call) {
  MutexLock lock(mutex_);
  calls_.erase(call);
}

void LiveCalls::Enforce() {
  if (unread_bytes_ <= limits_.unread_bytes) return;
  MutexLock lock(mutex_);
  while (unread_bytes_ > limits_.unread_bytes) {
    const auto slowest = std::max_element(
        calls_.begin(), calls_.end(),
        [](const LiveCall* a, const LiveCall* b) { return a->unread_bytes() < b->unread_bytes(); });
    if (slowest == calls_.end()) return;
    const int64_t all = unread_bytes_, of_call = (*slowest)->unread_bytes();
    if (of_call == 0) return;  // what is over was let go of just now
    shed_ += (*slowest)->Shed(absl::ResourceExhaustedError(
        absl::StrCat(all, " bytes of answers wait for their clients to read them, ", of_call,
                     " of this call's, but at most ", limits_.unread_bytes, " may")));
    if (unread_bytes_ >= all) return;  // nothing is left to let go of
  }
}

TimerThread::Clock::time_point LiveCalls::EndStalled() {
  MutexLock lock(mutex_);
  for (LiveCall* call : calls_) {
    if (call->stalled_for() < limits_.stall) continue;
    shed_ += call->Shed(absl::DeadlineExceededError(
        absl::StrCat("the client has read nothing for ", absl::FormatDuration(limits_.stall))));
  }
  const absl::Duration pause = std::min(limits_.stall / 8, absl::Seconds(5));
  return TimerThread::Clock::now() + absl::ToChronoNanoseconds(pause);
}

CounterSnapshot LiveCalls::Counters() const {
  MutexLock lock(mutex_);
  return {{"requests_live", static_cast<int64_t>(calls_.size())},
          {"requests_total", total_},
          {"requests_failed_total", failed_},
          {"unread_bytes", unread_bytes_},
          {"requests_shed_total", shed_}};
}

}  // namespace tandem
