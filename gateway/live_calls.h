// The calls that a gateway answers now, and the bound over what their clients have not read yet.
#ifndef TANDEM_GATEWAY_LIVE_CALLS_H_
#define TANDEM_GATEWAY_LIVE_CALLS_H_

#include <atomic>
#include <cstdint>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/mutex.h"
#include "common/transport/timer_thread.h"
#include "gateway/client_limits.h"

namespace tandem {

// What LiveCalls asks of a call. Thread-safe but for Hold.
class LiveCall {
 public:
  virtual ~LiveCall() = default;
  // It counts for its client for as long as it lives. Once, before the call can end.
  void Hold(ClientLimits::Lease lease) { lease_ = std::move(lease); }
  virtual int64_t unread_bytes() const = 0;  // 0 once it was shed
  // How long its present write has waited for the client; zero if none does.
  virtual absl::Duration stalled_for() const = 0;
  // Ends it with `why` at once, and lets go of what is unread; false if that was done before. Must
  // not call LiveCalls but Unread.
  virtual bool Shed(const absl::Status& why) = 0;

 private:
  ClientLimits::Lease lease_;
};

struct LiveCallLimits {
  int64_t unread_bytes = int64_t{1} << 30;  // of all calls
  absl::Duration stall = absl::Minutes(5);  // of one write
};

// Thread-safe. Past the bound the call with most unread bytes ends with RESOURCE_EXHAUSTED; one
// whose client reads nothing for too long, with DEADLINE_EXCEEDED.
class LiveCalls {
 public:
  explicit LiveCalls(LiveCallLimits limits = {});

  void Add(LiveCall* call);
  // The call is not used any more afterwards.
  void Remove(LiveCall* call);
  // `call` has so many more unread bytes, or, negative, fewer.
  void Unread(int64_t bytes) { unread_bytes_ += bytes; }
  // Ends calls until the bound holds. Not under a call's lock.
  void Enforce();
  void CountFailure() { ++failed_; }
  int64_t max_unread_bytes() const { return limits_.unread_bytes; }

  // requests_live, requests_total, requests_failed_total, unread_bytes, requests_shed_total
  CounterSnapshot Counters() const;

 private:
  TimerThread::Clock::time_point EndStalled();

  const LiveCallLimits limits_;
  std::atomic<int64_t> total_ = 0, failed_ = 0, shed_ = 0, unread_bytes_ = 0;
  mutable Mutex mutex_;
  std::set<LiveCall*> calls_ ABSL_GUARDED_BY(mutex_);
  TimerThread timer_;  // last: it uses the rest
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_LIVE_CALLS_H_
