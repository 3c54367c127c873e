// Decides which expert workers hold which experts.
#ifndef TANDEM_GATEWAY_PLACEMENT_PLANNER_H_
#define TANDEM_GATEWAY_PLACEMENT_PLANNER_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model_config.h"
#include "common/placement.h"

namespace tandem {

// An expert worker, as the planner sees it.
struct ExpertHost {
  Placement::Worker worker;
  // How many experts its memory holds, over all layers.
  int64_t capacity = std::numeric_limits<int64_t>::max();
  // Names memory that several hosts share, and says how many it holds of all of them together.
  // Empty: it is the host's own.
  std::string memory;
  int64_t memory_capacity = std::numeric_limits<int64_t>::max();
  // [num_layers * num_experts], or empty for none: what is in its memory or on the way there, and
  // stays until the next placement is in use everywhere.
  std::vector<bool> held;
  bool leaving = false;  // keeps an expert only for as long as nobody else can have it
};

struct PlanRequest {
  const ModelConfig* config = nullptr;
  std::vector<ExpertHost> hosts;
  // [num_layers * num_experts], or empty for the same of each: how many tokens went to each expert.
  std::vector<double> load;
  const Placement* current = nullptr;  // null: none
  int max_copies = 1;                  // of one expert, itself included
  PlacementVersion version;            // of the new placement
  // Only what nobody holds any more goes to somebody, all else stays as `current` says: what steps
  // wait for is not to wait for what is merely better. The plan is deferred.
  bool repair = false;
};

struct Plan {
  Placement placement;  // its workers are all hosts, in the order of the request
  // Something could not be put where it belongs for want of memory that is free once this placement
  // is in use everywhere: plan again then, some times only, since copies for which memory is tight
  // may go to and fro. An expert that nobody has any more may have no holder
  // meanwhile.
  bool deferred = false;
};

// A pure function: the same request gives the same plan.
//   * Every expert of every MoE layer has an owner, named first among its holders. Within each
//     layer the owners' work is equal, but for one expert and as far as capacities allow; the work
//     for an expert is one part for its weights and one by its share of the layer's tokens. Where
//     there are more hosts than a layer has experts, work is equal over all layers instead.
//   * Memory that is left goes to further copies, up to max_copies, hot experts first.
//   * An expert stays with the owner that `current` names, then goes to who holds it already, as
//     far as that is fair: so little is moved, and nothing when nothing has changed.
//   * No host, and none that share a memory together, have to hold more than their capacity at any
//     time, what they still hold counted.
// Costs about (experts * hosts) steps.
//   INVALID_ARGUMENT    there is no host that stays, but the model has experts
//   RESOURCE_EXHAUSTED  the hosts that stay cannot hold all experts; says how many each side is
absl::StatusOr<Plan> PlanPlacement(const PlanRequest& request);

// How much longer than with equal shares a layer takes, on average over the layers with experts:
// the busiest worker's part of a layer's work (as in PlanPlacement) times the number of workers
// that hold any, if every expert's work is shared by its holders equally. 1 if `placement` has no
// holders.
double BusiestShare(const Placement& placement, const std::vector<double>& load);

// All experts at one worker.
Placement PlacementOfOne(const ModelConfig& config, const Placement::Worker& worker,
                         PlacementVersion version);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_PLACEMENT_PLANNER_H_
