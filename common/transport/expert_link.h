// The expert seam: one peer that computes routed experts. An attention worker's ExpertDispatcher
// speaks to every expert worker through one ExpertLink, whether that worker is a class in the same
// process or a machine behind gRPC.
#ifndef TANDEM_COMMON_TRANSPORT_EXPERT_LINK_H_
#define TANDEM_COMMON_TRANSPORT_EXPERT_LINK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/placement.h"
#include "common/request_tag.h"
#include "common/tensor.h"

namespace tandem {

// Names one attempt at one part of one layer's dispatch; unique within a sender's life.
struct DispatchId {
  uint64_t incarnation = 0;  // of the sending attention worker's process
  uint64_t step = 0;         // the gateway's number; of several gateways' steps in one walk, one's
  uint32_t layer = 0;
  uint32_t part = 0;     // which worker's share of the layer
  uint32_t attempt = 0;  // 0 first
  bool operator==(const DispatchId&) const = default;
};

// Rows of hidden state with their routes for one layer and one worker.
//
// Row i takes the experts route_experts[route_offsets[i] .. route_offsets[i + 1]), in the order of
// the router's ranking. A row with combined[i] has all its routes here: it is answered by one row,
// Combine(...) of its experts' rows. Any other row is answered by one row per route, in that order.
struct ExpertRequest {
  DispatchId id;
  PlacementVersion placement;
  absl::Duration time_left = absl::InfiniteDuration();  // work that starts later is dropped
  TensorView rows;                                      // [num_rows, hidden] in the wire dtype
  std::shared_ptr<const void> rows_owner;               // keeps `rows` alive
  std::vector<int32_t> route_offsets;                   // [num_rows + 1], from 0
  std::vector<int32_t> route_experts;                   // [num_routes]
  std::vector<float> route_weights;                     // [num_routes]; used for combined rows only
  std::vector<uint8_t> combined;                        // [num_rows]
  TracesOfPart traces;                                  // of whoever has rows in it, for logs

  int num_rows() const { return static_cast<int>(combined.size()); }
  int num_routes() const { return static_cast<int>(route_experts.size()); }
  // Rows of the answer.
  int num_output_rows() const {
    int n = 0;
    for (int i = 0; i < num_rows(); ++i)
      n += combined[i] ? 1 : route_offsets[i + 1] - route_offsets[i];
    return n;
  }
};

struct ExpertReply {
  absl::Status status;                // if not OK, there are no rows
  TensorView rows;                    // [num_output_rows, hidden] in the request's dtype
  std::shared_ptr<const void> owner;  // keeps `rows` alive
};

// One peer. Thread-safe.
class ExpertLink {
 public:
  using Done = std::function<void(ExpertReply)>;
  virtual ~ExpertLink() = default;

  // Sends one request. `done` is called exactly once, from any thread, possibly before Send
  // returns: with the rows, or with an error. Never later than request->time_left plus a second.
  // `done` must not block.
  //   NOT_FOUND            the worker has not loaded one of the experts
  //   FAILED_PRECONDITION  the placement's version has been retired at the worker
  //   DEADLINE_EXCEEDED    time_left ran out, at the worker or on the way
  //   RESOURCE_EXHAUSTED   too many bytes are outstanding on this link
  //   UNAVAILABLE          the worker cannot be reached, or the connection broke
  //   DATA_LOSS            the answer did not match its checksum or the request
  virtual void Send(std::shared_ptr<const ExpertRequest> request, Done done) = 0;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_EXPERT_LINK_H_
