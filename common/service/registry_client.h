// A worker's membership in a deployment: joins the gateway's registry, reports, takes orders.
#ifndef TANDEM_COMMON_SERVICE_REGISTRY_CLIENT_H_
#define TANDEM_COMMON_SERVICE_REGISTRY_CLIENT_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/placement.h"
#include "common/service/client_trust.h"
#include "proto/registry.pb.h"

namespace tandem {

// What a worker says of itself at every heartbeat.
struct WorkerHealth {
  bool ready = false;
  float loaded = 0;            // share of its weights, 0 to 1
  PlacementVersion placement;  // newest loaded (expert), oldest in use (attention)
  absl::Duration busy;         // how long its engine has been at one piece of work
  absl::Duration load_idle;    // how long it has been at loading without any progress
  CounterSnapshot counters;
  bool draining = false;                    // it wants to end as soon as nobody needs it
  absl::Duration drain_left;                // and waits for that for so long
  std::optional<uint64_t> expert_capacity;  // as in v1::WorkerHeartbeat, as what follows
  std::vector<int64_t> expert_tokens;
  PlacementVersion failed;         // counter 0: none
  std::vector<bool> held_experts;  // if there is one
};

Placement PlacementFromProto(const v1::PlacementOrder& order);
v1::PlacementOrder PlacementToProto(const Placement& placement);
// v1::WorkerHello's held_experts. Bits that fill the last byte are 0, and come back as such.
std::string PackBits(const std::vector<bool>& bits);
std::vector<bool> UnpackBits(const std::string& bytes);

// Dials, and dials again with a growing pause (at most 1 s) when the connection breaks, until it is
// destroyed or refused. Callbacks must not block; all but `health` come one at a time, from the
// client's thread.
class RegistryClient {
 public:
  struct Callbacks {
    // At every attempt to join.
    std::function<v1::WorkerHello()> hello;
    // At every heartbeat, from a thread beside the client's.
    std::function<WorkerHealth()> health;
    std::function<void(WorkerId self, uint64_t gateway_incarnation)> on_accepted;
    std::function<void(Placement)> on_load;  // expert workers
    // Attention workers: use it from now on. Expert workers: no attention worker uses an older one.
    std::function<void(Placement)> on_use;
    std::function<void()> on_drain;     // it is to do as on SIGTERM
    std::function<void()> on_released;  // nobody needs this worker any more, which drains
    std::function<void()> on_lost;      // the membership that on_accepted began is over
    // The registry will not have this worker: wrong checkpoint, mode or numerics class. Final.
    std::function<void(absl::Status)> on_refused;
  };

  // `trust` null: plain text.
  RegistryClient(std::string address, Callbacks callbacks,
                 std::shared_ptr<const ClientTrust> trust = nullptr);
  ~RegistryClient();

  // The next heartbeat is sent at once.
  void ReportNow();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_REGISTRY_CLIENT_H_
