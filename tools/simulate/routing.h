// Which experts rows choose, in place of a router.
#ifndef TANDEM_TOOLS_SIMULATE_ROUTING_H_
#define TANDEM_TOOLS_SIMULATE_ROUTING_H_

#include <cstdint>
#include <vector>

#include "common/model_config.h"
#include "tools/workload/lengths.h"

namespace tandem::simulate {

// Rows choose independently of each other, each its experts one after the other without repeating,
// in proportion to how popular they are: the expert of rank r in its layer by (r + 1)^-skew. 0: all
// alike. The ranks are drawn anew for each layer.
class Routing {
 public:
  Routing(const ModelConfig& model, double skew, WorkloadRandom& random);

  // Appends the experts of one row to `experts`.
  void Draw(int layer, WorkloadRandom& random, std::vector<int32_t>& experts) const;
  // [num_layers * num_experts]: in proportion to the tokens that go to each expert, as the planner
  // wants it.
  const std::vector<double>& load() const { return popularity_; }

 private:
  int num_experts_;
  int experts_per_token_;
  std::vector<double> popularity_;
  std::vector<double> cumulative_;  // of each layer, up to 1
};

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_ROUTING_H_
