// What a dispatcher knows of the expert workers that it asks: what it has out at each, how long
// each takes to answer, and which are put aside. No clock and no thread: times are told, and all of
// it belongs to the dispatcher's thread.
#ifndef TANDEM_COMMON_TRANSPORT_HOLDER_HEALTH_H_
#define TANDEM_COMMON_TRANSPORT_HOLDER_HEALTH_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/time/time.h"
#include "common/placement.h"

namespace tandem {

// How long a worker takes, by how much work it had to do until then: what small parts take says
// little of large ones. Follows longer times at a quarter and shorter ones at a sixteenth of the
// difference, and so stays above most of them.
class AnswerTimes {
 public:
  void Add(int64_t work, absl::Duration time);
  // What few parts of so much work take longer than: by parts of that size; otherwise by the
  // nearest smaller size, which takes longer per unit of work, or as long as the smallest part of
  // the nearest larger one. Nothing: no part has been answered yet.
  std::optional<absl::Duration> Expected(int64_t work) const;

 private:
  static constexpr int kSizes = 16;  // each of four times the work of the one before
  static int SizeOf(int64_t work);
  static int64_t LeastOf(int size) { return int64_t{1} << (2 * size); }
  absl::Duration Scaled(int size, int64_t work) const;

  std::array<std::optional<double>, kSizes> seconds_per_work_;
};

// How long a worker is put aside: first so long, twice that after each further failure.
struct AsideTimes {
  absl::Duration first = absl::Milliseconds(500);
  absl::Duration most = absl::Seconds(16);
};

// One worker, in one life of its process.
//
// A worker is put aside when a part fails there or is late, or when kSlowInARow answers in a row
// are slow. Others are preferred to it then. When its time is up, the next answer decides: one in
// time brings it back, anything else puts it aside for twice as long. How often it has failed is
// forgotten once it has been back for as long as it was aside. What was sent before its time is up
// decides nothing, so one fault is one failure however many parts are out.
class HolderHealth {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  static constexpr int kSlowInARow = 4;

  HolderHealth(Placement::Worker worker, AsideTimes times)
      : worker_(std::move(worker)), aside_times_(times) {}

  const Placement::Worker& worker() const { return worker_; }
  int64_t work_out() const { return work_out_; }
  const AnswerTimes& times() const { return times_; }

  bool aside() const { return aside_; }
  // How much rather others are asked.
  int reluctance() const { return aside_ ? num_failures_ : 0; }
  bool ProbeIsDue(TimePoint now) const { return aside_ && !probing_ && now >= heed_from_; }
  void set_probing(bool probing) { probing_ = probing; }
  // A probe has shown nothing; the next one is due after the shortest time.
  void ProbeLater(TimePoint now);

  // Of what was sent at `sent`. Slow: it took much longer than others take for as much work.
  void Failed(TimePoint sent, TimePoint now);
  void Answered(TimePoint sent, TimePoint now, bool slow);
  void Measured(int64_t work, absl::Duration time) { times_.Add(work, time); }

 private:
  friend class WorkOut;

  const Placement::Worker worker_;
  const AsideTimes aside_times_;
  int64_t work_out_ = 0;
  AnswerTimes times_;

  bool aside_ = false;
  bool probing_ = false;
  int num_failures_ = 0;  // in a row
  int num_slow_ = 0;      // in a row
  absl::Duration pause_;  // for which it was put aside last
  TimePoint heed_from_ = TimePoint::min();
  TimePoint forget_at_ = TimePoint::min();  // while it is not aside: its failures
};

// Work that is out at a worker for as long as this lives.
class WorkOut {
 public:
  WorkOut(std::shared_ptr<HolderHealth> holder, int64_t work)
      : holder_(std::move(holder)), work_(work), in_line_(holder_->work_out_ += work) {}
  WorkOut(WorkOut&& other) noexcept = default;  // leaves no holder behind
  WorkOut& operator=(WorkOut&&) = delete;
  ~WorkOut() {
    if (holder_ != nullptr) holder_->work_out_ -= work_;
  }

  HolderHealth& holder() const { return *holder_; }
  // This work and what was out before it, which the worker may do first.
  int64_t in_line() const { return in_line_; }

 private:
  std::shared_ptr<HolderHealth> holder_;
  int64_t work_;
  int64_t in_line_;
};

// The workers of a placement.
class HolderTable {
 public:
  explicit HolderTable(AsideTimes times) : aside_times_(times) {}

  // Forgets the workers that it does not name, and those that are another process by now.
  void Keep(const Placement& placement);
  std::shared_ptr<HolderHealth> Of(const Placement::Worker& worker);
  // Nothing if it has not been asked for yet.
  const HolderHealth* Find(WorkerId id) const;

  // What the middle one of the workers that are not aside, or else of all, takes at most for so
  // much work, or nearly always; of two the quicker. Nothing: no worker has answered yet.
  std::optional<absl::Duration> ExpectedTime(int64_t work) const;
  // A good answer, and how much work was in line when it was sent.
  void Answered(HolderHealth& holder, int64_t work, HolderHealth::TimePoint sent,
                HolderHealth::TimePoint answered) const;
  // Whether an answer took more than 4 times that. What is there within 5 ms is never slow.
  bool IsSlow(int64_t work, absl::Duration time) const;
  int64_t num_aside() const;
  // By id.
  const std::map<WorkerId, std::shared_ptr<HolderHealth>>& all() const { return holders_; }

 private:
  const AsideTimes aside_times_;
  std::map<WorkerId, std::shared_ptr<HolderHealth>> holders_;
  std::optional<PlacementVersion> kept_;  // of the placement that holders_ was last cut to
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_HOLDER_HEALTH_H_
