#include "deployment/attention_role.h"

#include <atomic>
#include <string>
#include <utility>

#include "attention_worker/dispatched_experts.h"
#include "common/command_line.h"
#include "common/status.h"
#include "common/tokenizer/tokenizer.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/expert_links.h"
#include "common/transport/grpc_attention_service.h"
#include "deployment/load_attention.h"
#include "deployment/memory_needs.h"

namespace tandem {
namespace {

class AttentionRole : public WorkerRole {
 public:
  AttentionRole(const WorkerParts& parts, const AttentionRoleOptions& options,
                std::unique_ptr<const Tokenizer> tokenizer)
      : parts_(parts),
        options_(options),
        tokenizer_(std::move(tokenizer)),
        links_(parts.options->use_shared_memory() ? ExpertLinkKind::kAuto : ExpertLinkKind::kGrpc,
               parts.trust == nullptr ? nullptr : parts.trust->ClientOf(PeerRole::kExpert)),
        dispatcher_(parts.incarnation, {},
                    [this](const Placement::Worker& worker) { return links_.Dial(worker); }),
        layer_times_(parts.checkpoint->config().num_layers),
        experts_(parts.backend, parts.checkpoint->config().experts_per_token, &dispatcher_),
        service_(
            [this](AttentionLink::Observer* observer) {
              AttentionEngine* engine = ready_;
              return engine == nullptr ? nullptr : engine->Connect(observer);
            },
            {.digest = parts.digest}) {}

  WorkerNames names() const override {
    return {v1::WORKER_KIND_ATTENTION,   "attention worker", "attention",
            "tandem.v1.AttentionWorker", "tandem_attention", PeerRole::kAttention};
  }
  std::vector<grpc::Service*> services() override { return {service_.service()}; }

  absl::Status LoadAtStart(const std::function<void(float)>& progress) override {
    const Checkpoint& checkpoint = *parts_.checkpoint;
    TANDEM_RETURN_IF_ERROR(
        CheckMemory({OtherBytes(checkpoint, parts_.format),
                     CacheBytes(checkpoint.config(), parts_.dtype, options_.cache_tokens),
                     WorkBytes(*parts_.backend, checkpoint.config(), parts_.dtype)},
                    LimitsOf(*parts_.backend)));
    TANDEM_ASSIGN_OR_RETURN(
        attention_,
        LoadAttention({parts_.backend, parts_.checkpoint, tokenizer_.get(), &experts_, parts_.dtype,
                       parts_.format, options_.cache_tokens, &layer_times_},
                      progress));
    ready_ = attention_.engine.get();
    return absl::OkStatus();
  }

  // Every attention worker holds the same.
  absl::Status Load(const Placement&, WorkerId, const std::function<bool()>&,
                    const std::function<void(float)>&) override {
    return absl::OkStatus();
  }

  void Use(Placement placement) override { dispatcher_.SetPlacement(std::move(placement)); }

  void Retire(PlacementVersion) override {}

  bool loaded() const override { return ready_ != nullptr; }
  PlacementVersion placement() const override { return dispatcher_.oldest_in_use(); }

  absl::Duration busy_for() const override {
    const AttentionEngine* engine = ready_;
    return engine == nullptr ? absl::ZeroDuration() : engine->busy_for();
  }
  void Report(WorkerHealth& health) override {
    for (auto& sum : layer_times_.Sums()) health.counters.push_back(std::move(sum));
  }
  std::shared_ptr<prometheus::Collectable> Histograms() const override {
    return layer_times_.registry();
  }
  CounterSnapshot Counters() const override {
    CounterSnapshot all;
    if (AttentionEngine* engine = ready_) all = engine->Counters();
    for (auto& counter : experts_.Counters()) all.push_back(std::move(counter));
    for (auto& counter : links_.Counters()) all.push_back(std::move(counter));
    return all;
  }

 private:
  const WorkerParts parts_;
  const AttentionRoleOptions options_;
  const std::unique_ptr<const Tokenizer> tokenizer_;  // null: the checkpoint has none

  // Each uses those above it, so they go down from the last to the first.
  ExpertLinks links_;
  ExpertDispatcher dispatcher_;
  LayerTimes layer_times_;
  DispatchedExperts experts_;
  LoadedAttention attention_;
  std::atomic<AttentionEngine*> ready_ = nullptr;  // attention_.engine, once it is complete
  GrpcAttentionService service_;
};

}  // namespace

void AttentionRoleOptions::AddTo(CommandLine& app) {
  app.AddOption("--cache-tokens", cache_tokens, "size of the latent cache")
      .Range(int64_t{64}, int64_t{1} << 36)
      .ShowDefault();
}

absl::StatusOr<std::unique_ptr<WorkerRole>> MakeAttentionRole(const WorkerParts& parts,
                                                              const AttentionRoleOptions& options) {
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      Tokenizer::Load(parts.options->model_dir);
  // Without one all ids may be drawn.
  if (!tokenizer.ok() && !Tokenizer::CostsOnlyText(tokenizer.status())) return tokenizer.status();
  return std::make_unique<AttentionRole>(parts, options,
                                         tokenizer.ok() ? *std::move(tokenizer) : nullptr);
}

}  // namespace tandem
