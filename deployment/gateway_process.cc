#include "deployment/gateway_process.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/checkpoint/checkpoint.h"
#include "common/command_line.h"
#include "common/mode.h"
#include "common/mutex.h"
#include "common/service/progress.h"
#include "common/status.h"
#include "common/transport/grpc_attention_link.h"
#include "common/version.h"
#include "gateway/coordinator.h"
#include "gateway/inference_service.h"
#include "gateway/served_model.h"
#include "gateway/status_report.h"
#include "gateway/step_driver.h"
#include "gateway/validate.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// Of a worker: what it holds and how much it has done, a few bytes for each expert.
constexpr int kMaxReportBytes = 4 << 20;
constexpr absl::Duration kLookInterval = absl::Seconds(2);

RequestLogLevel LogLevelOf(const std::string& name) {
  if (name == "none") return RequestLogLevel::kNone;
  return name == "all" ? RequestLogLevel::kAll : RequestLogLevel::kFailed;
}

// Everything that a gateway is made of, in the order in which it comes up.
class Gateway {
 public:
  explicit Gateway(GatewayOptions options)
      : options_(std::move(options)),
        driver_(options_.policy),
        inference_(
            &driver_, [this](const v1::GetStatusRequest& request) { return Status(request); },
            {options_.max_unread_bytes, absl::Seconds(options_.stall_limit_s)},
            options_.client_limits,
            [this](const grpc::CallbackServerContext& context) {
              return CallerName(options_.listen.trust.get(), context);
            },
            LogLevelOf(options_.log_requests)) {}

  absl::Status Serve() {
    TANDEM_ASSIGN_OR_RETURN(options_.embedded.dtype, ParseMode(options_.dtype));
    TANDEM_ASSIGN_OR_RETURN(trust_, PeerTrust::Create(options_.trust));
    TANDEM_ASSIGN_OR_RETURN(options_.listen.trust,
                            MakePublicTrust(options_.public_trust, options_.trust));
    TANDEM_ASSIGN_OR_RETURN(
        host_, ServiceHost::Start(options_.listen, {&inference_}, {"tandem.v1.Inference"}));
    {
      MutexLock lock(mutex_);
      address_ = host_->address();
    }
    spdlog::info("gateway on {}", host_->address());
    TANDEM_ASSIGN_OR_RETURN(
        metrics_,
        MetricsHost::Start(options_.listen, "tandem_gateway", [this] { return Counters(); },
                           {inference_.metrics().registry(),
                            CacheUsageGauge([driver = &driver_] { return driver->Counters(); })}));
    std::thread starting([this] {
      const absl::Status status = options_.registry.empty() ? StartEmbedded() : StartRegistry();
      if (!status.ok() && !absl::IsCancelled(status)) Fail(status);
    });
    const int asked_to_end = WaitForEnd([this] {
      LookAtFiles();
      return failed_.load();
    });
    stopping_ = true;
    starting.join();
    SetDraining();
    const double grace_s = asked_to_end != 0 ? options_.grace_s : 0;
    if (!driver_.Drain(absl::Seconds(grace_s))) {
      spdlog::warn("requests still ran after {} s; they end now", grace_s);
    }
    host_->Shutdown(absl::Seconds(1));
    ServiceHost* registry_host;
    {
      MutexLock lock(mutex_);
      registry_host = registry_host_.get();
    }
    if (registry_host != nullptr) registry_host->Shutdown(absl::ZeroDuration());
    MutexLock lock(mutex_);
    return error_;
  }

 private:
  absl::Status StartEmbedded() {
    EmbeddedOptions options = options_.embedded;
    options.digest_progress = [this](float share) { digest_progress_.Report(share); };
    options.progress = [this](float share) { progress_.Report(share); };
    options.stop = &stopping_;
    TANDEM_ASSIGN_OR_RETURN(auto deployment, EmbeddedDeployment::Create(options, &driver_));
    progress_.Report(1);
    const ServedModel* model = &deployment->model();
    {
      MutexLock lock(mutex_);
      embedded_ = std::move(deployment);
    }
    Publish(model);
    SetServing(true);
    return absl::OkStatus();
  }

