// The expert worker's engine: routed experts over requests that wait, merged by layer.
#ifndef TANDEM_EXPERT_WORKER_ENGINE_H_
#define TANDEM_EXPERT_WORKER_ENGINE_H_

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "common/counters.h"
#include "common/model_config.h"
#include "common/mutex.h"
#include "common/transport/expert_link.h"
#include "expert_worker/engine_core.h"
#include "expert_worker/loaded_experts.h"
#include "kernels/backend.h"

namespace tandem {

// Stateless but for weights. As an ExpertLink it is the in-process peer; the gRPC service calls the
// same interface. One thread computes; what waits for the same layer, from any sender, is merged
// into one call; it never waits for more to come. Thread-safe.
class ExpertEngine : public ExpertLink {
 public:
  // All but options must outlive the engine. Experts may be loaded and let go while it runs.
  ExpertEngine(kernels::Backend* backend, const ModelConfig* config, const LoadedExperts* experts,
               ExpertEngineOptions options);
  ~ExpertEngine() override;

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override;

  // requests_total, merged_requests_total, rows_total, routes_total, dropped_total, requests_live,
  // requests_waiting, experts_loaded, expert_loads_total, expert_bytes, busy_ms, busy_us_total
  CounterSnapshot Counters() const;
  // Tokens that each expert was computed for, [num_layers * num_experts], since the last call.
  std::vector<int64_t> TakeExpertTokens();
  // How long the engine's thread has been at one merged call; zero while it waits.
  absl::Duration busy_for() const;
  // In merged calls that are over.
  absl::Duration busy_total() const { return core_.busy_total(); }

 private:
  void RunThread();

  Mutex mutex_;
  CondVar changed_;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  ExpertEngineCore core_;
  std::thread thread_;  // turns the core
};

}  // namespace tandem

#endif  // TANDEM_EXPERT_WORKER_ENGINE_H_
