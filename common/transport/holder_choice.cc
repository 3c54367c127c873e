#include "common/transport/holder_choice.h"

#include <algorithm>
#include <tuple>

#include "common/check.h"

namespace tandem {

std::map<int32_t, WorkerId> ChooseHolders(std::vector<ExpertDemand> demands,
                                          std::map<WorkerId, int64_t> work, uint64_t rotation) {
  const auto urgency = [](const ExpertDemand& demand) {
    return std::tuple(demand.holders.size() > 1, -demand.num_routes, demand.expert);
  };
  std::sort(demands.begin(), demands.end(),
            [&](const ExpertDemand& a, const ExpertDemand& b) { return urgency(a) < urgency(b); });

  std::map<int32_t, WorkerId> chosen;
  for (const ExpertDemand& demand : demands) {
    TANDEM_CHECK(!demand.holders.empty());
    const size_t count = demand.holders.size();
    const size_t first = (rotation + static_cast<uint64_t>(demand.expert)) % count;
    WorkerId best = demand.holders[first];
    for (size_t i = 1; i < count; ++i) {
      const WorkerId holder = demand.holders[(first + i) % count];
      if (work[holder] < work[best]) best = holder;
    }
    work[best] += PartWork(demand.num_routes, 1);
    chosen.emplace(demand.expert, best);
  }
  return chosen;
}

}  // namespace tandem