  absl::Status StartRegistry() {
    const std::string& dir = options_.embedded.model_dir;
    TANDEM_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(dir, &stopping_));
    TANDEM_ASSIGN_OR_RETURN(
        ServedModel loaded,
        LoadServedModel(*checkpoint, dir, options_.embedded.dtype, options_.embedded.served_name,
                        [this](float share) { digest_progress_.Report(share); }));
    model_ = std::move(loaded);
    if (options_.expert_workers == 0 && model_.config.num_routed_experts() > 0) {
      return absl::InvalidArgumentError("--expert-workers is 0, but the model has experts");
    }
    progress_.Report(1);
    MembershipOptions membership;
    membership.attention_workers = options_.attention_workers;
    membership.expert_workers = options_.expert_workers;
    membership.expert_copies = options_.expert_copies;
    membership.digest = model_.digest;
    membership.dtype = options_.dtype;
    membership.epoch = NewIncarnation();
    membership.busy_limit = absl::Seconds(options_.hang_limit_s);
    membership.load_limit = absl::Seconds(options_.load_limit_s);
    auto coordinator = std::make_unique<Coordinator>(
        &model_.config, membership, &driver_,
        [this, epoch = membership.epoch,
         trust = trust_ == nullptr ? nullptr : trust_->ClientOf(PeerRole::kAttention)](
            const std::string& address,
            AttentionLink::Observer* observer) -> absl::StatusOr<std::unique_ptr<AttentionLink>> {
          GrpcAttentionLinkOptions dial;
          dial.gateway_incarnation = epoch;
          dial.digest = model_.digest;
          return GrpcAttentionLink::Connect(GrpcPeer{address, trust}, observer, dial);
        },
        [this](bool serving) { SetServing(serving); });
    ListenOptions listen;
    listen.listen = options_.registry;
    listen.insecure_listen = options_.listen.insecure_listen;
    listen.max_message_bytes = kMaxReportBytes;
    if (trust_ != nullptr) listen.trust = trust_->ServerOf(PeerRole::kGateway);
    TANDEM_ASSIGN_OR_RETURN(auto registry_host, ServiceHost::Start(listen, {coordinator->service()},
                                                                   {"tandem.v1.Registry"}));
    spdlog::info("registry on {}; waiting for at least {} attention and {} expert workers",
                 registry_host->address(), options_.attention_workers, options_.expert_workers);
    registry_host->SetServing(true);
    {
      MutexLock lock(mutex_);
      coordinator_ = std::move(coordinator);
      registry_host_ = std::move(registry_host);
    }
    Publish(&model_);
    return absl::OkStatus();
  }

  // Now and then: what changes under a server is to be in its log whether anybody asks or not.
  void LookAtFiles() {
    const absl::Time now = absl::Now();
    if (now - looked_at_files_ < kLookInterval) return;
    looked_at_files_ = now;
    MutexLock lock(mutex_);
    if (embedded_ != nullptr) embedded_->LookAtFiles();
  }

  void Publish(const ServedModel* model) {
    {
      MutexLock lock(mutex_);
      served_ = model;
    }
    inference_.SetModel(model);
  }

  void SetServing(bool serving) {
    MutexLock lock(mutex_);
    serving_ = serving;
    ShowHealth();
  }

  void SetDraining() {
    MutexLock lock(mutex_);
    draining_ = true;
    ShowHealth();
  }

  void ShowHealth() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    host_->SetServing(serving_ && !draining_);
  }

  void Fail(absl::Status status) {
    MutexLock lock(mutex_);
    error_ = std::move(status);
    failed_ = true;
  }

  CounterSnapshot Counters() const {
    CounterSnapshot all = driver_.Counters();
    for (auto& counter : inference_.Counters()) all.push_back(std::move(counter));
    for (auto& counter : host_->Counters()) all.push_back(std::move(counter));
    all.emplace_back("digest_percent", static_cast<int64_t>(digest_progress_.share() * 100));
    all.emplace_back("loaded_percent", static_cast<int64_t>(progress_.share() * 100));
    MutexLock lock(mutex_);
    if (embedded_ != nullptr) {
      for (auto& counter : embedded_->LookAtFiles()) all.push_back(std::move(counter));
    }
    if (coordinator_ != nullptr) {
      for (auto& counter : coordinator_->Counters()) all.push_back(std::move(counter));
    }
    return all;
  }

  v1::GetStatusResponse Status(const v1::GetStatusRequest& request) const {
    v1::GetStatusResponse status;
    v1::WorkerStatus& self = *status.add_workers();
    self.set_kind("gateway");
    self.set_loaded(progress_.share());
    self.set_build(Version());
    AddCounters(Counters(), &self);
    AddHistograms(*inference_.metrics().registry(), "tandem_gateway_", &self);
    MutexLock lock(mutex_);
    self.set_address(address_);
    self.set_state(served_ != nullptr ? "ready" : "loading");
    if (served_ != nullptr) {
      status.set_model(served_->name);
      *status.mutable_default_sampling() = DefaultsToProto(served_->default_sampling);
    }
    if (draining_) {
      status.set_state("draining");
    } else if (serving_) {
      status.set_state("serving");
    } else {
      status.set_state(coordinator_ != nullptr ? "waiting for workers" : "loading");
    }
    if (embedded_ != nullptr) {
      for (const v1::WorkerStatus& worker : embedded_->Workers()) *status.add_workers() = worker;
      status.set_detail(embedded_->Description());
    } else if (coordinator_ != nullptr) {
      AddMembers(coordinator_->Look(), request.placement(), &status);
    } else {
      const bool has_digest = digest_progress_.share() == 1;
      const float share = has_digest ? progress_.share() : digest_progress_.share();
      status.set_detail(absl::StrCat(has_digest ? "loading " : "reading the digest of ",
                                     options_.embedded.model_dir, ": ",
                                     static_cast<int>(share * 100), "%"));
    }
    SayWhatChanged(&status);
    return status;
  }

  static void SayWhatChanged(v1::GetStatusResponse* status) {
    for (const v1::WorkerStatus& worker : status->workers()) {
      if (worker.kind() == "gateway") continue;  // it says so of the workers in its process
      const auto changed = worker.counters().find("checkpoint_changed");
      if (changed == worker.counters().end() || changed->second == 0) continue;
      status->set_detail(absl::StrCat(
          status->detail(), "; the checkpoint's files were changed under the ", worker.kind(),
          " worker", worker.address().empty() ? "" : absl::StrCat(" at ", worker.address()),
          ", whose answers may be wrong until it is started again"));
    }
  }

  GatewayOptions options_;
  LoadProgress digest_progress_{"digest", kQuietDigest};
  LoadProgress progress_{"model"};
  StepDriver driver_;
  InferenceService inference_;
  std::shared_ptr<const PeerTrust> trust_;  // null: plain text
  std::unique_ptr<ServiceHost> host_;
  std::atomic<bool> failed_ = false;
  std::atomic<bool> stopping_ = false;  // what loads is to end
  ServedModel model_;                   // of a deployment with a registry

  absl::Time looked_at_files_ = absl::InfinitePast();  // of the thread that waits for the end

  mutable Mutex mutex_;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  // Empty until the port is bound: requests may come before.
  std::string address_ ABSL_GUARDED_BY(mutex_);
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  const ServedModel* served_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::unique_ptr<EmbeddedDeployment> embedded_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Coordinator> coordinator_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<ServiceHost> registry_host_ ABSL_GUARDED_BY(mutex_);

  std::unique_ptr<MetricsHost> metrics_;  // last: it asks the rest
};

}  // namespace

