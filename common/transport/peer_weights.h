// Asks other expert workers for weights that they have packed.
#ifndef TANDEM_COMMON_TRANSPORT_PEER_WEIGHTS_H_
#define TANDEM_COMMON_TRANSPORT_PEER_WEIGHTS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/packed_unit.h"
#include "common/placement.h"
#include "common/service/client_trust.h"
#include "common/transport/weights_frame.h"

namespace tandem {

// Of all that a worker asked for, in its life.
struct PeerWeightsCounts {
  std::atomic<int64_t> fetched = 0;  // experts
  std::atomic<int64_t> fetched_bytes = 0;
  std::atomic<int64_t> failed = 0;  // questions to one worker
};

struct PeerWeightsOptions {
  std::shared_ptr<const ClientTrust> trust;  // null: plain text
  WeightsOrigin origin;                      // of what is wanted
  WorkerId self = 0;                         // is not asked
  int num_experts = 0;                       // of a layer
  // Whether what is being fetched is still wanted; asked often. Null: it is.
  std::function<bool()> wanted;
  PeerWeightsCounts* counts = nullptr;              // must outlive this
  absl::Duration silence_limit = absl::Seconds(3);  // of a worker that is asked
  absl::Duration limit = absl::Seconds(20);         // for one expert, whoever is asked
};

// For one order to load. Who fails once, but for having not this one expert or too much to do, is
// asked no more. Used by one thread, which does the work of its connections: what is fetched costs
// no other thread's time.
class PeerWeights {
 public:
  PeerWeights(PeerWeightsOptions options, const std::vector<Placement::Source>& sources);
  ~PeerWeights();

  // Blocks until a worker has sent the expert, or kMostAsked have not: null. Cost: a copy.
  std::shared_ptr<const std::byte> Fetch(int layer, int expert, const PackedLayout& layout);

  static constexpr int kMostAsked = 3;  // for one expert

 private:
  struct Peer;

  absl::StatusOr<std::shared_ptr<const std::byte>> Ask(Peer& peer, const v1::WeightsLabel& label,
                                                       absl::Time until);

  const PeerWeightsOptions options_;
  std::vector<std::unique_ptr<Peer>> peers_;
  size_t next_ = 0;  // whose turn it is: they are asked one after the other
  bool some_came_ = false;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_PEER_WEIGHTS_H_
