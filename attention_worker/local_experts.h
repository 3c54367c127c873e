// The routed experts of this process, on the attention worker's own device.
#ifndef TANDEM_ATTENTION_WORKER_LOCAL_EXPERTS_H_
#define TANDEM_ATTENTION_WORKER_LOCAL_EXPERTS_H_

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "attention_worker/route_pattern.h"
#include "attention_worker/routed_experts.h"
#include "kernels/backend.h"

namespace tandem {

// Nothing is read back: the router's choice stays on the device, experts and combination are called
// there, and a layer is never waited for.
class LocalExperts final : public RoutedExperts {
 public:
  // `layers`, by layer of the model, null where it is dense; every expert is loaded. All must
  // outlive this.
  LocalExperts(kernels::Backend* backend, int top_k,
               std::vector<const kernels::ExpertLayer*> layers);

  std::unique_ptr<Pending> Begin(const ExpertBatch& batch, std::function<void()> changed) override;

  // layers_total, rows_total, routes_total
  CounterSnapshot Counters() const override;

 private:
  kernels::Backend& backend_;
  const std::vector<const kernels::ExpertLayer*> layers_;
  RoutePattern pattern_;
  std::atomic<int64_t> layers_total_{0};
  std::atomic<int64_t> rows_total_{0};
  std::atomic<int64_t> routes_total_{0};
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_LOCAL_EXPERTS_H_