void GatewayOptions::AddTo(CommandLine& app) {
  AddListenFlags(app, &listen);
  public_trust.AddTo(app);
  trust.AddTo(app);
  app.AddOption("--model", embedded.model_dir, "checkpoint folder").Required();
  app.AddOption("--served-name", embedded.served_name,
                "what the model is called; without it, as its folder or hub repository");
  app.AddOption("--dtype", dtype, "f32 or bf16").ShowDefault();
  const Option with_registry =
      app.AddOption("--registry", registry,
                    "wait for workers that dial this host:port, instead of running them here");
  app.AddOption("--attention-workers", attention_workers,
                "with --registry: how many to wait for at the start; more may come, some may go")
      .Range(1, 1024)
      .ShowDefault();
  app.AddOption("--expert-workers", expert_workers, "likewise").Range(0, 1024).ShowDefault();
  app.AddOption("--expert-copies", expert_copies,
                "with --registry: how many expert workers hold the same expert, as far as their "
                "memory goes; with 2 none is missed when it dies")
      .Range(1, 16)
      .ShowDefault();
  embedded.backend.AddTo(app);
  app.AddOption("--cache-tokens", embedded.cache_tokens, "size of the latent cache")
      .Range(int64_t{64}, int64_t{1} << 36)
      .ShowDefault();
  // With a registry these are the workers' flags.
  for (const char* flag : {"--device", "--gpu-memory", "--threads", "--weights", "--packed-weights",
                           "--numerics", "--cache-tokens"}) {
    app.Get(flag).Excludes(with_registry);
  }
  app.AddOption("--max-waiting", policy.max_waiting, "requests that may wait")
      .Range(1, 1'000'000)
      .ShowDefault();
  app.AddOption("--max-running", policy.max_running_per_worker,
                "requests that run at once on an attention worker")
      .Range(1, 4096)
      .ShowDefault();
  app.AddOption("--max-batch-rows", policy.max_batch_rows, "rows of a prefill batch")
      .Range(1, 1 << 20)
      .ShowDefault();
  app.AddOption("--max-layers-per-step", policy.max_layers_per_step,
                "layers that a prefill batch goes per step, 0 for all")
      .Range(0, 4096)
      .ShowDefault();
  app.AddOption(
         "--prefill-step-target", policy.prefill_step_target,
         "how long a step of decoding requests may take with prefill beside it, as a multiple "
         "of what it takes without; 0: prefill goes as a whole")
      .Range(0.0, 1000.0)
      .ShowDefault();
  app.AddOption("--decode-groups", policy.decode_groups,
                "groups of decoding requests in alternating steps: 1, 2, or 0 for whichever "
                "measures faster")
      .Range(0, 2)
      .ShowDefault();
  app.AddOption("--prefix-caching", policy.prefix_caching,
                "whether pages of the latent cache are kept for later requests that begin alike")
      .ShowDefault();
  app.AddOption("--test-schedule-seed", policy.test_seed,
                "test: random layer ranges, chunks and preemptions from this seed");
  app.AddOption(
         "--hang-limit", hang_limit_s,
         "with --registry: seconds that a worker may be at one layer before it counts as lost")
      .Range(1.0, 1e6)
      .ShowDefault();
  app.AddOption("--load-limit", load_limit_s,
                "with --registry: seconds that a worker may be at loading without any progress "
                "before the others do without it")
      .Range(1.0, 1e6)
      .ShowDefault();
  app.AddOption("--max-unread-bytes", max_unread_bytes,
                "bytes of answers that may wait for their clients to read them")
      .Range(int64_t{1} << 16, int64_t{1} << 40)
      .ShowDefault();
  app.AddOption("--stall-limit", stall_limit_s,
                "seconds that a client may read nothing of an answer that waits for it")
      .Range(0.1, 1e6)
      .ShowDefault();
  app.AddOption("--client-calls", client_limits.calls,
                "calls that one client may have running, 0 for any number; a client is a token's "
                "name, else a name in its certificate, else an address")
      .Range(0, 1'000'000)
      .ShowDefault();
  app.AddOption("--client-rate", client_limits.calls_per_s,
                "calls per second that one client may make, 0 for any number")
      .Range(0.0, 1e6)
      .ShowDefault();
  app.AddOption("--client-burst", client_limits.burst,
                "with --client-rate: calls that it may make at once after a rest")
      .Range(1.0, 1e6)
      .ShowDefault();
  app.AddOption("--log-requests", log_requests,
                "which Generate and Score calls get a line in the log when they end, with their "
                "ids and times, never their texts: none, failed (by the deployment) or all")
      .OneOf({"none", "failed", "all"})
      .ShowDefault();
  app.AddOption("--grace", grace_s, "seconds that running requests get at the end")
      .NonNegative()
      .ShowDefault();
}

absl::Status RunGateway(GatewayOptions options) { return Gateway(std::move(options)).Serve(); }

}  // namespace tandem
