// Expert workers and links of a simulation: one thread, a clock that only it moves, and faults that
// follow from a seed. Nothing here waits.
#ifndef TANDEM_TESTS_COMMON_TRANSPORT_SIMULATED_EXPERTS_H_
#define TANDEM_TESTS_COMMON_TRANSPORT_SIMULATED_EXPERTS_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/check.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/expert_link.h"
#include "tests/common/transport/fake_expert.h"
#include "tests/common/transport/routed_rows.h"

namespace tandem {

// Does things at their times, in the order of these and, at one time, of the calls.
class SimulatedTime {
 public:
  using Clock = ExpertDispatcher::Clock;

  Clock::time_point now() const { return now_; }
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

// What becomes of a request.
struct SimulatedFate {
  std::chrono::nanoseconds time = std::chrono::milliseconds(2);  // until it is answered
  absl::Status status;                                           // not OK: the answer is this error
  bool lost = false;            // no answer at all, which no honest link does
  bool wrong_rows = false;      // an answer without its first row
  bool answered_twice = false;  // and again after as long a time, likewise
};

// A worker and the link to it. Requests are kept to be looked at.
class SimulatedExpertLink : public ExpertLink {
 public:
  using Fates = std::function<SimulatedFate(const ExpertRequest&)>;

  SimulatedExpertLink(SimulatedTime* time, Fates fates) : time_(*time), fates_(std::move(fates)) {}
  explicit SimulatedExpertLink(SimulatedTime* time, SimulatedFate fate = {})
      : SimulatedExpertLink(time, [fate](const ExpertRequest&) { return fate; }) {}

  void set_fates(Fates fates) { fates_ = std::move(fates); }
  void set_fate(SimulatedFate fate) {
    fates_ = [fate](const ExpertRequest&) { return fate; };
  }

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
    requests_.push_back({time_.now(), request->id, request->route_experts, request->time_left});
    const SimulatedFate fate = fates_(*request);
    if (fate.lost) return;
    const auto answer = [fate, request, done] {
      if (!fate.status.ok()) return done({fate.status, {}, nullptr});
      ExpertReply reply = ComputeFakeReply(*request);
      if (fate.wrong_rows) reply.rows = reply.rows.slice_rows(1, reply.rows.rows() - 1);
      done(std::move(reply));
    };
    if (fate.time.count() == 0) return answer();
    time_.After(fate.time, answer);
    if (fate.answered_twice) time_.After(2 * fate.time, answer);
  }

  struct Request {
    SimulatedTime::Clock::time_point time;
    DispatchId id;
    std::vector<int32_t> experts;  // of its routes
    absl::Duration time_left;
  };
  const std::vector<Request>& requests() const { return requests_; }
  int received() const { return static_cast<int>(requests_.size()); }

 private:
  SimulatedTime& time_;
  Fates fates_;
  std::vector<Request> requests_;
};

// A dispatched layer, driven as an engine drives it: it is polled when it has said that something
// has changed, and at its wake_time.
class SimulatedDispatch {
 public:
  SimulatedDispatch(SimulatedTime* time, ExpertDispatcher* dispatcher, const RowBatch& batch)
      : time_(*time) {
    pending_ = dispatcher->Dispatch(batch, [this] { changed_ = true; });
  }

  // Until `limit`; nothing: it is not done by then.
  std::optional<absl::Status> RunUntil(SimulatedTime::Clock::time_point limit) {
    while (true) {
      TANDEM_CHECK(++polls_ < 100'000);
      changed_ = false;
      if (auto status = pending_->Poll(); status.has_value()) return status;
      while (!changed_ && time_.now() < pending_->wake_time()) {
        if (time_.now() >= limit) return std::nullopt;
        time_.Advance(std::min(limit, pending_->wake_time()));
      }
    }
  }
  // Until it is done; one that never is ends by its layer's limit.
  absl::Status Run() { return *RunUntil(SimulatedTime::Clock::time_point::max()); }

  // The layer's rows, once it is done.
  std::vector<float> Rows(const Routed& routed) const {
    const ExpertRows rows = pending_->rows();
    Output out(routed);
    for (int64_t i = 0; i < out.view().rows(); ++i) {
      const TensorView to = out.view().slice_rows(i, 1);
      if (rows.combined[i]) {
        std::memcpy(to.data, rows.combined_rows.row(i), to.bytes());
      } else {
        CombineOne(rows.expert_rows.slice_rows(i * kTopK, kTopK), &routed.weights[i * kTopK], to);
      }
    }
    return out.values;
  }
  ExpertDispatcher::Pending& pending() { return *pending_; }
  int polls() const { return polls_; }

 private:
  SimulatedTime& time_;
  bool changed_ = false;
  int polls_ = 0;
  std::unique_ptr<ExpertDispatcher::Pending> pending_;  // first to go
};

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TRANSPORT_SIMULATED_EXPERTS_H_
