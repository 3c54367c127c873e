// How many experts an expert worker says that its memory holds: less after a shortage, for a while.
#ifndef TANDEM_DEPLOYMENT_EXPERT_CAPACITY_H_
#define TANDEM_DEPLOYMENT_EXPERT_CAPACITY_H_

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace tandem {

// Not thread-safe; time comes from outside.
class ExpertCapacity {
 public:
  static constexpr absl::Duration kFirstPause = absl::Minutes(1);
  static constexpr absl::Duration kLongestPause = absl::Hours(1);

  ExpertCapacity() = default;
  // What was measured before anything was loaded.
  explicit ExpertCapacity(int64_t measured) : measured_(measured), experts_(measured) {}

  int64_t experts() const { return experts_; }

  // There was memory for `fit` only. Others on the machine may give theirs back, so it may grow
  // again after a pause that each shortage doubles: what it grows by may have to be given up again.
  void Shrink(int64_t fit, absl::Time now) {
    experts_ = fit;
    may_grow_at_ = now + pause_;
    pause_ = std::min(2 * pause_, kLongestPause);
  }
  bool MayGrow(absl::Time now) const { return experts_ < measured_ && now >= may_grow_at_; }
  // Memory takes `fit` as it is now. Whether that is worth it: each change moves experts, so it
  // grows by a quarter of what it lacks at least.
  bool Grow(int64_t fit) {
    fit = std::min(fit, measured_);
    if (4 * (fit - experts_) < measured_ - experts_) return false;
    experts_ = fit;
    return true;
  }

 private:
  int64_t measured_ = 0;
  int64_t experts_ = 0;
  absl::Duration pause_ = kFirstPause;
  absl::Time may_grow_at_ = absl::InfinitePast();
};

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_EXPERT_CAPACITY_H_
