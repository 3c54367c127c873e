// How the next token is chosen from logits. Validated where requests enter (gateway/validate.h).
#ifndef TANDEM_COMMON_SAMPLING_PARAMS_H_
#define TANDEM_COMMON_SAMPLING_PARAMS_H_

#include <cstdint>

namespace tandem {

struct SamplingParams {
  float temperature = 0.0f;  // >= 0; 0 is greedy
  int32_t top_k = 0;         // 0: no limit
  float top_p = 1.0f;        // in (0, 1]
  uint64_t seed = 0;
  uint32_t choice = 0;  // index among several choices of one request
};

}  // namespace tandem

#endif  // TANDEM_COMMON_SAMPLING_PARAMS_H_
