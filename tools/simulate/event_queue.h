// The clock of a simulation: what happens next, in the order of time, then of asking.
#ifndef TANDEM_TOOLS_SIMULATE_EVENT_QUEUE_H_
#define TANDEM_TOOLS_SIMULATE_EVENT_QUEUE_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "tools/simulate/cost_model.h"

namespace tandem::simulate {

class EventQueue {
 public:
  using Action = std::function<void()>;

  Nanos now() const { return now_; }
  int64_t num_events() const { return num_events_; }

  // Requires when >= now().
  void At(Nanos when, Action action) {
    events_.push_back({when, num_events_++, std::move(action)});
    std::push_heap(events_.begin(), events_.end());
  }
  void After(Nanos delay, Action action) { At(now_ + delay, std::move(action)); }

  // Until nothing is left, or what is left happens after `end`.
  void RunUntil(Nanos end) {
    while (!events_.empty() && events_.front().when <= end) {
      std::pop_heap(events_.begin(), events_.end());
      const Event event = std::move(events_.back());
      events_.pop_back();
      now_ = event.when;
      event.action();
    }
    now_ = std::max(now_, end);
  }

 private:
  struct Event {
    Nanos when = 0;
    int64_t number = 0;
    Action action;
    // The heap has the largest first.
    bool operator<(const Event& other) const {
      return std::pair(when, number) > std::pair(other.when, other.number);
    }
  };

  Nanos now_ = 0;
  int64_t num_events_ = 0;
  std::vector<Event> events_;  // a heap
};

// Something that does one thing after the other.
class Resource {
 public:
  // Begins when what came before is done; when that ends.
  Nanos Take(Nanos now, Nanos duration) {
    free_at_ = std::max(free_at_, now) + duration;
    busy_ += duration;
    return free_at_;
  }
  Nanos busy() const { return busy_; }
  void ResetBusy() { busy_ = 0; }

 private:
  Nanos free_at_ = 0;
  Nanos busy_ = 0;
};

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_EVENT_QUEUE_H_
