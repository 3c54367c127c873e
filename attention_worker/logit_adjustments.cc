#include "attention_worker/logit_adjustments.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace tandem {

absl::Span<const kernels::LogitAdjustment> LogitAdjustments::Next(const SequenceSpec& spec) {
  const SamplingParams& sampling = spec.sampling;
  const size_t num_tokens = spec.token_ids.size();
  const auto num_generated = static_cast<int64_t>(num_tokens) - spec.num_prompt_tokens;
  if (!sampling.AdjustsLogits(num_generated)) return {};
  if (!std::exchange(began_, true)) {
    for (const LogitBias& bias : sampling.logit_bias) Of(bias.id).bias = bias.bias;
  }
  for (; num_counted_ < num_tokens; ++num_counted_) Count(spec, num_counted_);
  HoldBack(spec, sampling.HoldsBack(num_generated));
  return all_;
}

kernels::LogitAdjustment& LogitAdjustments::Of(int32_t id) {
  const auto [it, added] = by_id_.emplace(id, all_.size());
  if (added) {
    all_.push_back({.row = 0, .id = id, .bias = 0.0f, .repetition = 1.0f, .penalty = 0.0f});
  }
  return all_[it->second];
}

void LogitAdjustments::Count(const SequenceSpec& spec, size_t position) {
  const SamplingParams& sampling = spec.sampling;
  const int32_t id = spec.token_ids[position];
  if (sampling.repetition_penalty != 1.0f) Of(id).repetition = sampling.repetition_penalty;
  if (position < static_cast<size_t>(spec.num_prompt_tokens)) return;
  if (sampling.frequency_penalty == 0.0f && sampling.presence_penalty == 0.0f) return;
  const int32_t count = ++generated_[id];
  // In double the product is exact, so that only the sum is rounded.
  Of(id).penalty = static_cast<float>(double{sampling.frequency_penalty} * count +
                                      double{sampling.presence_penalty});
}

void LogitAdjustments::HoldBack(const SequenceSpec& spec, bool hold) {
  if (std::exchange(holds_back_, hold) == hold) return;
  const std::vector<LogitBias>& biases = spec.sampling.logit_bias;
  for (const int32_t id : spec.sampling.end_ids) {
    const auto own = std::find_if(biases.begin(), biases.end(),
                                  [id](const LogitBias& bias) { return bias.id == id; });
    const float bias = own == biases.end() ? 0.0f : own->bias;
    Of(id).bias = hold ? -std::numeric_limits<float>::infinity() : bias;
  }
}

}  // namespace tandem
