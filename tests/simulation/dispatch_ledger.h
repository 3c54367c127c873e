// What an attention worker has asked expert workers for and what they have answered, kept by the
// simulation itself: what the dispatcher says of it is held against this.
#ifndef TANDEM_TESTS_SIMULATION_DISPATCH_LEDGER_H_
#define TANDEM_TESTS_SIMULATION_DISPATCH_LEDGER_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "attention_worker/routed_experts.h"
#include "common/placement.h"
#include "common/transport/expert_link.h"
#include "tests/simulation/simulated_time.h"
#include "tests/simulation/trace.h"

namespace tandem {

// A route is named by what its row holds and its expert: rows that are alike are answered alike.
class DispatchLedger {
 public:
  using Route = std::pair<size_t, int32_t>;
  struct Layer {
    std::set<Route> routes;
    std::set<Route> asked;
    std::set<Route> may_be_there;   // somebody has answered
    std::set<Route> must_be_there;  // and the dispatcher had no reason not to take it
  };

  explicit DispatchLedger(SimulatedTime* time) : time_(*time) {}

  // What is sent until the next call belongs to the layer; null: to none.
  void SetLayer(std::shared_ptr<Layer> layer) { layer_ = std::move(layer); }

  void OnPlacement(const Placement& placement) {
    if (Order(placement.version) == placements_.size()) placements_.push_back(placement.version);
    for (auto& [number, part] : parts_) part.left = part.left || !placement.Names(part.worker);
  }
  void OnSend(const ExpertRequest& request, const Placement::Worker& worker) {
    if (layer_ == nullptr) return;
    Part part{layer_, worker, Order(request.placement), {}, false, false, {}};
    part.in_time =
        time_.now() + absl::ToChronoNanoseconds(std::min(request.time_left, absl::Hours(24)));
    for (int row = 0; row < request.num_rows(); ++row) {
      const size_t name = NameOf(request.rows, row);
      for (int t = request.route_offsets[row]; t < request.route_offsets[row + 1]; ++t) {
        part.routes.emplace_back(name, request.route_experts[t]);
      }
    }
    // A first attempt at what somebody is asked for already is no part: a worker is tried.
    part.is_probe = request.id.attempt == 0 && layer_->asked.contains(part.routes.front());
    layer_->asked.insert(part.routes.begin(), part.routes.end());
    parts_[request.id.part] = std::move(part);
  }
  void OnDone(uint32_t number, bool ok) {
    const auto it = parts_.find(number);
    if (it == parts_.end()) return;
    const Part& part = it->second;
    const std::shared_ptr<Layer> layer = part.layer.lock();
    if (ok && !part.is_probe && layer != nullptr) {
      layer->may_be_there.insert(part.routes.begin(), part.routes.end());
      if (!part.left && time_.now() <= part.in_time) {
        layer->must_be_there.insert(part.routes.begin(), part.routes.end());
      }
    }
    parts_.erase(it);
  }

  // Whether an answer to the part would still be taken, or is waited for.
  bool Wants(uint32_t number) const {
    const auto it = parts_.find(number);
    return it != parts_.end() && IsWanted(it->second);
  }
  // In the order in which placements came: of one that is in use for certain, the oldest.
  size_t OldestInUse() const {
    size_t oldest = placements_.empty() ? 0 : placements_.size() - 1;
    for (const auto& [number, part] : parts_) {
      if (part.placement < oldest && IsWanted(part)) oldest = part.placement;
    }
    return oldest;
  }
  size_t Order(PlacementVersion version) const {
    return std::find(placements_.begin(), placements_.end(), version) - placements_.begin();
  }

  static size_t NameOf(const TensorView& rows, int64_t row) {
    const size_t bytes = static_cast<size_t>(rows.width()) * DtypeBytes(rows.dtype);
    const std::string_view held(reinterpret_cast<const char*>(rows.row(row)), bytes);
    return std::hash<std::string_view>()(held);
  }

 private:
  struct Part {
    std::weak_ptr<Layer> layer;  // null once nobody waits for it
    Placement::Worker worker;
    size_t placement = 0;  // by the order in which they came
    std::vector<Route> routes;
    bool is_probe = false;
    bool left = false;  // a later placement did not name the worker
    SimulatedTime::Clock::time_point in_time;
  };

