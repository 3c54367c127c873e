#include "gateway/step_costs.h"

#include <algorithm>
#include <cmath>

namespace tandem {
namespace {

// How many steps are in the mean, of which the last one is a part. Decode rows are seldom alone
// while there is prefill, so that each such step counts.
constexpr int kDecodeStepsInMean = 2;
constexpr int kPrefillStepsInMean = 4;
constexpr double kMostError = 1.5;  // that is believed of one step, either way, but of the first
// What prefill takes at least of a step with decode rows, however long those were expected to take.
constexpr double kLeastShare = 0.05;

template <size_t n>
double Sum(const std::array<double, n>& weights, const std::array<double, n>& terms) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += weights[i] * terms[i];
  return sum;
}

// Multiplies the weights by powers of the error, each by its share of the sum, so that the
// logarithm of the sum moves by that of the error over the number of steps that are in the mean.
// `steps`: how many were before this one.
template <size_t n>
void Correct(const std::array<double, n>& terms, double error, int steps_in_mean, int* steps,
             std::array<double, n>* weights) {
  const double sum = Sum(*weights, terms);
  std::array<double, n> shares;
  double squares = 0;
  for (size_t i = 0; i < n; ++i) {
    shares[i] = (*weights)[i] * terms[i] / sum;
    squares += shares[i] * shares[i];
  }
  if (*steps > 0) error = std::clamp(error, 1 / kMostError, kMostError);
  *steps = std::min(*steps + 1, steps_in_mean);
  const double step = std::log(error) / (*steps * squares);
  for (size_t i = 0; i < n; ++i) (*weights)[i] *= std::exp(step * shares[i]);
}

}  // namespace

StepCosts::Terms<3> StepCosts::TermsOf(const DecodeShape& decode) {
  return {1, static_cast<double>(decode.rows), static_cast<double>(decode.context)};
}
StepCosts::Terms<4> StepCosts::TermsOf(const PrefillShape& prefill) {
  return {1, static_cast<double>(prefill.rows), static_cast<double>(prefill.context),
          static_cast<double>(prefill.pairs)};
}

double StepCosts::DecodeUs(const DecodeShape& decode) const {
  return decode.rows == 0 ? 0 : Sum(decode_, TermsOf(decode));
}
double StepCosts::LayerUs(const PrefillShape& prefill) const {
  return prefill.rows == 0 ? 0 : Sum(prefill_, TermsOf(prefill));
}

void StepCosts::Learn(const StepShape& step, int64_t busy_us) {
  const double decode_us = DecodeUs(step.decode);
  double prefill_us = 0;
  Terms<4> terms = {};  // of all layers of all batches
  for (const StepShape::Prefill& prefill : step.prefill) {
    if (prefill.shape.rows == 0) continue;
    const Terms<4> of_layer = TermsOf(prefill.shape);
    for (size_t i = 0; i < terms.size(); ++i) terms[i] += prefill.layers * of_layer[i];
    prefill_us += prefill.layers * LayerUs(prefill.shape);
  }
  if (busy_us <= 0 || decode_us + prefill_us <= 0) return;
  const auto measured = static_cast<double>(busy_us);
  if (decode_steps_ + prefill_steps_ == 0) {
    const double unit = measured / (decode_us + prefill_us);
    for (double& weight : decode_) weight *= unit;
    for (double& weight : prefill_) weight *= unit;
    ++(prefill_us > 0 ? prefill_steps_ : decode_steps_);
  } else if (prefill_us > 0) {
    const double of_prefill = std::max(measured - decode_us, kLeastShare * measured);
    Correct(terms, of_prefill / prefill_us, kPrefillStepsInMean, &prefill_steps_, &prefill_);
  } else {
    Correct(TermsOf(step.decode), measured / decode_us, kDecodeStepsInMean, &decode_steps_,
            &decode_);
  }
}

int64_t StepCosts::RowsWithin(double budget_us, int64_t first, int64_t limit) const {
  const auto fits = [&](int64_t rows) {
    PrefillShape shape;
    shape.Add(first, rows);
    return LayerUs(shape) <= budget_us;
  };
  int64_t rows = 0;  // fits
  int64_t above = std::max<int64_t>(limit, 0) + 1;
  while (above - rows > 1) {
    const int64_t middle = rows + (above - rows) / 2;
    (fits(middle) ? rows : above) = middle;
  }
  return rows;
}

}  // namespace tandem
