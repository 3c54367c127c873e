#include "deployment/expert_role.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/machine.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/transport/expert_frame.h"
#include "common/transport/grpc_expert_service.h"
#include "common/transport/grpc_weights_service.h"
#include "common/transport/peer_weights.h"
#include "common/transport/shm_expert_service.h"
#include "deployment/expert_capacity.h"
#include "deployment/load_pacer.h"
#include "deployment/memory_needs.h"
#include "expert_worker/engine.h"
#include "expert_worker/engine_times.h"
#include "expert_worker/loaded_experts.h"
#include "kernels/background.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// Heartbeats between two reports of tokens by expert.
constexpr int kBeatsPerReport = 10;
// Bytes of memory that no expert may take.
constexpr int64_t kLeastLeft = int64_t{256} << 20;

// Beside others' 0 a thread has a quarter of a core that both want: enough for the usual share.
constexpr int kLoadingNice = 5;

absl::Duration ComputedByThisThread() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

// Of a core, for sending 1 MiB to another worker: what it takes with TLS, and a little
// (docs/numbers.md).
constexpr absl::Duration kSendingCost = absl::Microseconds(1200);

// How much of the time between two looks the engine was busy. Of one thread.
class EngineShare {
 public:
  explicit EngineShare(const ExpertEngine* engine) : engine_(*engine) {}

  double Look() {
    const absl::Time now = absl::Now();
    const absl::Duration busy = engine_.busy_total();
    if (now - looked_at_ < kLeastBetween) return share_;
    share_ = absl::FDivDuration(busy - busy_, now - looked_at_);
    looked_at_ = now;
    busy_ = busy;
    return share_;
  }

 private:
  static constexpr absl::Duration kLeastBetween = absl::Milliseconds(10);

  const ExpertEngine& engine_;
  absl::Time looked_at_ = absl::Now();
  absl::Duration busy_ = engine_.busy_total();
  double share_ = 1;
};

// Loading beside running work, piece by piece: on one thread, which pauses for the engine's sake.
// Of the thread that loads.
class LoadingTime {
 public:
  explicit LoadingTime(const ExpertEngine* engine) : engine_(engine) {
    background_.Set(true);
    setpriority(PRIO_PROCESS, 0, kLoadingNice);  // of this thread, for good
    Begin();
  }

  // Between two pieces. Ends once `superseded`.
  void MakeRoom(const LoadPacer& pacer, const std::function<bool()>& superseded) {
    const absl::Time now = absl::Now();
    const absl::Time until =
        now + pacer.Pause(ComputedByThisThread() - computed_, now - begin_, engine_.Look());
    constexpr absl::Duration kBetweenLooks = absl::Milliseconds(20);
    for (absl::Duration left; (left = until - absl::Now()) > absl::ZeroDuration();) {
      if (superseded()) return;
      absl::SleepFor(std::min(left, kBetweenLooks));
    }
    Begin();
  }

 private:
  void Begin() {
    begin_ = absl::Now();
    computed_ = ComputedByThisThread();
  }

  EngineShare engine_;
  kernels::Background background_;
  absl::Time begin_;         // of the piece
  absl::Duration computed_;  // by the thread until then
};

class ExpertRole : public WorkerRole {
 public:
  ExpertRole(const WorkerParts& parts, std::unique_ptr<LoadedExperts> experts)
      : backend_(*parts.backend),
        checkpoint_(*parts.checkpoint),
        format_(parts.format),
        dtype_(parts.dtype),
        digest_(parts.digest),
        numerics_class_(parts.numerics_class),
        trust_(parts.trust == nullptr ? nullptr : parts.trust->ClientOf(PeerRole::kExpert)),
        weights_from_(parts.options->weights_from),
        pacer_(parts.options->load_share),
        experts_(std::move(experts)),
        engine_(parts.backend, &parts.checkpoint->config(), experts_.get(),
                {.dtype = parts.dtype, .times = &times_}),
        sending_share_(&engine_),
        service_(&engine_),
        weights_service_(WeightsServiceOptions()) {
    MeasureCapacity(parts.options->expert_memory_bytes);
    if (!parts.options->use_shared_memory()) return;
    auto shm_service = ShmExpertService::Start(parts.incarnation, &engine_);
    if (shm_service.ok()) {
      shm_service_ = *std::move(shm_service);
    } else {
      spdlog::info("gRPC only: {}", std::string(shm_service.status().message()));
    }
  }

  WorkerNames names() const override {
    return {v1::WORKER_KIND_EXPERT,
            "expert worker",
            "experts",
            "tandem.v1.ExpertWorker",
            "tandem_expert",
            PeerRole::kExpert,
            static_cast<int>(2 * kMaxFramePayloadBytes)};
  }
  std::vector<grpc::Service*> services() override {
    if (weights_from_ == kWeightsFromCheckpoint) return {service_.service()};
    return {service_.service(), weights_service_.service()};
  }

