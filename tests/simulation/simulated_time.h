// The only clock of a simulation, and what is to happen when.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATED_TIME_H_
#define TANDEM_TESTS_SIMULATION_SIMULATED_TIME_H_

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <utility>

#include "absl/time/time.h"

namespace tandem {

// Does things at their times, in the order of these and, at one time, of the calls.
class SimulatedTime {
 public:
  using Clock = std::chrono::steady_clock;

  Clock::time_point now() const { return now_; }
  // The same as the schedulers' kind of time.
  absl::Time wall_now() const {
    return absl::UnixEpoch() + absl::FromChrono(now_.time_since_epoch());
  }
  void At(Clock::time_point when, std::function<void()> what) {
    events_.emplace(std::max(when, now_), std::move(what));
  }
  void After(std::chrono::nanoseconds delay, std::function<void()> what) {
    At(now_ + delay, std::move(what));
  }
  // Goes on to the next event and does it, or to `limit` if that comes first.
  void Advance(Clock::time_point limit) {
    if (events_.empty() || events_.begin()->first > limit) {
      now_ = std::max(now_, limit);
      return;
    }
    auto event = events_.extract(events_.begin());
    now_ = event.key();
    event.mapped()();
  }
  // Does all that happens until then.
  void AdvanceTo(Clock::time_point time) {
    while (!events_.empty() && events_.begin()->first <= time) Advance(time);
    now_ = std::max(now_, time);
  }
  void AdvanceBy(std::chrono::nanoseconds duration) { AdvanceTo(now_ + duration); }

 private:
  Clock::time_point now_ = Clock::time_point(std::chrono::hours(1));
  std::multimap<Clock::time_point, std::function<void()>> events_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATED_TIME_H_
