// How fast experts may be loaded beside running work.
#ifndef TANDEM_DEPLOYMENT_LOAD_PACER_H_
#define TANDEM_DEPLOYMENT_LOAD_PACER_H_

#include <algorithm>

#include "absl/time/time.h"

namespace tandem {

// A pure rule: while the engine works all the time, loading computes for at most `share` of it, on
// one core; for all of it while the engine rests; and in between for what lies between. Time that
// loading waits for a disk counts as a pause.
class LoadPacer {
 public:
  static constexpr absl::Duration kLongestPause = absl::Seconds(10);

  // `share` in (0, 1]; 1: no pauses.
  explicit LoadPacer(double share) : share_(share) {}

  // How long to pause after a piece that took `passed`, of which loading computed for `computed`;
  // `engine_share` of the time lately the engine was busy.
  absl::Duration Pause(absl::Duration computed, absl::Duration passed, double engine_share) const {
    const double allowed = 1 - (1 - share_) * std::clamp(engine_share, 0.0, 1.0);
    return std::clamp(computed / allowed - passed, absl::ZeroDuration(), kLongestPause);
  }

 private:
  const double share_;
};

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_LOAD_PACER_H_
