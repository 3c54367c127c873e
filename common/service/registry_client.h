// A worker's membership in a deployment: joins the gateway's registry, reports, takes orders.
#ifndef TANDEM_COMMON_SERVICE_REGISTRY_CLIENT_H_
#define TANDEM_COMMON_SERVICE_REGISTRY_CLIENT_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/placement.h"
#include "proto/registry.pb.h"

namespace tandem {

// What a worker says of itself at every heartbeat.
struct WorkerHealth {
  bool ready = false;
  float loaded = 0;            // share of its weights, 0 to 1
  PlacementVersion placement;  // newest loaded (expert), oldest in use (attention)
  absl::Duration busy;         // how long its engine has been at one piece of work
  CounterSnapshot counters;
};

Placement PlacementFromProto(const v1::PlacementOrder& order);
v1::PlacementOrder PlacementToProto(const Placement& placement);

// Dials, and dials again with a growing pause (at most 1 s) when the connection breaks, until it is
// destroyed or refused. Callbacks must not block; all but `health` come one at a time, from the
// client's thread.
class RegistryClient {
 public:
  struct Callbacks {
    // At every hello and heartbeat, from the client's thread or one beside it.
    std::function<WorkerHealth()> health;
    std::function<void(WorkerId self, uint64_t gateway_incarnation)> on_accepted;
    std::function<void(Placement)> on_load;  // expert workers
    // Attention workers: use it from now on. Expert workers: no attention worker uses an older one.
    std::function<void(Placement)> on_use;
    // The registry will not have this worker: wrong checkpoint, mode or numerics class. Final.
    std::function<void(absl::Status)> on_refused;
  };

  RegistryClient(std::string address, v1::WorkerHello hello, Callbacks callbacks);
  ~RegistryClient();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_REGISTRY_CLIENT_H_
