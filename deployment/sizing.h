// How many workers of which memory a model, its format and a load need, and on how many nodes: the
// arithmetic of docs/sizing.md, from the same figures by which programs refuse what does not fit.
#ifndef TANDEM_DEPLOYMENT_SIZING_H_
#define TANDEM_DEPLOYMENT_SIZING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/mode.h"
#include "common/model_config.h"
#include "common/tensor.h"

namespace tandem {

struct SizingRequest {
  ModelConfig config;
  Dtype mode = Dtype::kBF16;
  WeightFormat format = WeightFormat::kBF16;
  int64_t streams = 16;          // answers that are written at the same time
  int64_t stream_tokens = 4096;  // of one: prompt and answer
  double tokens_per_s = 0;       // that all streams together are to get; 0: whatever comes
  int expert_copies = 2;         // workers that hold the same expert, if memory allows
  int nodes = 1;
  int64_t node_memory_bytes = 0;
  double node_bytes_per_s = 30e9;   // that a node's cores read (tandem bench --ceilings)
  double disk_bytes_per_s = 200e6;  // at which a checkpoint is read
};

// One kind of worker. Memory is a container's request and its limit, in whole 64 MiB.
struct WorkerSizing {
  int replicas = 0;
  int64_t weight_bytes = 0;  // of each, as what follows
  int64_t cache_bytes = 0;
  int64_t pass_bytes = 0;  // of tensors while it computes, at most
  int64_t memory_bytes = 0;
  int64_t startup_s = 0;  // until it has loaded at the latest: what it reads, twice, and a minute
};

struct Sizing {
  WorkerSizing attention, expert;
  int64_t cache_tokens = 0;         // --cache-tokens of each attention worker
  int64_t experts_each = 0;         // of the model's experts over all layers
  int64_t expert_memory_bytes = 0;  // --expert-memory of each expert worker
  int expert_copies = 0;
  int expert_nodes = 0;       // on which there are expert workers
  int64_t drain_limit_s = 0;  // until others have what an expert worker has that is to end
  // Decoding with all streams at half of their length cannot be faster: what is read per step, by
  // the rate at which it is read.
  double most_tokens_per_s = 0;
  std::vector<std::string> why;  // sentences for people
};

// The fewest attention workers, then the fewest expert workers, that hold everything, fit on the
// nodes beside each other, and whose bound of tokens per second is what was asked for.
//   INVALID_ARGUMENT    the model has no routed experts; a request of nothing
//   RESOURCE_EXHAUSTED  no number of workers does; says what is missing
absl::StatusOr<Sizing> PlanSizing(const SizingRequest& request);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_SIZING_H_
