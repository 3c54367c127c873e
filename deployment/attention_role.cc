#include "deployment/attention_role.h"

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "attention_worker/dispatched_experts.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/tokenizer/tokenizer.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/grpc_attention_service.h"
#include "common/transport/grpc_expert_link.h"
#include "deployment/load_attention.h"

namespace tandem {
namespace {

// The links to all expert workers that there ever were, for their counters.
class ExpertLinks {
 public:
  std::shared_ptr<ExpertLink> Dial(const Placement::Worker& worker) {
    auto link = std::make_shared<GrpcExpertLink>(GrpcPeer{worker.address, nullptr});
    MutexLock lock(mutex_);
    links_.push_back(link);
    return link;
  }

  CounterSnapshot Counters() const {
    int64_t header_bytes = 0, payload_bytes = 0;
    MutexLock lock(mutex_);
    for (const auto& link : links_) {
      for (const auto& [name, value] : link->Counters()) {
        if (name == "header_bytes_sent_total") header_bytes += value;
        if (name == "payload_bytes_sent_total") payload_bytes += value;
      }
    }
    return {{"expert_header_bytes_sent_total", header_bytes},
            {"expert_payload_bytes_sent_total", payload_bytes}};
  }

 private:
  mutable Mutex mutex_;
  std::vector<std::shared_ptr<GrpcExpertLink>> links_ ABSL_GUARDED_BY(mutex_);
};

class AttentionRole : public WorkerRole {
 public:
  AttentionRole(const WorkerParts& parts, const AttentionRoleOptions& options,
                std::unique_ptr<const Tokenizer> tokenizer)
      : parts_(parts),
        options_(options),
        tokenizer_(std::move(tokenizer)),
        dispatcher_(parts.incarnation, {},
                    [this](const Placement::Worker& worker) { return links_.Dial(worker); }),
        experts_(parts.backend, parts.checkpoint->config().experts_per_token, &dispatcher_),
        service_(
            [this](AttentionLink::Observer* observer) {
              AttentionEngine* engine = ready_;
              return engine == nullptr ? nullptr : engine->Connect(observer);
            },
            {.digest = parts.digest}) {}

  WorkerNames names() const override {
    return {v1::WORKER_KIND_ATTENTION, "attention worker", "attention", "tandem.v1.AttentionWorker",
            "tandem_attention"};
  }
  grpc::Service* service() override { return service_.service(); }

  absl::Status LoadAtStart(const std::function<void(float)>& progress) override {
    TANDEM_ASSIGN_OR_RETURN(
        attention_, LoadAttention({parts_.backend, parts_.checkpoint, tokenizer_.get(), &experts_,
                                   parts_.dtype, parts_.format, options_.cache_tokens},
                                  progress));
    ready_ = attention_.engine.get();
    return absl::OkStatus();
  }

  // Every attention worker holds the same.
  absl::Status Load(const Placement&, WorkerId, const std::function<void(float)>&) override {
    return absl::OkStatus();
  }

  void Use(Placement placement) override {
    const PlacementVersion version = placement.version;
    dispatcher_.SetPlacement(std::move(placement));
    MutexLock lock(mutex_);
    placement_ = version;
  }

  void Retire(PlacementVersion) override {}

  bool loaded() const override { return ready_ != nullptr; }
  PlacementVersion placement() const override {
    MutexLock lock(mutex_);
    return placement_;
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

  mutable Mutex mutex_;
  PlacementVersion placement_ ABSL_GUARDED_BY(mutex_);  // what is in use

  // Each uses those above it, so they go down from the last to the first.
  ExpertLinks links_;
  ExpertDispatcher dispatcher_;
  DispatchedExperts experts_;
  LoadedAttention attention_;
  std::atomic<AttentionEngine*> ready_ = nullptr;  // attention_.engine, once it is complete
  GrpcAttentionService service_;
};

}  // namespace

void AttentionRoleOptions::AddTo(CLI::App& app) {
  app.add_option("--cache-tokens", cache_tokens, "size of the latent cache")
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 36))
      ->capture_default_str();
}

absl::StatusOr<std::unique_ptr<WorkerRole>> MakeAttentionRole(const WorkerParts& parts,
                                                              const AttentionRoleOptions& options) {
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      Tokenizer::Load(parts.options->model_dir);
  if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();
  return std::make_unique<AttentionRole>(parts, options,
                                         tokenizer.ok() ? *std::move(tokenizer) : nullptr);
}

}  // namespace tandem
