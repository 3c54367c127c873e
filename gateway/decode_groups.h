// Whether decoding in two groups of sequences, in alternating steps, is worth it.
#ifndef TANDEM_GATEWAY_DECODE_GROUPS_H_
#define TANDEM_GATEWAY_DECODE_GROUPS_H_

#include <cstdint>

namespace tandem {

// Two groups let one group's attention run while the other waits for its experts, but each step
// then has half the rows, for which the experts' weights are read all the same. So two are tried
// where one waits much, and kept where they have proved faster; the other number is tried again
// after a number of steps that doubles with each trial in vain.
//
// Measures windows of kWindowSteps decode steps, the first kSkippedSteps after each change left
// out. Knows no clock and draws nothing: the choice follows from what OnStep was told. Not
// thread-safe.
class DecodeGroupChooser {
 public:
  static constexpr int kWindowSteps = 32;
  static constexpr int kSkippedSteps = 4;
  static constexpr int kEarlySteps = 8;  // of a trial that is slower already: it ends
  static constexpr int kFirstPause = 8 * kWindowSteps;  // between trials
  static constexpr int kLongestPause = 256 * kWindowSteps;
  static constexpr double kMinWaitShare = 0.25;
  static constexpr double kMinSpeedup = 1.05;  // of rows per second with two groups

  // How many groups the next decode steps are to have: 1 or 2.
  int groups() const { return groups_; }

  // A step of nothing but decode rows has come to its end; the times are those of StepResult, and
  // what they say is not trusted. Steps with another number of groups than groups() are ignored.
  void OnStep(int groups, int rows, int64_t busy_us, int64_t wait_us);

 private:
  struct Window {
    int steps = 0;
    double rows = 0;
    double busy_us = 0;
    double wait_us = 0;
    double RowsPerUs() const { return rows / busy_us; }
  };

  static bool IsWorthATrial(const Window& one);
  void Use(int groups);

  int groups_ = 1;
  bool trying_ = false;  // the window being measured is a trial's
  int skip_ = 0;         // steps to leave out
  int pause_ = kFirstPause;
  int until_trial_ = 0;  // steps
  Window window_;        // being measured
  Window before_;        // the last whole one before the trial
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_DECODE_GROUPS_H_
