// Whether what a process is about to hold fits into memory: said, and refused, before it is loaded.
#ifndef TANDEM_DEPLOYMENT_MEMORY_NEEDS_H_
#define TANDEM_DEPLOYMENT_MEMORY_NEEDS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/checkpoint/checkpoint.h"
#include "common/machine.h"
#include "common/mode.h"
#include "common/model_config.h"
#include "common/tensor.h"

namespace tandem {

// In bytes. Weights that stay mapped count as well: a server that reads them from the disk again
// and again answers nobody.
struct MemoryNeeds {
  int64_t weights = 0;
  int64_t cache = 0;  // of latents; 0: none
};

// Of a checkpoint's tensors in a format, the routed experts apart from the others.
int64_t ExpertBytes(const Checkpoint& checkpoint, WeightFormat format);
int64_t OtherBytes(const Checkpoint& checkpoint, WeightFormat format);
// Of a latent cache for `tokens`, rounded up to pages.
int64_t CacheBytes(const ModelConfig& config, Dtype mode, int64_t tokens);

// The format that --weights auto stands for: of the mode's, int8 and int4 the first whose weights,
// with `cache_bytes` and a little for everything else, fit; the last of them if none does.
struct WeightChoice {
  WeightFormat format = WeightFormat::kBF16;
  std::string why;  // for people
};
constexpr char kAutoWeights[] = "auto";
WeightChoice ChooseWeights(const Checkpoint& checkpoint, Dtype mode, int64_t cache_bytes,
                           const MachineLimits& limits);

// Logs what is needed of what there is.
//   RESOURCE_EXHAUSTED  it does not fit; says what would
absl::Status CheckMemory(const MemoryNeeds& needs, const MachineLimits& limits);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_MEMORY_NEEDS_H_
