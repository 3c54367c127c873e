#include "attention_worker/local_experts.h"

#include <utility>

namespace tandem {
namespace {

class Called final : public RoutedExperts::Pending {
 public:
  std::optional<absl::Status> Poll() override { return absl::OkStatus(); }
  RoutedExperts::Clock::time_point wake_time() const override { return {}; }
};

}  // namespace

LocalExperts::LocalExperts(kernels::Backend* backend, int top_k,
                           std::vector<const kernels::ExpertLayer*> layers)
    : backend_(*backend), layers_(std::move(layers)), pattern_(backend, top_k) {}

std::unique_ptr<RoutedExperts::Pending> LocalExperts::Begin(const ExpertBatch& batch,
                                                            std::function<void()>) {
  batch.clock->End(LayerPart::kAttention);
  const int64_t num_rows = batch.rows.dim(0);
  const int64_t num_routes = batch.expert_ids.elements();
  ++layers_total_;
  rows_total_ += num_rows;
  routes_total_ += num_routes;
  Workspace::Scope scope(batch.workspace);
  const auto expert_rows =
      batch.workspace->Take(batch.rows.dtype, {num_routes, batch.rows.width()});
  backend_.ExpertMlp({batch.rows, *layers_[batch.layer], batch.expert_ids.reshaped({num_routes}),
                      pattern_.RowsOfRoutes(num_rows), expert_rows});
  backend_.Combine(
      {expert_rows, pattern_.Offsets(num_rows), batch.weights.reshaped({num_routes}), batch.out});
  batch.clock->End(LayerPart::kExpertWait);  // there is no other work while they are computed
  return std::make_unique<Called>();
}

CounterSnapshot LocalExperts::Counters() const {
  return {{"layers_total", layers_total_.load()},
          {"rows_total", rows_total_.load()},
          {"routes_total", routes_total_.load()}};
}

}  // namespace tandem
