// The routed experts at expert workers, reached over links.
#ifndef TANDEM_ATTENTION_WORKER_DISPATCHED_EXPERTS_H_
#define TANDEM_ATTENTION_WORKER_DISPATCHED_EXPERTS_H_

#include <functional>
#include <memory>

#include "attention_worker/route_pattern.h"
#include "attention_worker/routed_experts.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/host_rows.h"
#include "kernels/backend.h"

namespace tandem {

// Reads rows and choice back, hands them to the dispatcher, and puts what returns onto the device;
// rows whose experts are at several workers are combined there.
class DispatchedExperts final : public RoutedExperts {
 public:
  // Both must outlive this.
  DispatchedExperts(kernels::Backend* backend, int top_k, ExpertDispatcher* dispatcher)
      : backend_(*backend), dispatcher_(*dispatcher), pattern_(backend, top_k) {}

  std::unique_ptr<Pending> Begin(const ExpertBatch& batch, std::function<void()> changed) override;
  CounterSnapshot Counters() const override { return dispatcher_.Counters(); }

 private:
  class OneLayer;

  kernels::Backend& backend_;
  ExpertDispatcher& dispatcher_;
  RoutePattern pattern_;
  HostRowsPool rows_pool_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_DISPATCHED_EXPERTS_H_
