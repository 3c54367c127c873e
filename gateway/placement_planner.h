// Decides which expert worker holds which experts.
#ifndef TANDEM_GATEWAY_PLACEMENT_PLANNER_H_
#define TANDEM_GATEWAY_PLACEMENT_PLANNER_H_

#include <vector>

#include "absl/status/statusor.h"
#include "common/model_config.h"
#include "common/placement.h"

namespace tandem {

// Shards every MoE layer's experts over `workers` in contiguous, equally long runs (they differ by
// at most one expert): worker i of n holds experts [i * E / n, (i + 1) * E / n) of each layer. A
// pure function: the same workers in the same order give the same placement. More workers than
// experts leave some without any.
//   INVALID_ARGUMENT  there is no worker, but the model has experts
absl::StatusOr<Placement> PlanPlacement(const ModelConfig& config,
                                        const std::vector<Placement::Worker>& workers,
                                        PlacementVersion version);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_PLACEMENT_PLANNER_H_
