#include "deployment/embedded.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention_worker/local_experts.h"
#include "common/checkpoint/checkpoint.h"
#include "common/status.h"
#include "deployment/checkpoint_watch.h"
#include "deployment/keep_packed.h"
#include "deployment/load_attention.h"
#include "deployment/memory_needs.h"
#include "expert_worker/loaded_experts.h"
#include "gateway/inference_service.h"
#include "gateway/placement_planner.h"
#include "kernels/backend.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr WorkerId kAttentionWorker = 1;
constexpr WorkerId kExpertWorker = 2;

}  // namespace

void AddCounters(const CounterSnapshot& counters, v1::WorkerStatus* status) {
  for (const auto& [name, value] : counters) (*status->mutable_counters())[name] = value;
}

// In the order in which they come up; they go down in the reverse order.
struct EmbeddedDeployment::Parts {
  StepDriver* driver = nullptr;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<Checkpoint> checkpoint;
  std::optional<CheckpointWatch> watch;
  ServedModel model;
  std::string weights;
  std::unique_ptr<LoadedExperts> loaded_experts;
  std::unique_ptr<LocalExperts> experts;
  LoadedAttention attention;

  ~Parts() {
    if (attention.engine != nullptr) driver->RemoveWorker(kAttentionWorker);
  }
};

