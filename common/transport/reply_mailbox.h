// Where links leave the replies to one dispatched layer's parts, or to probes.
#ifndef TANDEM_COMMON_TRANSPORT_REPLY_MAILBOX_H_
#define TANDEM_COMMON_TRANSPORT_REPLY_MAILBOX_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "common/transport/dispatch_counts.h"
#include "common/transport/expert_link.h"

namespace tandem {

// Thread-safe. Outlives its layer as long as a reply may still come.
class ReplyMailbox {
 public:
  using Clock = std::chrono::steady_clock;
  struct Arrival {
    uint32_t part = 0;
    ExpertReply reply;
    Clock::time_point when;  // by `now`; who takes it may have been busy for long
  };

  ReplyMailbox(std::function<Clock::time_point()> now, std::function<void()> changed,
               std::shared_ptr<DispatchCounts> counts)
      : now_(std::move(now)), counts_(std::move(counts)), changed_(std::move(changed)) {}

  void Put(uint32_t part, ExpertReply reply) {
    MutexLock lock(mutex_);
    if (changed_ == nullptr) {
      ++counts_->late_replies;
      return;
    }
    arrivals_.push_back({part, std::move(reply), now_()});
    changed_();
  }
  // In the order in which they came.
  std::vector<Arrival> Take() {
    MutexLock lock(mutex_);
    return std::exchange(arrivals_, {});
  }
  // There is other news.
  void Notify() {
    MutexLock lock(mutex_);
    if (changed_ != nullptr) changed_();
  }
  // Nobody takes anything any more: what is there, and what comes, is late.
  void Close() {
    MutexLock lock(mutex_);
    changed_ = nullptr;
    counts_->late_replies += static_cast<int64_t>(arrivals_.size());
    arrivals_.clear();
  }

 private:
  const std::function<Clock::time_point()> now_;
  const std::shared_ptr<DispatchCounts> counts_;
  Mutex mutex_;
  std::function<void()> changed_ ABSL_GUARDED_BY(mutex_);  // null: closed
  std::vector<Arrival> arrivals_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_REPLY_MAILBOX_H_
