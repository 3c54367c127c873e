// Whether what a process is about to hold fits into memory: said, and refused, before it is loaded.
#ifndef TANDEM_DEPLOYMENT_MEMORY_NEEDS_H_
#define TANDEM_DEPLOYMENT_MEMORY_NEEDS_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "common/checkpoint/checkpoint.h"
#include "common/machine.h"
#include "common/mode.h"
#include "common/model_config.h"
#include "common/tensor.h"
#include "kernels/backend.h"

namespace tandem {

// In bytes. Weights that stay mapped count as well: a server that reads them from the disk again
// and again answers nobody.
struct MemoryNeeds {
  int64_t weights = 0;
  int64_t cache = 0;  // of latents; 0: none
  int64_t work = 0;   // of passes; 0: not counted, where memory has no limit of its own
};

// Of a checkpoint's tensors in a format, the routed experts apart from the others.
int64_t ExpertBytes(const Checkpoint& checkpoint, WeightFormat format);
int64_t OtherBytes(const Checkpoint& checkpoint, WeightFormat format);
// The same of a checkpoint that is bf16 throughout, as V2-Lite was published, by its config alone.
int64_t ExpertBytes(const ModelConfig& config, WeightFormat format);
int64_t OtherBytes(const ModelConfig& config, WeightFormat format);
// Of a latent cache for `tokens`, rounded up to pages.
int64_t CacheBytes(const ModelConfig& config, Dtype mode, int64_t tokens);

// Of the tensors of two passes of the gateway's default number of rows, and of what ops take for a
// call: no less than they need, where the backend's memory is all that there is; 0 where it is the
// host's.
int64_t WorkBytes(const kernels::Backend& backend, const ModelConfig& config, Dtype mode);
// The same estimate, whatever memory it is.
int64_t PassBytes(const ModelConfig& config, Dtype mode);

// One part in so many of a memory is left to all that is not counted: activations, the program, its
// threads, others on the machine.
inline constexpr int64_t kOtherShare = 20;

// The format that --weights auto stands for: of the mode's, int8 and int4, as far as the backend
// has them, the first whose weights, with `cache_bytes` and a little for everything else, fit; the
// last of them if none does.
struct WeightChoice {
  WeightFormat format = WeightFormat::kBF16;
  std::string why;  // for people
};
constexpr char kAutoWeights[] = "auto";
WeightChoice ChooseWeights(const Checkpoint& checkpoint, Dtype mode, int64_t cache_bytes,
                           const MachineLimits& limits,
                           const std::function<bool(WeightFormat)>& has);

// Logs what is needed of what there is.
//   RESOURCE_EXHAUSTED  it does not fit; says what would
absl::Status CheckMemory(const MemoryNeeds& needs, const MachineLimits& limits);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_MEMORY_NEEDS_H_
