// Tells whether a peer that is asked again and again has fallen silent.
#ifndef TANDEM_COMMON_TRANSPORT_SILENCE_WATCH_H_
#define TANDEM_COMMON_TRANSPORT_SILENCE_WATCH_H_

#include <algorithm>
#include <chrono>

namespace tandem {

// Not thread-safe; time comes from outside. What is suspected too soon costs work that is done
// twice, so a suspicion that proves false doubles the time until the next one.
class SilenceWatch {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::steady_clock::duration;

  struct Options {
    Duration suspect_after;  // of silence
    Duration at_most;        // that this grows to
    Duration memory;         // after which a false suspicion is forgotten
    Duration look_interval;  // the longest between two calls of Look
  };

  SilenceWatch(const Options& options, TimePoint now)
      : options_(options), limit_(options.suspect_after), since_(now), last_look_(now) {}

  // It has said something. Returns whether it was silent.
  bool Heard(TimePoint now) {
    since_ = std::max(since_, now);
    if (!silent_) return false;
    silent_ = false;
    limit_ = std::min(2 * limit_, options_.at_most);
    forget_at_ = now + options_.memory;
    return true;
  }

  // Returns whether it is silent from now on and was not before. `excused`: it may be busy saying
  // something long.
  bool Look(TimePoint now, bool excused) {
    // Where this process did not run itself, it could not hear anything.
    const bool was_stopped = now - last_look_ > 2 * options_.look_interval;
    last_look_ = now;
    if (excused || was_stopped) since_ = std::max(since_, now);
    if (!silent_ && now >= forget_at_) limit_ = options_.suspect_after;
    if (silent_ || now - since_ < limit_) return false;
    silent_ = true;
    return true;
  }

  bool silent() const { return silent_; }
  // When a call of Look may find it silent at the earliest.
  TimePoint due() const { return silent_ ? TimePoint::max() : since_ + limit_; }

 private:
  const Options options_;
  Duration limit_;
  TimePoint since_;  // when it was heard last, or could not be heard
  TimePoint last_look_;
  TimePoint forget_at_ = TimePoint::min();
  bool silent_ = false;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_SILENCE_WATCH_H_
