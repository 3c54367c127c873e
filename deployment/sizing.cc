#include "deployment/sizing.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/pages.h"
#include "common/status.h"
#include "deployment/memory_needs.h"

namespace tandem {
namespace {

constexpr int64_t kMemoryStep = int64_t{64} << 20;
constexpr int64_t kMaxRunning = 64;  // --max-running, of an attention worker
constexpr int kMaxExpertWorkers = 64;
constexpr int64_t kLeastDrainSeconds = 60;

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The least limit of which, but for a twentieth that is left to all else, holds `bytes`.
int64_t LimitFor(int64_t bytes) {
  const int64_t limit = DivideUp(bytes * kOtherShare, kOtherShare - 1);
  return DivideUp(limit, kMemoryStep) * kMemoryStep;
}

std::string GB(int64_t bytes) {
  return absl::StrFormat("%.1f GB", static_cast<double>(bytes) / 1e9);
}

// Reading `bytes` from the disk, twice as long as it would take.
int64_t LoadSeconds(int64_t bytes, const SizingRequest& request) {
  return std::llround(std::ceil(2 * static_cast<double>(bytes) / request.disk_bytes_per_s));
}

// A sizing under way.
class Planner {
 public:
  explicit Planner(const SizingRequest& request)
      : request_(request),
        config_(request.config),
        usable_(request.node_memory_bytes - request.node_memory_bytes / kOtherShare) {}

  absl::StatusOr<Sizing> Plan() {
    TANDEM_RETURN_IF_ERROR(Check());
    TANDEM_RETURN_IF_ERROR(PlanAttention());
    for (int copies = request_.expert_copies; copies >= 1; --copies) {
      for (int replicas = copies; replicas <= kMaxExpertWorkers; ++replicas) {
        PlanExperts(replicas, copies);
        if (!Place()) continue;
        Bound();
        best_tokens_per_s_ = std::max(best_tokens_per_s_, sizing_.most_tokens_per_s);
        if (sizing_.most_tokens_per_s < request_.tokens_per_s) continue;
        Explain();
        return std::move(sizing_);
      }
    }
    return WhatIsMissing();
  }

 private:
  absl::Status Check() const {
    if (config_.num_routed_experts() == 0) {
      return absl::InvalidArgumentError(
          "the model has no routed experts: there is nothing to be shared out");
    }
    if (request_.streams < 1 || request_.stream_tokens < 1 || request_.nodes < 1 ||
        request_.node_memory_bytes < 1 || request_.expert_copies < 1) {
      return absl::InvalidArgumentError(
          "streams, their tokens, copies, nodes and their memory are at least 1 each");
    }
    return absl::OkStatus();
  }

  // As few as may run so many streams, and whose cache fits on a node.
  absl::Status PlanAttention() {
    WorkerSizing& attention = sizing_.attention;
    attention.weight_bytes = OtherBytes(config_, request_.format);
    attention.pass_bytes = PassBytes(config_, request_.mode);
    attention.startup_s = LoadSeconds(OtherBytes(config_, WeightFormat::kBF16), request_) + 60;
    const int64_t fewest = DivideUp(request_.streams, kMaxRunning);
    for (int64_t replicas = fewest; replicas <= request_.streams; ++replicas) {
      const int64_t streams = DivideUp(request_.streams, replicas);
      sizing_.cache_tokens = streams * PagesFor(request_.stream_tokens) * kPageTokens;
      attention.replicas = static_cast<int>(replicas);
      attention.cache_bytes = CacheBytes(config_, request_.mode, sizing_.cache_tokens);
      attention.memory_bytes =
          LimitFor(attention.weight_bytes + attention.cache_bytes + attention.pass_bytes);
      if (attention.memory_bytes <= usable_) return absl::OkStatus();
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "an attention worker with the cache of one stream needs ", GB(attention.memory_bytes),
        ", and a node gives ", GB(usable_), " of its ", GB(request_.node_memory_bytes),
        ": a smaller format, shorter streams, or larger nodes"));
  }

  // Each layer's experts are shared out by themselves, so that its part may be larger by one.
  void PlanExperts(int replicas, int copies) {
    WorkerSizing& expert = sizing_.expert;
    const int64_t layers = config_.num_routed_experts() / config_.num_experts;
    const int64_t bytes_each =
        DivideUp(ExpertBytes(config_, request_.format), config_.num_routed_experts());
    sizing_.expert_copies = copies;
    sizing_.experts_each = layers * DivideUp(int64_t{config_.num_experts} * copies, replicas);
    expert.replicas = replicas;
    expert.weight_bytes = sizing_.experts_each * bytes_each;
    expert.pass_bytes = PassBytes(config_, request_.mode);
    sizing_.expert_memory_bytes = DivideUp(expert.weight_bytes, 1 << 20) << 20;
    expert.memory_bytes = LimitFor(sizing_.expert_memory_bytes + expert.pass_bytes);
    const int64_t read_bytes = sizing_.experts_each * ExpertBytes(config_, WeightFormat::kBF16) /
                               config_.num_routed_experts();
    expert.startup_s = LoadSeconds(read_bytes, request_) + 60;
    sizing_.drain_limit_s = std::max(
        kLeastDrainSeconds, 30 + LoadSeconds(read_bytes / std::max(replicas - 1, 1), request_));
  }

