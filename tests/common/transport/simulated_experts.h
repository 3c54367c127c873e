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
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/check.h"
#include "common/request_tag.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/expert_link.h"
#include "tests/common/transport/fake_expert.h"
#include "tests/common/transport/link_checks.h"
#include "tests/common/transport/routed_rows.h"
#include "tests/simulation/simulated_time.h"

namespace tandem {

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
    requests_.push_back(
        {time_.now(), request->id, request->route_experts, request->time_left, request->traces});
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
    TracesOfPart traces;
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
    changed_ = true;
  }

  // Polls until there is nothing to do, or it is done.
  void Look() {
    while (!status_.has_value() && (changed_ || time_.now() >= pending_->wake_time())) {
      TANDEM_CHECK(++polls_ < 100'000);
      changed_ = false;
      status_ = pending_->Poll();
    }
  }
  // Until it is done; what never is ends by its layer's limit.
  absl::Status Run() {
    RunAll(&time_, {this});
    return *status_;
  }
  static void RunAll(
      SimulatedTime* time, const std::vector<SimulatedDispatch*>& layers,
      SimulatedTime::Clock::time_point limit = SimulatedTime::Clock::time_point::max()) {
    while (true) {
      auto next = SimulatedTime::Clock::time_point::max();
      bool all_done = true;
      for (SimulatedDispatch* layer : layers) {
        layer->Look();
        if (layer->done()) continue;
        all_done = false;
        next = std::min(next, layer->pending_->wake_time());
      }
      if (all_done || time->now() >= limit) return;
      time->Advance(std::min(next, limit));
    }
  }

  bool done() const { return status_.has_value(); }
  // Once it is done.
  const absl::Status& status() const { return *status_; }
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
  int polls() const { return polls_; }

 private:
  SimulatedTime& time_;
  bool changed_ = false;
  int polls_ = 0;
  std::optional<absl::Status> status_;
  std::unique_ptr<ExpertDispatcher::Pending> pending_;  // first to go
};

// A dispatcher and the workers 1 to num_workers.
class DispatcherSimulation {
 public:
  explicit DispatcherSimulation(int num_workers, uint64_t incarnation = 9,
                                DispatcherOptions options = {})
      : options_(std::move(options)) {
    for (int w = 1; w <= num_workers; ++w) {
      links_[w] = std::make_shared<SimulatedExpertLink>(&time_);
    }
    options_.now = [this] { return time_.now(); };
    dispatcher_ = std::make_unique<ExpertDispatcher>(
        incarnation, options_, [this](const Placement::Worker& worker) {
          const auto it = links_.find(worker.id);
          return it == links_.end() ? nullptr : it->second;
        });
  }

  // Runs layers for so long. Returns how much longer the longest took than `usual`, and all
  // together.
  struct Stall {
    std::chrono::nanoseconds longest{0};
    std::chrono::nanoseconds total{0};
  };
  Stall RunLayersFor(std::chrono::nanoseconds duration, const Routed& routed,
                     std::chrono::nanoseconds usual) {
    Stall stall;
    for (const auto end = time_.now() + duration; time_.now() < end;) {
      const auto extra = std::max(RunLayer(routed) - usual, std::chrono::nanoseconds(0));
      stall.longest = std::max(stall.longest, extra);
      stall.total += extra;
    }
    return stall;
  }

  SimulatedTime& time() { return time_; }
  ExpertDispatcher& dispatcher() { return *dispatcher_; }
  SimulatedExpertLink& link(WorkerId id) { return *links_.at(id); }
  int64_t Count(const std::string& name) const { return Counter(dispatcher_->Counters(), name); }
  // Experts that a worker has been asked for by its latest request.
  std::set<int32_t> Asked(WorkerId id) const {
    const auto& experts = links_.at(id)->requests().back().experts;
    return std::set<int32_t>(experts.begin(), experts.end());
  }
  std::unique_ptr<SimulatedDispatch> Dispatch(const Routed& routed) {
    return std::make_unique<SimulatedDispatch>(&time_, dispatcher_.get(), routed.batch());
  }
  // Runs a layer, whose rows must be as if nothing had happened. Returns how long it took.
  std::chrono::nanoseconds RunLayer(const Routed& routed) {
    const auto start = time_.now();
    const auto layer = Dispatch(routed);
    const absl::Status status = layer->Run();
    EXPECT_TRUE(status.ok()) << status;
    if (status.ok()) {
      EXPECT_EQ(layer->Rows(routed), routed.Expected());
    }
    return time_.now() - start;
  }

 private:
  SimulatedTime time_;
  DispatcherOptions options_;
  std::map<WorkerId, std::shared_ptr<SimulatedExpertLink>> links_;
  std::unique_ptr<ExpertDispatcher> dispatcher_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TRANSPORT_SIMULATED_EXPERTS_H_
