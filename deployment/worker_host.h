// A worker's life, whatever it works on: opens the checkpoint, serves health and metrics while
// weights load, joins the gateway's registry, takes its orders, reports, and ends.
#ifndef TANDEM_DEPLOYMENT_WORKER_HOST_H_
#define TANDEM_DEPLOYMENT_WORKER_HOST_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/command_line.h"
#include "common/counters.h"
#include "common/mode.h"
#include "common/mutex.h"
#include "common/placement.h"
#include "common/service/progress.h"
#include "common/service/registry_client.h"
#include "common/service/service_host.h"
#include "common/service/trust_options.h"
#include "common/tensor.h"
#include "common/work_clock.h"
#include "deployment/backend.h"
#include "deployment/checkpoint_watch.h"
#include "deployment/worker_duties.h"
#include "kernels/backend.h"
#include "proto/registry.pb.h"

namespace tandem {

constexpr char kWeightsFromCheckpoint[] = "checkpoint";
constexpr char kWeightsFromPeers[] = "peers";
constexpr char kWeightsFromAuto[] = "auto";

// What every worker takes on its command line.
struct WorkerOptions {
  std::string model_dir;
  std::string registry;
  std::string advertise;  // address that others dial; empty: where it listens
  std::string dtype = "bf16";
  std::string expert_link = "auto";  // or "grpc"
  int64_t expert_memory_bytes = 0;   // for experts' weights; 0: what there is
  double load_share = 0.2;           // of a core, that loading experts takes beside running work
  std::string weights_from = kWeightsFromAuto;  // that experts are loaded from
  int drain_limit_s = 60;  // for others to take over what a worker has that is to end
  BackendOptions backend;
  ListenOptions listen{"127.0.0.1:0", "", false};
  PeerTrustOptions trust;

  void AddTo(CommandLine& app);
  void AddExpertOptionsTo(CommandLine& app);
  // Between attention and expert workers of one machine.
  bool use_shared_memory() const { return expert_link == "auto"; }
};

// What a role is made from. The pointers outlive the role.
struct WorkerParts {
  const WorkerOptions* options = nullptr;
  kernels::Backend* backend = nullptr;
  const Checkpoint* checkpoint = nullptr;
  Dtype dtype = Dtype::kBF16;  // mode
  WeightFormat format = WeightFormat::kBF16;
  std::function<std::string()> digest;  // of the checkpoint; known before the worker joins
  std::string numerics_class;
  uint64_t incarnation = 0;                // names this process's life
  std::shared_ptr<const PeerTrust> trust;  // null: plain text
};

// How a kind of worker is called.
struct WorkerNames {
  v1::WorkerKind kind = v1::WORKER_KIND_UNSPECIFIED;
  std::string worker;                   // in logs: "expert worker"
  std::string weights;                  // what it loads: "experts"
  std::string health;                   // the full name of its service: "tandem.v1.ExpertWorker"
  std::string metrics;                  // prefix: "tandem_expert"
  PeerRole role = PeerRole::kOperator;  // in its certificate
  int max_message_bytes = 64 << 20;     // that its service takes
};

// What a kind of worker does in a worker's life. Thread-safe but for what is said of threads.
class WorkerRole {
 public:
  virtual ~WorkerRole() = default;

  virtual WorkerNames names() const = 0;
  // Served from before anything is loaded until shortly before the role is destroyed.
  virtual std::vector<grpc::Service*> services() = 0;

  // Loads what needs no order; reports the share done. Once, first, on the thread that loads. An
  // error ends the worker with its sentence.
  virtual absl::Status LoadAtStart(const std::function<void(float)>& progress) = 0;
  // Carries out an order to load what `placement` gives to `self`, on the same thread; of orders
  // that came meanwhile only the newest. Errors as above, but for ABORTED: not loaded, and other
  // orders are awaited. Once `superseded` says so there is a newer order.
  virtual absl::Status Load(const Placement& placement, WorkerId self,
                            const std::function<bool()>& superseded,
                            const std::function<void(float)>& progress) = 0;
  // A placement is in use from now on. Must not block.
  virtual void Use(Placement placement) = 0;
  // The same, on the thread that loads, where there is time to let go of what older ones named.
  virtual void Retire(PlacementVersion oldest_in_use) = 0;

  // What only its kind says: when it joins, and at a heartbeat.
  virtual void Introduce(v1::WorkerHello&) const {}
  virtual void Report(WorkerHealth&) {}

  // Whether it has loaded what it needs to serve; once true always true.
  virtual bool loaded() const = 0;
  // The newest that it has loaded (expert), the oldest that it uses (attention); counter 0 for
  // none.
  virtual PlacementVersion placement() const = 0;
  // How long the engine has been at one piece of work; zero while it waits or there is none yet.
  virtual absl::Duration busy_for() const = 0;
  virtual CounterSnapshot Counters() const = 0;
  // What its engine measures besides, named as Prometheus is to see it; for ever the same.
  virtual std::shared_ptr<prometheus::Collectable> Histograms() const = 0;
};

using WorkerRoleFactory =
    std::function<absl::StatusOr<std::unique_ptr<WorkerRole>>(const WorkerParts& parts)>;

class WorkerHost {
 public:
  WorkerHost(WorkerOptions options, WorkerRoleFactory make_role);
  ~WorkerHost();

  // Lives until SIGTERM or SIGINT, or until the gateway drains it (OK), or the worker fails to
  // start or load, or the registry refuses it: one sentence. After SIGTERM it goes on until the
  // gateway says that nobody needs it, is gone, or the drain limit has passed; a second signal ends
  // it at once. At most once. Requires BlockEndSignals.
  absl::Status Serve();

 private:
  absl::Status Join();
  void Drain();
  std::string Address() const;  // that others dial
  v1::WorkerHello Hello() const;
  RegistryClient::Callbacks Callbacks();
  CounterSnapshot Counters() const;
  void RunLoads();
  void Fail(const absl::Status& status);

  const WorkerOptions options_;
  const WorkerRoleFactory make_role_;

  std::atomic<bool> failed_ = false;       // error_ is set
  std::atomic<bool> drain_asked_ = false;  // by the gateway
  std::atomic<bool> stopping_ = false;     // what loads is to end
  mutable Mutex mutex_;
  CondVar wake_;
  WorkerDuties duties_ ABSL_GUARDED_BY(mutex_);
  WorkClock load_clock_;  // of the thread that loads; a piece is what its progress shows
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::string digest_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<RegistryClient> registry_ ABSL_GUARDED_BY(mutex_);  // once the digest is known
  absl::Status error_ ABSL_GUARDED_BY(mutex_);                        // the first

  // In the order in which they come up; they go down in the reverse order.
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::optional<CheckpointWatch> watch_;
  WorkerParts parts_;
  std::unique_ptr<WorkerRole> role_;
  LoadProgress digest_progress_{"digest", kQuietDigest};
  std::unique_ptr<LoadProgress> progress_;
  std::unique_ptr<ServiceHost> host_;
  std::unique_ptr<MetricsHost> metrics_;
};

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_WORKER_HOST_H_
