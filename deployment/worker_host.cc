#include "deployment/worker_host.h"

#include <algorithm>
#include <csignal>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/checkpoint/digest.h"
#include "common/command_line.h"
#include "common/mode.h"
#include "common/status.h"
#include "common/version.h"
#include "deployment/keep_packed.h"
#include "deployment/memory_needs.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

}  // namespace

void WorkerOptions::AddTo(CommandLine& app) {
  app.AddOption("--model", model_dir, "checkpoint folder").Required();
  app.AddOption("--registry", registry, "the gateway's registry, host:port").Required();
  app.AddOption("--dtype", dtype, "f32 or bf16").ShowDefault();
  backend.AddTo(app);
  app.AddOption("--advertise", advertise, "host:port that others reach this worker at");
  app.AddOption("--expert-link", expert_link,
                "how attention and expert workers reach each other: auto (through shared memory "
                "where both are on one machine, otherwise over gRPC) or grpc")
      .OneOf({"auto", "grpc"})
      .ShowDefault();
  app.AddOption("--drain-limit", drain_limit_s,
                "seconds that other workers get, after SIGTERM, to take over what this one has")
      .Range(0, 86400)
      .ShowDefault();
  AddListenFlags(app, &listen);
  trust.AddTo(app);
}

void WorkerOptions::AddExpertOptionsTo(CommandLine& app) {
  app.AddOption("--expert-memory", expert_memory_bytes,
                "for the weights of experts, such as 12GiB; default: an equal part, among the "
                "expert workers that share it, of what the machine or the container has")
      .ByteSize()
      .Range(int64_t{1}, int64_t{1} << 50);
  app.AddOption("--load-share", load_share,
                "of a core's time, how much loading experts may take while the worker computes")
      .Range(0.01, 1.0)
      .ShowDefault();
  app.AddOption(
         "--weights-from", weights_from,
         "where experts that are to be loaded come from: checkpoint; peers (other expert "
         "workers that have them, and the checkpoint only where that fails); or auto (peers, "
         "but for what is kept packed here or lies in memory already)")
      .OneOf({kWeightsFromCheckpoint, kWeightsFromPeers, kWeightsFromAuto})
      .ShowDefault();
}

WorkerHost::WorkerHost(WorkerOptions options, WorkerRoleFactory make_role)
    : options_(std::move(options)), make_role_(std::move(make_role)) {}
WorkerHost::~WorkerHost() = default;

absl::Status WorkerHost::Serve() {
  TANDEM_ASSIGN_OR_RETURN(parts_.dtype, ParseMode(options_.dtype));
  if (options_.backend.weights == kAutoWeights) {
    return absl::InvalidArgumentError(
        "--weights auto is for a whole model in one process: the workers of a deployment are all "
        "told the same format");
  }
  TANDEM_ASSIGN_OR_RETURN(parts_.format, ParseWeightFormat(options_.backend.weights, parts_.dtype));
  TANDEM_RETURN_IF_ERROR(CheckDialAddress(options_.registry));
  if (!options_.advertise.empty()) TANDEM_RETURN_IF_ERROR(CheckDialAddress(options_.advertise));
  TANDEM_ASSIGN_OR_RETURN(parts_.trust, PeerTrust::Create(options_.trust));
  TANDEM_ASSIGN_OR_RETURN(backend_, MakeBackend(options_.backend));
  TANDEM_ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(options_.model_dir, &stopping_));
  watch_.emplace(checkpoint_.get());
  parts_.digest = [this] {
    MutexLock lock(mutex_);
    return digest_;
  };
  parts_.options = &options_;
  parts_.backend = backend_.get();
  parts_.checkpoint = checkpoint_.get();
  parts_.incarnation = NewIncarnation();
  parts_.numerics_class = NumericsClass(*backend_, parts_.dtype, parts_.format);
  TANDEM_ASSIGN_OR_RETURN(role_, make_role_(parts_));

  const WorkerNames names = role_->names();
  progress_ = std::make_unique<LoadProgress>(names.weights);
  ListenOptions listen = options_.listen;
  listen.max_message_bytes = names.max_message_bytes;
  if (parts_.trust != nullptr) listen.trust = parts_.trust->ServerOf(names.role);
  TANDEM_ASSIGN_OR_RETURN(host_, ServiceHost::Start(listen, role_->services(), {names.health}));
  if (const absl::Status dialled = CheckDialAddress(Address()); !dialled.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        dialled.message(), ": pass --advertise with the address that others reach this worker at"));
  }
  spdlog::info("{} on {} ({})", names.worker, host_->address(), backend_->Description());
  TANDEM_ASSIGN_OR_RETURN(
      metrics_, MetricsHost::Start(options_.listen, names.metrics, [this] { return Counters(); },
                                   {role_->Histograms()}));
  std::thread loading([this] { RunLoads(); });
  const int signal = WaitForEnd([this] { return failed_ || drain_asked_; });
  if (signal == SIGTERM || drain_asked_) Drain();
  stopping_ = true;
  std::unique_ptr<RegistryClient> registry;
  {
    MutexLock lock(mutex_);
    ended_ = true;
    registry = std::move(registry_);
  }
  wake_.NotifyAll();
  registry.reset();
  host_->SetServing(false);
  host_->Shutdown(kShutdownGrace);
  loading.join();
  MutexLock lock(mutex_);
  return error_;
}

