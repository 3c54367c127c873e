// How long prompts and answers are, and when requests come.
#ifndef TANDEM_TOOLS_WORKLOAD_LENGTHS_H_
#define TANDEM_TOOLS_WORKLOAD_LENGTHS_H_

#include <cstdint>
#include <random>
#include <string>

#include "absl/status/statusor.h"

namespace tandem {

using WorkloadRandom = std::mt19937_64;

// In [0, 1). The same on every machine, which the distributions of the standard library are not.
double DrawUniform(WorkloadRandom& random);
// Seconds between two events of a Poisson process of `rate` > 0 per second.
double DrawInterval(WorkloadRandom& random, double rate);

// A distribution of numbers of tokens, each at least 1.
class LengthDistribution {
 public:
  // N, or fixed:N        always N
  // uniform:LOW:HIGH     both included
  // exponential:MEAN     rounded, at least 1
  // lognormal:MEDIAN:SIGMA[:MAX]  exp of a normal distribution of that sigma; at most MAX
  // INVALID_ARGUMENT names what is wrong.
  static absl::StatusOr<LengthDistribution> Parse(const std::string& text);
  static LengthDistribution Fixed(int64_t tokens);

  int64_t Draw(WorkloadRandom& random) const;
  // No draw is longer.
  int64_t longest() const { return longest_; }

 private:
  enum class Kind : uint8_t { kFixed, kUniform, kExponential, kLognormal };
  static constexpr int64_t kLongest = 1 << 20;

  Kind kind_ = Kind::kFixed;
  double first_ = 1;   // the length, lowest, mean or median
  double second_ = 1;  // the highest, or sigma
  int64_t longest_ = kLongest;
};

}  // namespace tandem

#endif  // TANDEM_TOOLS_WORKLOAD_LENGTHS_H_
