#include "gateway/queue_pace.h"

#include <algorithm>
#include <utility>

namespace tandem {
namespace {

constexpr double kWeightOfOne = 0.125;  // of one that left, in the mean

}  // namespace

void QueuePace::Observe(int64_t waiting, int64_t left, absl::Time now) {
  const int64_t gone = left - std::exchange(left_, left);
  const bool waited = std::exchange(waited_, waiting > 0);
  if (!waited || gone < 0) {
    since_ = now;
    return;
  }
  if (gone == 0) return;
  const absl::Duration each = (now - std::exchange(since_, now)) / gone;
  if (interval_ == absl::ZeroDuration()) {
    interval_ = each;
  } else {
    interval_ += std::min(1.0, kWeightOfOne * static_cast<double>(gone)) * (each - interval_);
  }
}

}  // namespace tandem