// Until others have what this worker has.
void WorkerHost::Drain() {
  if (!role_->loaded()) return;
  MutexLock lock(mutex_);
  if (!duties_.is_member()) return;
  duties_.Drain(absl::Now() + absl::Seconds(options_.drain_limit_s));
  registry_->ReportNow();
  spdlog::info("draining: others take over what this worker has, in at most {} s",
               options_.drain_limit_s);
  const bool over = wake_.WaitFor(
      lock, std::chrono::seconds(options_.drain_limit_s),
      [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return duties_.may_end() || !error_.ok(); });
  if (!over) spdlog::warn("not all that this worker has could be taken over; it ends now");
}

// Reads what names the checkpoint, and dials the registry.
absl::Status WorkerHost::Join() {
  TANDEM_ASSIGN_OR_RETURN(std::string digest, CheckpointDigest(*checkpoint_, [this](float share) {
                            digest_progress_.Report(share);
                          }));
  KeepPacked({options_.model_dir, options_.backend.packed_weights, parts_.format, digest},
             checkpoint_.get());
  MutexLock lock(mutex_);
  digest_ = std::move(digest);
  if (!ended_) {
    registry_ = std::make_unique<RegistryClient>(
        options_.registry, Callbacks(),
        parts_.trust == nullptr ? nullptr : parts_.trust->ClientOf(PeerRole::kGateway));
  }
  return absl::OkStatus();
}

std::string WorkerHost::Address() const {
  return options_.advertise.empty() ? host_->address() : options_.advertise;
}

v1::WorkerHello WorkerHost::Hello() const {
  v1::WorkerHello hello;
  hello.set_kind(role_->names().kind);
  hello.set_address(Address());
  hello.set_incarnation(parts_.incarnation);
  hello.set_digest(parts_.digest());
  hello.set_dtype(options_.dtype);
  hello.set_numerics_class(parts_.numerics_class);
  hello.set_device(backend_->Description());
  hello.set_build(Version());
  hello.set_busy_ms(absl::ToInt64Milliseconds(role_->busy_for()));
  role_->Introduce(hello);
  return hello;
}

RegistryClient::Callbacks WorkerHost::Callbacks() {
  RegistryClient::Callbacks callbacks;
  callbacks.hello = [this] { return Hello(); };
  callbacks.health = [this] {
    WorkerHealth health;
    health.placement = role_->placement();
    health.ready = role_->loaded() && health.placement.counter > 0;
    health.loaded = progress_->share();
    health.busy = role_->busy_for();
    health.load_idle = load_clock_.elapsed();
    health.counters = Counters();
    role_->Report(health);
    MutexLock lock(mutex_);
    health.draining = duties_.draining();
    health.drain_left = std::max(duties_.drain_until() - absl::Now(), absl::ZeroDuration());
    return health;
  };
  callbacks.on_accepted = [this](WorkerId self, uint64_t) {
    MutexLock lock(mutex_);
    duties_.Accepted(self);
  };
  callbacks.on_lost = [this] {
    {
      MutexLock lock(mutex_);
      duties_.Lost();
    }
    wake_.NotifyAll();
  };
  callbacks.on_drain = [this] { drain_asked_ = true; };
  callbacks.on_released = [this] {
    {
      MutexLock lock(mutex_);
      duties_.Released();
    }
    wake_.NotifyAll();
  };
  callbacks.on_load = [this](Placement placement) {
    {
      MutexLock lock(mutex_);
      duties_.Load(std::move(placement));
      load_clock_.Given();
    }
    wake_.NotifyAll();
  };
  callbacks.on_use = [this](Placement placement) {
    {
      MutexLock lock(mutex_);
      duties_.Use(placement.version);
    }
    wake_.NotifyAll();
    role_->Use(std::move(placement));
  };
  callbacks.on_refused = [this](const absl::Status& status) { Fail(status); };
  return callbacks;
}

CounterSnapshot WorkerHost::Counters() const {
  CounterSnapshot all = role_->Counters();
  for (auto& counter : host_->Counters()) all.push_back(std::move(counter));
  for (auto& counter : watch_->Counters()) all.push_back(std::move(counter));
  if (const PackedWeights* const packed = checkpoint_->packed()) {
    for (auto& counter : packed->Counters()) all.push_back(std::move(counter));
  }
  all.emplace_back("mapped_tensors", checkpoint_->mapped_tensors());
  all.emplace_back("mapped_bytes", checkpoint_->mapped_bytes());
  all.emplace_back("digest_percent", static_cast<int64_t>(digest_progress_.share() * 100));
  all.emplace_back("loaded_percent", static_cast<int64_t>(progress_->share() * 100));
  return all;
}

void WorkerHost::RunLoads() {
  const auto report = [this](float share) {
    load_clock_.Begin();
    progress_->Report(share);
  };
  absl::Status status = Join();
  load_clock_.Begin();
  if (status.ok()) status = role_->LoadAtStart(report);
  while (true) {
    if (absl::IsCancelled(status)) return;  // the worker ends
    if (!status.ok() && !absl::IsAborted(status)) {
      Fail(status);
    } else if (role_->loaded()) {
      progress_->Report(1);
      host_->SetServing(true);
    }
    WorkerDuties::Work work;
    {
      MutexLock lock(mutex_);
      if (!duties_.has_work()) load_clock_.Rest();
      wake_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return duties_.has_work() || ended_;
      });
      if (ended_) return;
      work = duties_.TakeWork();
      load_clock_.Begin();
    }
    if (work.retire.has_value()) role_->Retire(*work.retire);
    if (work.load.has_value()) {
      const auto superseded = [this, &order = *work.load] {
        MutexLock lock(mutex_);
        return ended_ || duties_.IsSuperseded(order);
      };
      status = role_->Load(work.load->placement, work.load->self, superseded, report);
    }
  }
}

void WorkerHost::Fail(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    error_.Update(status);
    failed_ = true;
  }
  wake_.NotifyAll();
}

}  // namespace tandem
