#include "tools/workload/lengths.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace tandem {

double DrawUniform(WorkloadRandom& random) {
  return static_cast<double>(random() >> 11) * 0x1.0p-53;
}

double DrawInterval(WorkloadRandom& random, double rate) {
  return -std::log1p(-DrawUniform(random)) / rate;
}

LengthDistribution LengthDistribution::Fixed(int64_t tokens) {
  LengthDistribution fixed;
  fixed.first_ = static_cast<double>(tokens);
  fixed.longest_ = tokens;
  return fixed;
}

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(const std::string& text) {
  const auto wrong = [&](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the length \"", text, "\" ", why,
        "; give N, uniform:LOW:HIGH, exponential:MEAN or lognormal:MEDIAN:SIGMA[:MAX]"));
  };
  std::vector<std::string> parts = absl::StrSplit(text, ':');
  if (parts.size() == 1) parts.insert(parts.begin(), "fixed");
  std::vector<double> numbers;
  for (size_t i = 1; i < parts.size(); ++i) {
    double number = 0;
    if (!absl::SimpleAtod(parts[i], &number) || !(number > 0) || number > kLongest) {
      return wrong(absl::StrCat("has \"", parts[i], "\", which is not in (0, ", kLongest, "]"));
    }
    numbers.push_back(number);
  }
  LengthDistribution lengths;
  const std::string& kind = parts[0];
  if (kind == "fixed" && numbers.size() == 1) {
    lengths.kind_ = Kind::kFixed;
    lengths.longest_ = static_cast<int64_t>(numbers[0]);
  } else if (kind == "uniform" && numbers.size() == 2) {
    lengths.kind_ = Kind::kUniform;
    if (numbers[1] < numbers[0]) return wrong("ends before it begins");
    lengths.longest_ = static_cast<int64_t>(numbers[1]);
  } else if (kind == "exponential" && numbers.size() == 1) {
    lengths.kind_ = Kind::kExponential;
  } else if (kind == "lognormal" && (numbers.size() == 2 || numbers.size() == 3)) {
    lengths.kind_ = Kind::kLognormal;
    if (numbers.size() == 3) lengths.longest_ = static_cast<int64_t>(numbers[2]);
  } else {
    return wrong("is of no known form");
  }
  if (kind != "exponential" && kind != "lognormal") {
    for (const double number : numbers) {
      if (number != std::floor(number)) return wrong("is not a whole number of tokens");
    }
  }
  if (lengths.longest_ < 1) return wrong("allows no token at all");
  lengths.first_ = numbers[0];
  lengths.second_ = numbers.size() > 1 ? numbers[1] : 0;
  return lengths;
}

int64_t LengthDistribution::Draw(WorkloadRandom& random) const {
  double length = first_;
  switch (kind_) {
    case Kind::kFixed:
      break;
    case Kind::kUniform:
      length += std::floor(DrawUniform(random) * (second_ - first_ + 1));
      break;
    case Kind::kExponential:
      length *= DrawInterval(random, 1);
      break;
    case Kind::kLognormal: {  // Box and Muller's
      const double radius = std::sqrt(2 * DrawInterval(random, 1));
      length *= std::exp(second_ * radius * std::cos(2 * std::numbers::pi * DrawUniform(random)));
      break;
    }
  }
  return std::clamp<int64_t>(std::llround(std::min(length, 1.0 * kLongest)), 1, longest_);
}

}  // namespace tandem
