// The gateway's life: the public service, in front of a deployment in this process or of workers
// that dial its registry.
#ifndef TANDEM_DEPLOYMENT_GATEWAY_PROCESS_H_
#define TANDEM_DEPLOYMENT_GATEWAY_PROCESS_H_

#include <string>

#include "absl/status/status.h"
#include "common/command_line.h"
#include "common/service/service_host.h"
#include "common/service/trust_options.h"
#include "deployment/embedded.h"
#include "gateway/client_limits.h"
#include "gateway/live_calls.h"
#include "gateway/request_log.h"
#include "gateway/scheduler.h"

namespace tandem {

struct GatewayOptions {
  ListenOptions listen{"127.0.0.1:8470", "", false};
  PublicTrustOptions public_trust;  // towards clients
  PeerTrustOptions trust;           // towards workers
  std::string registry;  // host:port for workers to dial; empty: everything in this process
  int attention_workers = 1;
  int expert_workers = 1;
  int expert_copies = 2;
  EmbeddedOptions embedded;  // with a registry only the model's folder counts
  std::string dtype = "bf16";
  SchedulerPolicy policy;
  double grace_s = 20;
  double hang_limit_s = 120;
  double load_limit_s = 60;
  int64_t max_unread_bytes = LiveCallLimits{}.unread_bytes;
  ClientLimitOptions client_limits;
  std::string log_requests = "failed";  // none, failed or all
  double stall_limit_s = absl::ToDoubleSeconds(LiveCallLimits{}.stall);

  void AddTo(CommandLine& app);
};

// Serves until SIGTERM or SIGINT and lets what runs finish within the grace (OK), or until the
// gateway fails to start: one sentence. Requires BlockEndSignals.
absl::Status RunGateway(GatewayOptions options);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_GATEWAY_PROCESS_H_
