// What a checkpoint's generation_config.json says of generating.
#ifndef TANDEM_GATEWAY_GENERATION_CONFIG_H_
#define TANDEM_GATEWAY_GENERATION_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/sampling_params.h"

namespace tandem {

struct GenerationConfig {
  SamplingParams sampling;           // for requests that do not say
  std::vector<int32_t> eos_ids;      // without repetition, in the order of the file
  std::vector<std::string> ignored;  // members that would change answers, but are not offered
};

// Reads generation_config.json in `dir`. Without it, or if it is empty, or where a member is
// missing or null: temperature 1, top_p 1, repetition_penalty 1, no min_p, no top_k, no end ids.
// docs/checkpoints.md says what each value means.
//   INVALID_ARGUMENT  it is no file, no JSON, or a value has no sensible meaning; named
absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& dir, int32_t vocab_size);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_GENERATION_CONFIG_H_
