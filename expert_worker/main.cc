// tandem-expert-worker: joins a gateway's registry, loads the experts that the placement gives it,
// and serves them. The composition root of an expert worker.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/digest.h"
#include "common/mode.h"
#include "common/service/progress.h"
#include "common/service/registry_client.h"
#include "common/service/service_host.h"
#include "common/service/worker_options.h"
#include "common/status.h"
#include "common/transport/grpc_expert_service.h"
#include "expert_worker/engine.h"
#include "kernels/backend.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

// Carries out load orders one after the other, the newest only.
class Loader {
 public:
  Loader(ExpertEngine* engine, ServiceHost* host, LoadProgress* progress)
      : engine_(engine), host_(host), progress_(progress), thread_([this] { Run(); }) {}
  ~Loader() {
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  void SetSelf(WorkerId self) { self_ = self; }
  void Load(Placement placement) {
    {
      std::lock_guard lock(mutex_);
      next_ = std::move(placement);
    }
    wake_.notify_all();
  }
  PlacementVersion loaded() const {
    std::lock_guard lock(mutex_);
    return loaded_;
  }
  absl::Status error() const {
    std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return next_ || ended_; });
      if (ended_) return;
      const Placement placement = *std::exchange(next_, std::nullopt);
      lock.unlock();
      const absl::Status status =
          engine_->Load(placement, self_, [this](float share) { progress_->Report(share); });
      if (status.ok()) {
        progress_->Report(1);
        host_->SetServing(true);
      }
      lock.lock();
      if (status.ok()) {
        loaded_ = placement.version;
      } else {
        error_ = status;
      }
    }
  }

  ExpertEngine* const engine_;
  ServiceHost* const host_;
  LoadProgress* const progress_;
  std::atomic<WorkerId> self_ = 0;
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::optional<Placement> next_;
  PlacementVersion loaded_;
  absl::Status error_;
  bool ended_ = false;
  std::thread thread_;
};

absl::Status Serve(const WorkerOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(const Dtype dtype, ParseMode(options.dtype));
  TANDEM_ASSIGN_OR_RETURN(const auto backend, kernels::CreateCpuBackend(options.threads));
  TANDEM_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model_dir));
  TANDEM_ASSIGN_OR_RETURN(const std::string digest, CheckpointDigest(*checkpoint));

  ExpertEngine engine(backend.get(), checkpoint.get(), {.dtype = dtype});
  GrpcExpertService service(&engine);
  TANDEM_ASSIGN_OR_RETURN(const auto host, ServiceHost::Start(options.listen, {service.service()},
                                                              {"tandem.v1.ExpertWorker"}));
  spdlog::info("expert worker on {} ({})", host->address(), backend->Description());
  LoadProgress progress("experts");
  Loader loader(&engine, host.get(), &progress);

  const auto counters = [&] {
    CounterSnapshot all = engine.Counters();
    for (auto& counter : service.Counters()) all.push_back(std::move(counter));
    all.emplace_back("mapped_tensors", checkpoint->mapped_tensors());
    all.emplace_back("mapped_bytes", checkpoint->mapped_bytes());
    all.emplace_back("loaded_percent", static_cast<int64_t>(progress.share() * 100));
    return all;
  };
  TANDEM_ASSIGN_OR_RETURN(const auto metrics,
                          MetricsHost::Start(options.listen, "tandem_expert", counters));

  std::mutex refused_mutex;
  absl::Status refused;
  std::atomic<bool> failed = false;
  v1::WorkerHello hello;
  hello.set_kind(v1::WORKER_KIND_EXPERT);
  hello.set_address(options.advertise.empty() ? host->address() : options.advertise);
  hello.set_incarnation(NewIncarnation());
  hello.set_digest(digest);
  hello.set_dtype(options.dtype);
  hello.set_numerics_class(backend->NumericsClass());
  hello.set_device(backend->Description());
  RegistryClient::Callbacks callbacks;
  callbacks.health = [&] {
    const PlacementVersion loaded = loader.loaded();
    return WorkerHealth{loaded.counter > 0, progress.share(), loaded, counters()};
  };
  callbacks.on_accepted = [&](WorkerId self, uint64_t) { loader.SetSelf(self); };
  callbacks.on_load = [&](Placement placement) { loader.Load(std::move(placement)); };
  callbacks.on_refused = [&](absl::Status status) {
    std::lock_guard lock(refused_mutex);
    refused = std::move(status);
    failed = true;
  };
  {
    RegistryClient registry(options.registry, hello, callbacks);
    WaitForEnd([&] { return failed || !loader.error().ok(); });
  }
  host->SetServing(false);
  host->Shutdown(kShutdownGrace);
  TANDEM_RETURN_IF_ERROR(loader.error());
  std::lock_guard lock(refused_mutex);
  return refused;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  tandem::BlockEndSignals();
  CLI::App app("Serves routed experts to Tandem's attention workers.");
  tandem::WorkerOptions options;
  options.AddTo(app);
  if (const auto code = tandem::ParseCommandLine(app, argc, argv)) return *code;
  const absl::Status status = tandem::Serve(options);
  if (status.ok()) return 0;
  spdlog::error("{}", std::string(status.message()));
  return 1;
}
