#include "gateway/placement_planner.h"

#include <cstdint>

namespace tandem {

absl::StatusOr<Placement> PlanPlacement(const ModelConfig& config,
                                        const std::vector<Placement::Worker>& workers,
                                        PlacementVersion version) {
  Placement placement;
  placement.version = version;
  placement.num_layers = config.num_layers;
  placement.num_experts = config.num_experts;
  placement.workers = workers;
  placement.holders.resize(static_cast<size_t>(config.num_layers) * config.num_experts);
  const int64_t num_workers = static_cast<int64_t>(workers.size());
  for (int layer = 0; layer < config.num_layers; ++layer) {
    if (!config.IsMoeLayer(layer)) continue;
    if (workers.empty()) {
      return absl::InvalidArgumentError("the model has experts, but there is no expert worker");
    }
    for (int64_t i = 0; i < num_workers; ++i) {
      const int64_t end = (i + 1) * config.num_experts / num_workers;
      for (int64_t expert = i * config.num_experts / num_workers; expert < end; ++expert) {
        placement.holders[static_cast<size_t>(layer) * config.num_experts + expert] = {
            workers[i].id};
      }
    }
  }
  return placement;
}

}  // namespace tandem