EmbeddedDeployment::EmbeddedDeployment(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
EmbeddedDeployment::~EmbeddedDeployment() = default;

absl::StatusOr<std::unique_ptr<EmbeddedDeployment>> EmbeddedDeployment::Create(
    const EmbeddedOptions& options, StepDriver* driver) {
  auto parts = std::make_unique<Parts>();
  Parts& p = *parts;
  p.driver = driver;
  const auto progress = options.progress ? options.progress : [](float) {};
  TANDEM_ASSIGN_OR_RETURN(p.backend, MakeBackend(options.backend));
  TANDEM_ASSIGN_OR_RETURN(p.checkpoint, Checkpoint::Open(options.model_dir, options.stop));
  if (options.made_up_weights.has_value()) {
    if (!p.backend->MakesUpWeights()) {
      return absl::UnimplementedError(
          absl::StrCat(p.backend->Description(), " does not make weights up: it takes a GPU"));
    }
    p.checkpoint->MakeUpWeights(*options.made_up_weights);
  }
  p.watch.emplace(p.checkpoint.get());
  TANDEM_ASSIGN_OR_RETURN(p.model, LoadServedModel(*p.checkpoint, options.model_dir, options.dtype,
                                                   options.served_name, options.digest_progress));

  const MachineLimits limits = LimitsOf(*p.backend);
  const int64_t cache_bytes = CacheBytes(p.model.config, options.dtype, options.cache_tokens);
  const int64_t work_bytes = WorkBytes(*p.backend, p.model.config, options.dtype);
  WeightFormat format = DefaultWeightFormat(options.dtype);
  if (options.backend.weights == kAutoWeights) {
    const WeightChoice choice =
        ChooseWeights(*p.checkpoint, options.dtype, cache_bytes + work_bytes, limits,
                      [&p](WeightFormat of) { return p.backend->Has(of); });
    format = choice.format;
    p.weights = absl::StrCat(WeightFormatName(format), " weights by --weights auto: ", choice.why);
    spdlog::info("{}", p.weights);
  } else {
    TANDEM_ASSIGN_OR_RETURN(format, ParseWeightFormat(options.backend.weights, options.dtype));
    p.weights = absl::StrCat(WeightFormatName(format), " weights");
  }
  if (options.made_up_weights.has_value()) {
    absl::StrAppend(&p.weights, " made up from seed ", *options.made_up_weights);
  }
  TANDEM_RETURN_IF_ERROR(
      CheckMemory({OtherBytes(*p.checkpoint, format) + ExpertBytes(*p.checkpoint, format),
                   cache_bytes, work_bytes},
                  limits));
  KeepPacked({options.model_dir, options.backend.packed_weights, format, p.model.digest},
             p.checkpoint.get());
  TANDEM_ASSIGN_OR_RETURN(p.loaded_experts,
                          LoadedExperts::Create(p.checkpoint.get(), p.backend.get(), format));
  p.experts = std::make_unique<LocalExperts>(p.backend.get(), p.model.config.experts_per_token,
                                             p.loaded_experts->Layers());

  // The routed experts are nearly all of the bytes.
  constexpr float kAttentionShare = 0.1f;
  TANDEM_ASSIGN_OR_RETURN(
      p.attention, LoadAttention({p.backend.get(), p.checkpoint.get(), p.model.tokenizer.get(),
                                  p.experts.get(), options.dtype, format, options.cache_tokens},
                                 [&](float share) { progress(share * kAttentionShare); }));
  const Placement placement = PlacementOfOne(p.model.config, {kExpertWorker, ""}, {1, 1});
  TANDEM_RETURN_IF_ERROR(p.loaded_experts->Load(placement, kExpertWorker, [&](float share) {
    progress(kAttentionShare + share * (1 - kAttentionShare));
  }));

  TANDEM_RETURN_IF_ERROR(driver->AddWorker(
      kAttentionWorker,
      [&](AttentionLink::Observer* observer) -> absl::StatusOr<std::unique_ptr<AttentionLink>> {
        return p.attention.engine->Connect(observer);
      }));
  return std::unique_ptr<EmbeddedDeployment>(new EmbeddedDeployment(std::move(parts)));
}

const ServedModel& EmbeddedDeployment::model() const { return parts_->model; }

std::string EmbeddedDeployment::Description() const {
  return absl::StrCat("everything runs in this process; ", parts_->weights);
}

std::vector<v1::WorkerStatus> EmbeddedDeployment::Workers() const {
  const Parts& p = *parts_;
  std::vector<v1::WorkerStatus> workers(2);
  workers[0].set_id(kAttentionWorker);
  workers[0].set_kind("attention");
  AddCounters(p.attention.engine->Counters(), &workers[0]);
  workers[1].set_id(kExpertWorker);
  workers[1].set_kind("expert");
  AddCounters(p.experts->Counters(), &workers[1]);
  AddCounters({{"experts_loaded", p.loaded_experts->num_loaded()},
               {"expert_bytes", p.loaded_experts->bytes()}},
              &workers[1]);
  AddCounters({{"mapped_tensors", p.checkpoint->mapped_tensors()},
               {"mapped_bytes", p.checkpoint->mapped_bytes()}},
              &workers[0]);
  if (p.checkpoint->packed() != nullptr) {
    AddCounters(p.checkpoint->packed()->Counters(), &workers[0]);
  }
  AddCounters(p.watch->Counters(), &workers[0]);
  for (v1::WorkerStatus& worker : workers) {
    worker.set_state("ready");
    worker.set_loaded(1);
    worker.set_device(p.backend->Description());
  }
  return workers;
}

CounterSnapshot EmbeddedDeployment::LookAtFiles() const { return parts_->watch->Counters(); }

struct InProcessDeployment::Parts {
  explicit Parts(const SchedulerPolicy& policy) : driver(policy) {}

  StepDriver driver;
  std::unique_ptr<EmbeddedDeployment> deployment;
  InferenceService service{&driver, [this](const v1::GetStatusRequest&) { return Status(); }};
  std::unique_ptr<grpc::Server> server;

  v1::GetStatusResponse Status() const {
    v1::GetStatusResponse status;
    status.set_state("serving");
    status.set_detail(deployment->Description());
    status.set_model(deployment->model().name);
    v1::WorkerStatus& self = *status.add_workers();
    self.set_kind("gateway");
    self.set_state("ready");
    self.set_loaded(1);
    AddCounters(driver.Counters(), &self);
    AddCounters(service.Counters(), &self);
    for (const v1::WorkerStatus& worker : deployment->Workers()) *status.add_workers() = worker;
    return status;
  }
};

InProcessDeployment::InProcessDeployment(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

InProcessDeployment::~InProcessDeployment() { parts_->server->Shutdown(); }

absl::StatusOr<std::unique_ptr<InProcessDeployment>> InProcessDeployment::Create(
    const EmbeddedOptions& options) {
  SchedulerPolicy policy;
  if (options.max_running > 0) policy.max_running_per_worker = options.max_running;
  auto parts = std::make_unique<Parts>(policy);
  TANDEM_ASSIGN_OR_RETURN(parts->deployment, EmbeddedDeployment::Create(options, &parts->driver));
  parts->service.SetModel(&parts->deployment->model());
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  builder.RegisterService(&parts->service);
  parts->server = builder.BuildAndStart();
  if (parts->server == nullptr) return absl::InternalError("gRPC does not start in this process");
  return std::unique_ptr<InProcessDeployment>(new InProcessDeployment(std::move(parts)));
}

std::shared_ptr<grpc::Channel> InProcessDeployment::Channel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  return parts_->server->InProcessChannel(arguments);
}

}  // namespace tandem
