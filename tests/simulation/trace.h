// What happened in a simulation, with simulated times; written down only where somebody reads it.
#ifndef TANDEM_TESTS_SIMULATION_TRACE_H_
#define TANDEM_TESTS_SIMULATION_TRACE_H_

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/simulation/simulated_time.h"

namespace tandem {

// The faults of one run: what broke and what must never be seen.
class Trace {
 public:
  Trace(const SimulatedTime* time, bool is_on) : time_(*time), is_on_(is_on), start_(time->now()) {}

  template <typename... Parts>
  void Note(const Parts&... parts) {
    if (is_on_) lines_.push_back(absl::StrCat(Now(), parts...));
  }
  // What must not be. The first few are kept whether the trace is on or not.
  template <typename... Parts>
  void Violation(const Parts&... parts) {
    Note("VIOLATION: ", parts...);
    if (violations_.size() < 8) violations_.push_back(absl::StrCat(Now(), parts...));
  }

  bool is_on() const { return is_on_; }
  const std::vector<std::string>& lines() const { return lines_; }
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  std::string Now() const {
    const auto passed = std::chrono::duration<double>(time_.now() - start_).count();
    return absl::StrFormat("%10.6f  ", passed);
  }

  const SimulatedTime& time_;
  const bool is_on_;
  const SimulatedTime::Clock::time_point start_;
  std::vector<std::string> lines_;
  std::vector<std::string> violations_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_TRACE_H_