  // Each worker, the largest first, to the node with the most memory left. False if one has no
  // room.
  bool Place() {
    std::vector<int64_t> room(request_.nodes, usable_);
    std::vector<bool> has_experts(request_.nodes);
    const auto place = [&](const WorkerSizing& workers, bool experts) {
      for (int i = 0; i < workers.replicas; ++i) {
        const auto most = std::max_element(room.begin(), room.end());
        if (*most < workers.memory_bytes) return false;
        *most -= workers.memory_bytes;
        if (experts) has_experts[most - room.begin()] = true;
      }
      return true;
    };
    const bool experts_first = sizing_.expert.memory_bytes >= sizing_.attention.memory_bytes;
    const bool fits = experts_first
                          ? place(sizing_.expert, true) && place(sizing_.attention, false)
                          : place(sizing_.attention, false) && place(sizing_.expert, true);
    sizing_.expert_nodes =
        static_cast<int>(std::count(has_experts.begin(), has_experts.end(), true));
    return fits;
  }

  // A step reads an attention worker's weights but for the embedding, its streams' latents, and,
  // shared out over the nodes, the experts that some row of the batch is routed to.
  void Bound() {
    const double embedding = 2.0 * config_.vocab_size * config_.hidden_size;
    const double latents =
        static_cast<double>(CacheBytes(config_, request_.mode, kPageTokens)) / kPageTokens *
        static_cast<double>(DivideUp(request_.streams, sizing_.attention.replicas)) *
        static_cast<double>(request_.stream_tokens) / 2;
    const double chosen = static_cast<double>(config_.experts_per_token) / config_.num_experts;
    const double touched = 1 - std::pow(1 - chosen, static_cast<double>(request_.streams));
    const double experts = touched * static_cast<double>(ExpertBytes(config_, request_.format));
    const double bytes = static_cast<double>(sizing_.attention.weight_bytes) - embedding + latents +
                         experts / sizing_.expert_nodes;
    sizing_.most_tokens_per_s =
        static_cast<double>(request_.streams) * request_.node_bytes_per_s / bytes;
  }

  void Explain() {
    const WorkerSizing& attention = sizing_.attention;
    const WorkerSizing& expert = sizing_.expert;
    auto& why = sizing_.why;
    why.push_back(
        absl::StrFormat("attention: %d of %d streams each, of %d tokens: %d cached tokens; %s of "
                        "weights, %s of cache, "
                        "%s of passes, and a twentieth for all else",
                        DivideUp(request_.streams, attention.replicas), request_.streams,
                        request_.stream_tokens, sizing_.cache_tokens, GB(attention.weight_bytes),
                        GB(attention.cache_bytes), GB(attention.pass_bytes)));
    why.push_back(
        absl::StrFormat("experts: %d of %d each, so that %d workers hold each %d times: %s of "
                        "weights, %s of passes, and "
                        "a twentieth for all else",
                        sizing_.experts_each, config_.num_routed_experts(), expert.replicas,
                        sizing_.expert_copies, GB(expert.weight_bytes), GB(expert.pass_bytes)));
    if (sizing_.expert_copies < request_.expert_copies) {
      why.push_back(
          absl::StrCat("memory does not allow ", request_.expert_copies, " copies of each expert"));
    }
    if (sizing_.expert_copies == 1) {
      why.push_back(
          "an expert worker that dies takes experts with it: requests wait until another has "
          "loaded "
          "them");
    }
    why.push_back(absl::StrFormat("nodes: experts on %d of %d, each with %s of %s for containers",
                                  sizing_.expert_nodes, request_.nodes, GB(usable_),
                                  GB(request_.node_memory_bytes)));
  }

  absl::Status WhatIsMissing() {
    PlanExperts(1, 1);
    const int64_t all =
        sizing_.expert.memory_bytes + sizing_.attention.replicas * sizing_.attention.memory_bytes;
    if (all > usable_ * request_.nodes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "all workers together need some ", GB(all), " with one copy of each expert, and ",
          request_.nodes, " nodes give ", GB(usable_ * request_.nodes),
          ": a smaller format, fewer or shorter streams, or more nodes"));
    }
    return absl::ResourceExhaustedError(
        best_tokens_per_s_ > 0
            ? absl::StrFormat(
                  "%d nodes that read %.0f GB/s each give at most %.0f tokens per second of "
                  "the %.0f asked for",
                  request_.nodes, request_.node_bytes_per_s / 1e9, best_tokens_per_s_,
                  request_.tokens_per_s)
            : absl::StrCat("no number of expert workers up to ", kMaxExpertWorkers, " fits on ",
                           request_.nodes, " nodes of ", GB(usable_)));
  }

  const SizingRequest& request_;
  const ModelConfig& config_;
  const int64_t usable_;  // of a node, by containers
  Sizing sizing_;
  double best_tokens_per_s_ = 0;  // of what fits on the nodes
};

}  // namespace

absl::StatusOr<Sizing> PlanSizing(const SizingRequest& request) { return Planner(request).Plan(); }

}  // namespace tandem
