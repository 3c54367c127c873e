// The gateway's side of a deployment of several processes: serves the Registry, owns the placement,
// and gives ready attention workers to the step driver.
#ifndef TANDEM_GATEWAY_COORDINATOR_H_
#define TANDEM_GATEWAY_COORDINATOR_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/counters.h"
#include "common/transport/attention_link.h"
#include "gateway/membership.h"
#include "gateway/step_driver.h"

namespace tandem {

// Makes a link to an attention worker at an address. Called on a thread of its own for each,
// several at once; may block, for a bounded time that the end of the coordinator waits for.
using AttentionDialer = std::function<absl::StatusOr<std::unique_ptr<AttentionLink>>(
    const std::string& address, AttentionLink::Observer* observer)>;

// Thread-safe. One thread of its own feeds the Membership with time and carries out its actions.
class Coordinator {
 public:
  // `config` and `driver` must outlive the coordinator.
  Coordinator(const ModelConfig* config, MembershipOptions options, StepDriver* driver,
              AttentionDialer dial, std::function<void(bool)> on_serving_changed);
  // Ends every membership.
  ~Coordinator();

  // The service that workers dial; register it with the gateway's registry port.
  grpc::Service* service();

  struct View {
    bool serving = false;
    std::string detail;
    std::vector<std::pair<Member, MemberState>> members;
    absl::Time now;       // when it was looked
    Placement placement;  // in use
    Placement target;     // to be used next; the same when nothing is under way
    std::vector<std::string>
        refused;  // why, the last of each address; at most 16, the oldest first
  };
  View Look() const;
  // attention_workers, attention_workers_ready, expert_workers, expert_workers_ready,
  // workers_refused_total; of the model's experts over all layers model_experts,
  // experts_without_holder and experts_with_one_holder.
  CounterSnapshot Counters() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_COORDINATOR_H_
