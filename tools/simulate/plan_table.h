// What the placement planner does to deployments of any size.
#ifndef TANDEM_TOOLS_SIMULATE_PLAN_TABLE_H_
#define TANDEM_TOOLS_SIMULATE_PLAN_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model_config.h"

namespace tandem::simulate {

struct PlanTableOptions {
  ModelConfig model;
  std::vector<int> workers;
  int copies = 2;
  double skew = 0;  // as in Routing
  uint64_t seed = 1;
};

// One size of deployment: planned from nothing, then for one worker more, one less, and for the
// same once more.
struct PlanRow {
  int workers = 0;
  double plan_ms = 0;    // of real time on this machine: the median of some plans from nothing
  double replan_ms = 0;  // when one has joined
  int64_t least_experts = 0, most_experts = 0;  // that a worker has, over all layers
  double busiest_share = 0;                     // BusiestShare
  // Of all layers together, how much more work the busiest worker has than an equal part: for each
  // expert one for its weights and one by its share of the layer's tokens, by all holders equally.
  double busiest_in_all = 0;
  int64_t join_moves =
      0;  // experts that are loaded by somebody when one joins, first copies or not
  int64_t leave_moves = 0;  // when one drains
  int64_t fair_moves = 0;   // an equal share of all that is held: what moves at least
  int64_t idle_moves = 0;   // when nothing has changed
};

absl::StatusOr<PlanRow> PlanFor(const PlanTableOptions& options, int workers);

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_PLAN_TABLE_H_
