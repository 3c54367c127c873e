#include "common/transport/holder_health.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "common/check.h"

namespace tandem {

// ---- AnswerTimes --------------------------------------------------------------------------------

int AnswerTimes::SizeOf(int64_t work) {
  TANDEM_CHECK(work > 0);
  return std::min((static_cast<int>(std::bit_width(static_cast<uint64_t>(work))) - 1) / 2,
                  kSizes - 1);
}

void AnswerTimes::Add(int64_t work, absl::Duration time) {
  const double sample = absl::ToDoubleSeconds(time) / static_cast<double>(work);
  std::optional<double>& known = seconds_per_work_[SizeOf(work)];
  if (!known.has_value()) {
    known = sample;
  } else {
    *known += (sample - *known) / (sample > *known ? 4 : 16);
  }
}

std::optional<absl::Duration> AnswerTimes::Expected(int64_t work) const {
  const int size = SizeOf(work);
  for (int known = size; known >= 0; --known) {
    if (seconds_per_work_[known].has_value()) return Scaled(known, work);
  }
  for (int known = size + 1; known < kSizes; ++known) {
    if (seconds_per_work_[known].has_value()) return Scaled(known, LeastOf(known));
  }
  return std::nullopt;
}

absl::Duration AnswerTimes::Scaled(int size, int64_t work) const {
  return absl::Seconds(*seconds_per_work_[size] * static_cast<double>(work));
}

// ---- HolderHealth -------------------------------------------------------------------------------

void HolderHealth::ProbeLater(TimePoint now) {
  heed_from_ = now + absl::ToChronoNanoseconds(aside_times_.first);
}

void HolderHealth::Failed(TimePoint sent, TimePoint now) {
  if (sent < heed_from_) return;
  if (!aside_ && now >= forget_at_) num_failures_ = 0;
  pause_ = num_failures_ == 0 ? aside_times_.first : std::min(2 * pause_, aside_times_.most);
  ++num_failures_;
  num_slow_ = 0;
  aside_ = true;
  heed_from_ = now + absl::ToChronoNanoseconds(pause_);
}

void HolderHealth::Answered(TimePoint sent, TimePoint now, bool slow) {
  if (sent < heed_from_) return;
  num_slow_ = slow ? num_slow_ + 1 : 0;
  if (slow && (aside_ || num_slow_ == kSlowInARow)) return Failed(sent, now);
  if (!aside_ || slow) return;
  aside_ = false;
  forget_at_ = now + absl::ToChronoNanoseconds(pause_);
}

// ---- HolderTable --------------------------------------------------------------------------------

void HolderTable::Keep(const Placement& placement) {
  if (std::exchange(kept_, placement.version) == placement.version) return;
  std::erase_if(holders_,
                [&](const auto& entry) { return !placement.Names(entry.second->worker()); });
}

std::shared_ptr<HolderHealth> HolderTable::Of(const Placement::Worker& worker) {
  std::shared_ptr<HolderHealth>& holder = holders_[worker.id];
  if (holder == nullptr || holder->worker() != worker) {
    holder = std::make_shared<HolderHealth>(worker, aside_times_);
  }
  return holder;
}

const HolderHealth* HolderTable::Find(WorkerId id) const {
  const auto it = holders_.find(id);
  return it == holders_.end() ? nullptr : it->second.get();
}

std::optional<absl::Duration> HolderTable::ExpectedTime(int64_t work) const {
  const bool all_aside = num_aside() == static_cast<int64_t>(holders_.size());
  std::vector<absl::Duration> times;
  for (const auto& [id, holder] : holders_) {
    if (holder->aside() && !all_aside) continue;
    if (const auto time = holder->times().Expected(work)) times.push_back(*time);
  }
  if (times.empty()) return std::nullopt;
  const auto middle = times.begin() + static_cast<ptrdiff_t>((times.size() - 1) / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

void HolderTable::Answered(HolderHealth& holder, int64_t work, HolderHealth::TimePoint sent,
                           HolderHealth::TimePoint answered) const {
  const absl::Duration time = absl::FromChrono(answered - sent);
  const bool slow = IsSlow(work, time);
  holder.Measured(work, time);
  holder.Answered(sent, answered, slow);
}

bool HolderTable::IsSlow(int64_t work, absl::Duration time) const {
  const std::optional<absl::Duration> expected = ExpectedTime(work);
  return expected.has_value() && time > std::max(4 * *expected, absl::Milliseconds(5));
}

int64_t HolderTable::num_aside() const {
  return std::count_if(holders_.begin(), holders_.end(),
                       [](const auto& entry) { return entry.second->aside(); });
}

}  // namespace tandem