  // The placement says which experts are this worker's.
  absl::Status LoadAtStart(const std::function<void(float)>&) override { return absl::OkStatus(); }

  // Where there is less memory than it had reckoned with it says so, and the gateway plans anew.
  absl::Status Load(const Placement& placement, WorkerId self,
                    const std::function<bool()>& superseded,
                    const std::function<void(float)>& progress) override {
    int64_t looked_at_bytes = 0;
    std::optional<LoadingTime> time;
    if (!placement.urgent) time.emplace(&engine_);
    PeerWeights peers({.trust = trust_,
                       .origin = Origin(),
                       .self = self,
                       .num_experts = placement.num_experts,
                       .wanted = [&] { return !superseded(); },
                       .counts = &fetches_},
                      placement.sources);
    ExpertFetch fetch;
    if (weights_from_ != kWeightsFromCheckpoint) {
      fetch = [&](int layer, int expert, const PackedLayout& layout) {
        const bool at_hand = weights_from_ == kWeightsFromAuto && IsAtHand(layer, expert);
        return at_hand ? nullptr : peers.Fetch(layer, expert, layout);
      };
    }
    const int64_t loads_before = experts_->num_loads(), fetched_before = fetches_.fetched;
    absl::Status loaded = experts_->Load(
        placement, self, progress,
        [&] {
          if (time.has_value()) time->MakeRoom(pacer_, superseded);
          return superseded() ? absl::AbortedError("there is a newer order")
                              : CheckRoom(&looked_at_bytes);
        },
        fetch);
    if (const int64_t fetched = fetches_.fetched - fetched_before; fetched > 0) {
      spdlog::info("experts loaded: {}, of which {} came from other workers",
                   experts_->num_loads() - loads_before, fetched);
    }
    if (absl::IsResourceExhausted(loaded)) {
      const int64_t fit = experts_->num_loaded();
      experts_->DropUnwanted();
      MutexLock lock(mutex_);
      capacity_.Shrink(fit, absl::Now());
      failed_ = placement.version;
      const std::string why =
          absl::StrCat("there is memory for ", fit, " experts only: ", loaded.message());
      spdlog::warn("{}", why);
      return absl::AbortedError(why);
    }
    MutexLock lock(mutex_);
    if (loaded.ok()) {
      placement_ = placement.version;
      failed_ = {};
    }
    return loaded;
  }

  void Introduce(v1::WorkerHello& hello) const override {
    hello.set_memory(memory_);
    hello.set_held_experts(PackBits(experts_->Loaded()));
    MutexLock lock(mutex_);
    hello.set_expert_capacity(static_cast<uint64_t>(capacity_.experts()));
  }
  void Report(WorkerHealth& health) override {
    if (++beats_ % kBeatsPerReport == 0) health.expert_tokens = engine_.TakeExpertTokens();
    MutexLock lock(mutex_);
    if (capacity_.MayGrow(absl::Now()) && capacity_.Grow(HowManyFit())) {
      spdlog::info("memory: there is room for {} experts again", capacity_.experts());
    }
    health.expert_capacity = static_cast<uint64_t>(capacity_.experts());
    health.failed = failed_;
    if (failed_.counter > 0) health.held_experts = experts_->Loaded();
  }

  void Use(Placement) override {}  // requests name the experts that they are for
  void Retire(PlacementVersion oldest_in_use) override { experts_->Retire(oldest_in_use); }

  bool loaded() const override { return placement().counter > 0; }
  PlacementVersion placement() const override {
    MutexLock lock(mutex_);
    return placement_;
  }

  absl::Duration busy_for() const override { return engine_.busy_for(); }
  std::shared_ptr<prometheus::Collectable> Histograms() const override { return times_.registry(); }
  CounterSnapshot Counters() const override {
    CounterSnapshot all = engine_.Counters();
    for (auto& counter : service_.Counters()) all.push_back(std::move(counter));
    for (auto& counter : weights_service_.Counters()) all.push_back(std::move(counter));
    all.emplace_back("expert_fetched_total", fetches_.fetched);
    all.emplace_back("expert_fetched_bytes_total", fetches_.fetched_bytes);
    all.emplace_back("expert_fetch_failed_total", fetches_.failed);
    if (shm_service_ != nullptr) {
      for (auto& counter : shm_service_->Counters()) all.push_back(std::move(counter));
    }
    return all;
  }

 private:
  WeightsOrigin Origin() const { return {digest_(), numerics_class_}; }

