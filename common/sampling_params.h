// How the next token is chosen from logits. Validated where requests enter (gateway/validate.h).
#ifndef TANDEM_COMMON_SAMPLING_PARAMS_H_
#define TANDEM_COMMON_SAMPLING_PARAMS_H_

#include <cstdint>
#include <vector>

namespace tandem {

inline constexpr int kMaxLogitBiases = 1024;
inline constexpr float kMaxLogitBias = 100;
// Far from where a model's logits would become infinite.
inline constexpr float kMinRepetitionPenalty = 0.01f;
inline constexpr float kMaxRepetitionPenalty = 100;
inline constexpr float kMaxPenalty = 2;

// What is added to a logit.
struct LogitBias {
  int32_t id = 0;
  float bias = 0;  // in [-kMaxLogitBias, kMaxLogitBias]
  bool operator==(const LogitBias&) const = default;
};

// In the order in which they apply; what each does to a logit is in kernels/ops/sample.h.
struct SamplingParams {
  // Until so many tokens were generated none of end_ids is drawn.
  int32_t min_tokens = 0;
  std::vector<int32_t> end_ids;
  std::vector<LogitBias> logit_bias;  // ascending by id, none twice
  float repetition_penalty = 1.0f;    // of tokens in prompt and answer
  float frequency_penalty = 0.0f;     // of tokens in the answer: for each time that one is there,
  float presence_penalty = 0.0f;      // and once; both in [-kMaxPenalty, kMaxPenalty]
  float temperature = 0.0f;           // >= 0; 0 is greedy
  float min_p = 0.0f;                 // in [0, 1]
  int32_t top_k = 0;                  // 0: no limit
  float top_p = 1.0f;                 // in (0, 1]
  uint64_t seed = 0;
  uint32_t choice = 0;  // index among several choices of one request

  bool operator==(const SamplingParams&) const = default;

  // Whether the token behind so many generated ones is drawn from other logits than the model's.
  bool AdjustsLogits(int64_t num_generated) const {
    return HoldsBack(num_generated) || !logit_bias.empty() || repetition_penalty != 1.0f ||
           frequency_penalty != 0.0f || presence_penalty != 0.0f;
  }
  bool HoldsBack(int64_t num_generated) const {
    return num_generated < min_tokens && !end_ids.empty();
  }
};

}  // namespace tandem

#endif  // TANDEM_COMMON_SAMPLING_PARAMS_H_
