#include "deployment/expert_role.h"

#include <mutex>
#include <utility>

#include "common/status.h"
#include "common/transport/grpc_expert_service.h"
#include "expert_worker/engine.h"

namespace tandem {
namespace {

class ExpertRole : public WorkerRole {
 public:
  explicit ExpertRole(const WorkerParts& parts)
      : engine_(parts.backend, parts.checkpoint, {.dtype = parts.dtype}), service_(&engine_) {}

  WorkerNames names() const override {
    return {v1::WORKER_KIND_EXPERT, "expert worker", "experts", "tandem.v1.ExpertWorker",
            "tandem_expert"};
  }
  grpc::Service* service() override { return service_.service(); }

  // The placement says which experts are this worker's.
  absl::Status LoadAtStart(const std::function<void(float)>&) override { return absl::OkStatus(); }

  absl::Status Load(const Placement& placement, WorkerId self,
                    const std::function<void(float)>& progress) override {
    TANDEM_RETURN_IF_ERROR(engine_.Load(placement, self, progress));
    std::lock_guard lock(mutex_);
    placement_ = placement.version;
    return absl::OkStatus();
  }

  void Use(Placement) override {}  // requests name the experts that they are for

  bool loaded() const override { return placement().counter > 0; }
  PlacementVersion placement() const override {
    std::lock_guard lock(mutex_);
    return placement_;
  }

  CounterSnapshot Counters() const override {
    CounterSnapshot all = engine_.Counters();
    for (auto& counter : service_.Counters()) all.push_back(std::move(counter));
    return all;
  }

 private:
  mutable std::mutex mutex_;
  PlacementVersion placement_;  // guarded by mutex_: what is loaded

  // The service waits for the engine's answers when it goes, so it goes first.
  ExpertEngine engine_;
  GrpcExpertService service_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerRole>> MakeExpertRole(const WorkerParts& parts) {
  return std::make_unique<ExpertRole>(parts);
}

}  // namespace tandem