  static bool IsWanted(const Part& part) {
    if (part.is_probe) return true;
    const std::shared_ptr<Layer> layer = part.layer.lock();
    if (layer == nullptr || part.left) return false;
    return std::any_of(part.routes.begin(), part.routes.end(),
                       [&](const Route& route) { return !layer->may_be_there.contains(route); });
  }

  SimulatedTime& time_;
  std::shared_ptr<Layer> layer_;
  std::vector<PlacementVersion> placements_;  // as they came
  std::map<uint32_t, Part> parts_;            // that are out, by number
};

// The routed experts of an attention worker, of which each layer is held against the ledger: it is
// done when everything has been answered, and not before.
class CheckedExperts final : public RoutedExperts {
 public:
  CheckedExperts(kernels::Backend* backend, RoutedExperts* experts, DispatchLedger* ledger,
                 Trace* trace)
      : backend_(*backend), experts_(*experts), ledger_(*ledger), trace_(*trace) {}

  std::unique_ptr<RoutedExperts::Pending> Begin(const ExpertBatch& batch,
                                                std::function<void()> changed) override {
    auto layer = std::make_shared<DispatchLedger::Layer>();
    const int64_t num_rows = batch.rows.dim(0), top_k = batch.expert_ids.width();
    rows_.resize(static_cast<size_t>(num_rows * batch.rows.width()) * DtypeBytes(batch.rows.dtype));
    expert_ids_.resize(static_cast<size_t>(num_rows * top_k));
    backend_.Read(batch.rows, rows_.data())->Wait();
    backend_.Read(batch.expert_ids, expert_ids_.data())->Wait();
    const TensorView rows(rows_.data(), batch.rows.dtype, {num_rows, batch.rows.width()});
    for (int64_t row = 0; row < num_rows; ++row) {
      const size_t name = DispatchLedger::NameOf(rows, row);
      for (int64_t k = 0; k < top_k; ++k) {
        layer->routes.emplace(name, expert_ids_[row * top_k + k]);
      }
    }
    ledger_.SetLayer(layer);
    std::unique_ptr<RoutedExperts::Pending> pending = experts_.Begin(batch, std::move(changed));
    ledger_.SetLayer(nullptr);
    return std::make_unique<Pending>(this, batch, std::move(layer), std::move(pending));
  }
  CounterSnapshot Counters() const override { return experts_.Counters(); }

 private:
  class Pending final : public RoutedExperts::Pending {
   public:
    Pending(CheckedExperts* owner, const ExpertBatch& batch,
            std::shared_ptr<DispatchLedger::Layer> layer,
            std::unique_ptr<RoutedExperts::Pending> pending)
        : owner_(*owner),
          number_(batch.layer),
          layer_(std::move(layer)),
          pending_(std::move(pending)) {}

    std::optional<absl::Status> Poll() override {
      owner_.ledger_.SetLayer(layer_);
      std::optional<absl::Status> status = pending_->Poll();
      owner_.ledger_.SetLayer(nullptr);
      const bool is_done = status.has_value() && status->ok();
      if (is_done && layer_->may_be_there != layer_->routes) {
        owner_.trace_.Violation("layer ", number_, " is done with ", layer_->may_be_there.size(),
                                " of ", layer_->routes.size(), " routes answered");
      }
      if (!is_done && layer_->must_be_there == layer_->routes) {
        owner_.trace_.Violation("layer ", number_, " is not done, but all is answered");
      }
      return status;
    }
    Clock::time_point wake_time() const override { return pending_->wake_time(); }

   private:
    CheckedExperts& owner_;
    const int number_;
    const std::shared_ptr<DispatchLedger::Layer> layer_;
    const std::unique_ptr<RoutedExperts::Pending> pending_;
  };

  kernels::Backend& backend_;
  RoutedExperts& experts_;
  DispatchLedger& ledger_;
  Trace& trace_;
  std::vector<char> rows_;
  std::vector<int32_t> expert_ids_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_DISPATCH_LEDGER_H_
