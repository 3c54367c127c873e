// A time that is a duration away.
#ifndef TANDEM_COMMON_TIME_AFTER_H_
#define TANDEM_COMMON_TIME_AFTER_H_

#include <algorithm>
#include <chrono>

#include "absl/time/time.h"

namespace tandem {

// `start` plus `duration`, which may be infinite: what is further than a year away counts as a
// year, so that nothing overflows.
inline std::chrono::steady_clock::time_point After(std::chrono::steady_clock::time_point start,
                                                   absl::Duration duration) {
  constexpr absl::Duration kFar = absl::Hours(24 * 365);
  return start + absl::ToChronoNanoseconds(std::clamp(duration, -kFar, kFar));
}

}  // namespace tandem

#endif  // TANDEM_COMMON_TIME_AFTER_H_
