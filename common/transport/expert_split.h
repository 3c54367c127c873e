// Splits the routes of a layer's rows into one request per expert worker.
#ifndef TANDEM_COMMON_TRANSPORT_EXPERT_SPLIT_H_
#define TANDEM_COMMON_TRANSPORT_EXPERT_SPLIT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "common/placement.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/expert_link.h"

namespace tandem {

// One worker's share. A route is named by row * top_k + rank.
struct ExpertPart {
  WorkerId worker = 0;
  // Rows and routes are filled in; id, placement and time_left are the sender's to set.
  std::shared_ptr<ExpertRequest> request;
  std::vector<int32_t> rows;    // of the batch, one per row of the request, ascending
  std::vector<int32_t> routes;  // of the batch, one per route of the request, ascending
};

struct ExpertSplit {
  std::vector<ExpertPart> parts;
  std::vector<int32_t> unplaced;  // routes for which no worker was chosen, ascending
};

// Gives each route to the worker that `choose` names for its expert (asked once per expert). A row
// all of whose top_k routes are in `routes` and go to one worker is combined there. Rows are
// referenced if a part has all of the batch's and the batch has an owner, and copied otherwise.
// Requires `routes` ascending.
ExpertSplit SplitRoutes(const RowBatch& batch, absl::Span<const int32_t> routes,
                        const std::function<std::optional<WorkerId>(int expert)>& choose);

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_EXPERT_SPLIT_H_
