// The expert worker's engine: routed experts over requests that wait, merged by layer.
#ifndef TANDEM_EXPERT_WORKER_ENGINE_H_
#define TANDEM_EXPERT_WORKER_ENGINE_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "common/checkpoint/checkpoint.h"
#include "common/counters.h"
#include "common/placement.h"
#include "common/transport/expert_link.h"
#include "kernels/backend.h"

namespace tandem {

struct ExpertEngineOptions {
  Dtype dtype = Dtype::kBF16;  // mode
  // Runs requests on the caller's thread: for one process, where the caller would only wait.
  bool inline_execution = false;
  int64_t max_waiting_bytes = int64_t{1} << 30;
};

// Stateless but for weights. As an ExpertLink it is the in-process peer; the gRPC service calls the
// same interface. One thread computes; what waits for the same layer, from any sender, is merged
// into one call; it never waits for more to come. Thread-safe.
class ExpertEngine : public ExpertLink {
 public:
  // `backend` and `checkpoint` must outlive the engine.
  ExpertEngine(kernels::Backend* backend, const Checkpoint* checkpoint,
               ExpertEngineOptions options);
  ~ExpertEngine() override;

  // Loads every expert that `placement` gives to `self` and is not yet loaded; reports the share
  // done. Blocks; call it on a thread of its own. Experts already loaded go on serving meanwhile.
  absl::Status Load(const Placement& placement, WorkerId self,
                    const std::function<void(float)>& progress);

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override;

  // requests_total, merged_requests_total, rows_total, routes_total, dropped_total, requests_live,
  // experts_loaded
  CounterSnapshot Counters() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_EXPERT_WORKER_ENGINE_H_