  // Of this worker's, for others; as slowly as loading.
  GrpcWeightsServiceOptions WeightsServiceOptions() {
    GrpcWeightsServiceOptions options;
    options.origin = [this] { return Origin(); };
    options.find = [this](int64_t layer, int32_t expert) {
      return experts_->Packed(layer, expert);
    };
    options.pause = [this](int64_t bytes, absl::Duration passed) {
      const absl::Duration computed = kSendingCost * (static_cast<double>(bytes) / (1 << 20));
      return pacer_.Pause(computed, passed, sending_share_.Look());
    };
    return options;
  }

  // Whether an expert can be had here without waiting for a disk or a network.
  bool IsAtHand(int layer, int expert) const {
    const PackedWeights* const packed = checkpoint_.packed();
    if (packed != nullptr && packed->Has(LoadedExperts::UnitName(layer, expert))) return true;
    const std::vector<std::string> tensors = LoadedExperts::TensorNames(layer, expert);
    return std::all_of(tensors.begin(), tensors.end(),
                       [this](const std::string& name) { return checkpoint_.IsInMemory(name); });
  }

  // How many experts memory holds, which may be more than there are, and whose memory it is.
  void MeasureCapacity(int64_t wanted_bytes) {
    const int64_t experts = checkpoint_.config().num_routed_experts();
    if (experts == 0) return;
    bytes_each_ = std::max<int64_t>(ExpertBytes(checkpoint_, format_) / experts, 1);
    const MachineLimits limits = LimitsOf(backend_);
    int64_t bytes = limits.memory_bytes - WorkBytes(backend_, checkpoint_.config(), dtype_);
    bytes -= bytes / kOtherShare;
    if (wanted_bytes > 0) {
      bytes = std::min(bytes, wanted_bytes);
    } else if (limits.memory_from == kWholeMachine) {
      memory_ = ReadBootId();
    }
    MutexLock lock(mutex_);
    capacity_ = ExpertCapacity(std::max<int64_t>(bytes / bytes_each_, 0));
    spdlog::info("memory: {} of {} experts fit into {:.2f} GiB ({})",
                 std::min(capacity_.experts(), experts), experts,
                 static_cast<double>(bytes) / (1 << 30),
                 wanted_bytes > 0 ? "--expert-memory" : limits.memory_from);
  }

  // What is loaded, and what the memory that is left now would take.
  int64_t HowManyFit() const {
    if (backend_.MemoryBytes().has_value()) return std::numeric_limits<int64_t>::max();
    const int64_t left = std::max<int64_t>(ReadAvailableMemory() - 2 * kLeastLeft, 0);
    return experts_->num_loaded() + left / bytes_each_;
  }

  // `looked_at_bytes` are those of experts when memory was last looked at; 0: not yet.
  absl::Status CheckRoom(int64_t* looked_at_bytes) const {
    if (backend_.MemoryBytes().has_value()) return absl::OkStatus();  // it says so itself
    constexpr int64_t kBetweenLooks = int64_t{64} << 20;
    const int64_t bytes = experts_->bytes();
    if (*looked_at_bytes > 0 && bytes - *looked_at_bytes < kBetweenLooks) return absl::OkStatus();
    *looked_at_bytes = bytes;
    if (ReadAvailableMemory() >= kLeastLeft) return absl::OkStatus();
    return absl::ResourceExhaustedError("less than 256 MiB are left");
  }

  const kernels::Backend& backend_;
  const Checkpoint& checkpoint_;
  const WeightFormat format_;
  const Dtype dtype_;
  const std::function<std::string()> digest_;
  const std::string numerics_class_;
  const std::shared_ptr<const ClientTrust> trust_;  // of other expert workers; null: plain text
  const std::string weights_from_;

  const LoadPacer pacer_;
  PeerWeightsCounts fetches_;
  mutable Mutex mutex_;
  PlacementVersion placement_ ABSL_GUARDED_BY(mutex_);  // what is loaded
  PlacementVersion failed_ ABSL_GUARDED_BY(mutex_);     // newest that there was no memory for
  ExpertCapacity capacity_ ABSL_GUARDED_BY(mutex_);
  int64_t bytes_each_ = 1;  // of an expert
  std::string memory_;      // as v1::WorkerHello says
  int beats_ = 0;           // of the thread that reports

  // Each uses those above it; the services wait for the engine's answers when they go.
  const std::unique_ptr<LoadedExperts> experts_;
  ExpertEngineTimes times_;
  ExpertEngine engine_;
  EngineShare sending_share_;  // of the thread that sends weights
  GrpcExpertService service_;
  GrpcWeightsService weights_service_;
  std::unique_ptr<ShmExpertService> shm_service_;  // null: none
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerRole>> MakeExpertRole(const WorkerParts& parts) {
  TANDEM_ASSIGN_OR_RETURN(auto experts,
                          LoadedExperts::Create(parts.checkpoint, parts.backend, parts.format));
  return std::make_unique<ExpertRole>(parts, std::move(experts));
}

}  // namespace tandem
