#include "deployment/expert_role.h"

#include <algorithm>
#include <utility>

#include "common/mutex.h"
#include "common/status.h"
#include "common/transport/grpc_expert_service.h"
#include "common/transport/shm_expert_service.h"
#include "deployment/memory_needs.h"
#include "expert_worker/engine.h"
#include "expert_worker/loaded_experts.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// Of all experts, those that a placement gives to `self`; they are all of one size.
double ShareOf(const Placement& placement, WorkerId self) {
  int64_t all = 0, given = 0;
  for (const auto& holders : placement.holders) {
    if (holders.empty()) continue;
    ++all;
    given += std::count(holders.begin(), holders.end(), self);
  }
  return all == 0 ? 0 : static_cast<double>(given) / static_cast<double>(all);
}

class ExpertRole : public WorkerRole {
 public:
  ExpertRole(const WorkerParts& parts, std::unique_ptr<LoadedExperts> experts)
      : backend_(*parts.backend),
        checkpoint_(*parts.checkpoint),
        format_(parts.format),
        dtype_(parts.dtype),
        experts_(std::move(experts)),
        engine_(parts.backend, &parts.checkpoint->config(), experts_.get(), {.dtype = parts.dtype}),
        service_(&engine_) {
    if (!parts.options->use_shared_memory()) return;
    auto shm_service = ShmExpertService::Start(parts.incarnation, &engine_);
    if (shm_service.ok()) {
      shm_service_ = *std::move(shm_service);
    } else {
      spdlog::info("gRPC only: {}", std::string(shm_service.status().message()));
    }
  }

  WorkerNames names() const override {
    return {v1::WORKER_KIND_EXPERT, "expert worker", "experts", "tandem.v1.ExpertWorker",
            "tandem_expert"};
  }
  grpc::Service* service() override { return service_.service(); }

  // The placement says which experts are this worker's.
  absl::Status LoadAtStart(const std::function<void(float)>&) override { return absl::OkStatus(); }

  absl::Status Load(const Placement& placement, WorkerId self,
                    const std::function<void(float)>& progress) override {
    TANDEM_RETURN_IF_ERROR(
        CheckMemory({static_cast<int64_t>(ShareOf(placement, self) *
                                          static_cast<double>(ExpertBytes(checkpoint_, format_))),
                     0, WorkBytes(backend_, checkpoint_.config(), dtype_)},
                    LimitsOf(backend_)));
    TANDEM_RETURN_IF_ERROR(experts_->Load(placement, self, progress));
    MutexLock lock(mutex_);
    placement_ = placement.version;
    return absl::OkStatus();
  }

  void Use(Placement) override {}  // requests name the experts that they are for
  void Retire(PlacementVersion oldest_in_use) override { experts_->Retire(oldest_in_use); }

  bool loaded() const override { return placement().counter > 0; }
  PlacementVersion placement() const override {
    MutexLock lock(mutex_);
    return placement_;
  }

  absl::Duration busy_for() const override { return engine_.busy_for(); }
  CounterSnapshot Counters() const override {
    CounterSnapshot all = engine_.Counters();
    for (auto& counter : service_.Counters()) all.push_back(std::move(counter));
    if (shm_service_ != nullptr) {
      for (auto& counter : shm_service_->Counters()) all.push_back(std::move(counter));
    }
    return all;
  }

 private:
  const kernels::Backend& backend_;
  const Checkpoint& checkpoint_;
  const WeightFormat format_;
  const Dtype dtype_;

  mutable Mutex mutex_;
  PlacementVersion placement_ ABSL_GUARDED_BY(mutex_);  // what is loaded

  // Each uses those above it; the services wait for the engine's answers when they go.
  const std::unique_ptr<LoadedExperts> experts_;
  ExpertEngine engine_;
  GrpcExpertService service_;
  std::unique_ptr<ShmExpertService> shm_service_;  // null: none
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerRole>> MakeExpertRole(const WorkerParts& parts) {
  TANDEM_ASSIGN_OR_RETURN(auto experts,
                          LoadedExperts::Create(parts.checkpoint, parts.backend, parts.format));
  return std::make_unique<ExpertRole>(parts, std::move(experts));
}

}  // namespace tandem
