#include "gateway/decode_groups.h"

#include <algorithm>
#include <utility>

namespace tandem {

void DecodeGroupChooser::OnStep(int groups, int rows, int64_t busy_us, int64_t wait_us) {
  if (groups != groups_) return;
  if (skip_ > 0) {
    --skip_;
    return;
  }
  const int64_t busy = std::max<int64_t>(busy_us, 1);
  ++window_.steps;
  window_.rows += rows;
  window_.busy_us += static_cast<double>(busy);
  window_.wait_us += static_cast<double>(std::clamp<int64_t>(wait_us, 0, busy));
  const bool lost =
      trying_ && window_.steps >= kEarlySteps && window_.RowsPerUs() < before_.RowsPerUs();
  if (window_.steps < kWindowSteps && !lost) return;

  const Window now = std::exchange(window_, {});
  if (trying_) {
    trying_ = false;
    const Window& two = groups_ == 2 ? now : before_;
    const Window& one = groups_ == 2 ? before_ : now;
    const int better = two.RowsPerUs() > kMinSpeedup * one.RowsPerUs() ? 2 : 1;
    pause_ = better == groups_ ? kFirstPause : std::min(2 * pause_, kLongestPause);
    until_trial_ = pause_;
    if (better != groups_) Use(better);
    return;
  }
  until_trial_ = std::max(until_trial_ - now.steps, 0);
  if (until_trial_ > 0 || (groups_ == 1 && !IsWorthATrial(now))) return;
  before_ = now;
  trying_ = true;
  Use(3 - groups_);
}

bool DecodeGroupChooser::IsWorthATrial(const Window& one) {
  return one.wait_us > kMinWaitShare * one.busy_us && one.rows >= 2 * one.steps;
}

void DecodeGroupChooser::Use(int groups) {
  groups_ = groups;
  skip_ = kSkippedSteps;
}

}  // namespace tandem
