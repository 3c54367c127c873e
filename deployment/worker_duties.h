// What a worker is to do next, by what the registry has told it. A state machine: no clock, thread
// or network.
#ifndef TANDEM_DEPLOYMENT_WORKER_DUTIES_H_
#define TANDEM_DEPLOYMENT_WORKER_DUTIES_H_

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/time/time.h"
#include "common/placement.h"

namespace tandem {

// Not thread-safe. Of orders that have not been begun, only the newest is carried out; an order
// ends with the membership in which it was given.
class WorkerDuties {
 public:
  struct LoadOrder {
    Placement placement;
    WorkerId self = 0;
    uint64_t membership = 0;
  };
  // First what goes, then what comes: there may be room for one of them only.
  struct Work {
    std::optional<PlacementVersion> retire;  // all below it
    std::optional<LoadOrder> load;
  };

  // A deployment has taken the worker, under this id, or its gateway is there no more.
  void Accepted(WorkerId self) {
    self_ = self;
    is_member_ = true;
    ++memberships_;
  }
  void Lost() {
    is_member_ = false;
    ++memberships_;
    next_load_.reset();
  }
  // Orders of the registry.
  void Load(Placement placement) { next_load_ = {std::move(placement), self_, memberships_}; }
  void Use(PlacementVersion in_use) { in_use_ = in_use; }
  void Released() { released_ = true; }
  // The worker wants to end once nobody needs it, or at that time. Requires a member.
  void Drain(absl::Time until) { drain_until_ = until; }

  bool has_work() const { return next_load_.has_value() || in_use_.has_value(); }
  Work TakeWork() {
    return {std::exchange(in_use_, std::nullopt), std::exchange(next_load_, std::nullopt)};
  }
  // Whether an order that was taken is to be given up.
  bool IsSuperseded(const LoadOrder& order) const {
    return next_load_.has_value() || memberships_ != order.membership;
  }

  bool is_member() const { return is_member_; }
  bool draining() const { return drain_until_.has_value(); }
  absl::Time drain_until() const { return drain_until_.value_or(absl::InfinitePast()); }
  // Whether a worker that drains may end: nobody needs it, or nobody is there who would say so.
  bool may_end() const { return released_ || !is_member_; }

 private:
  WorkerId self_ = 0;
  bool is_member_ = false;
  uint64_t memberships_ = 0;  // begun and ended so far
  std::optional<LoadOrder> next_load_;
  std::optional<PlacementVersion> in_use_;
  std::optional<absl::Time> drain_until_;  // once it drains
  bool released_ = false;
};

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_WORKER_DUTIES_H_
