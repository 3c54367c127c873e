#include "expert_worker/loaded_experts.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {
namespace {

std::string TensorName(int layer, int expert, const char* projection) {
  return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".", projection, ".weight");
}

constexpr const char* kProjections[] = {"gate_proj", "up_proj", "down_proj"};

}  // namespace

LoadedExperts::LoadedExperts(const Checkpoint* checkpoint, Dtype mode)
    : checkpoint_(checkpoint), config_(checkpoint->config()), mode_(mode) {
  const size_t size = IndexOf(config_.num_layers, 0);
  weights_.resize(size);
  loaded_ = std::make_unique<std::atomic<bool>[]>(size);
}

std::vector<LoadedExperts::Id> LoadedExperts::Missing(const Placement& placement,
                                                      WorkerId self) const {
  std::vector<Id> missing;
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    if (!config_.IsMoeLayer(layer)) continue;
    for (int expert = 0; expert < config_.num_experts; ++expert) {
      const std::vector<WorkerId>& holders = placement.Holders(layer, expert);
      if (std::find(holders.begin(), holders.end(), self) != holders.end() &&
          !loaded_[IndexOf(layer, expert)]) {
        missing.push_back({layer, expert});
      }
    }
  }
  return missing;
}

absl::Status LoadedExperts::Load(const Placement& placement, WorkerId self,
                                 const std::function<void(float)>& progress) {
  if (placement.num_layers != config_.num_layers || placement.num_experts != config_.num_experts ||
      placement.holders.size() != weights_.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the placement is for ", placement.num_layers, " layers of ", placement.num_experts,
        " experts, the checkpoint has ", config_.num_layers, " of ", config_.num_experts));
  }
  std::lock_guard<std::mutex> lock(loading_);
  const std::vector<Id> missing = Missing(placement, self);
  int64_t total_bytes = 0;
  for (const Id& id : missing) {
    for (const char* projection : kProjections) {
      const auto& tensor = checkpoint_->tensors().at(TensorName(id.layer, id.expert, projection));
      total_bytes += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
    }
  }
  CheckpointLoader loader(checkpoint_, mode_, total_bytes, progress);
  for (const Id& id : missing) {
    const auto load = [&](const char* projection, TensorView* view) {
      absl::StatusOr<Weight> weight = loader.Load(TensorName(id.layer, id.expert, projection));
      if (!weight.ok()) return weight.status();
      *view = weight->view;
      memory_.push_back(std::move(weight->memory));
      return absl::OkStatus();
    };
    kernels::ExpertWeights& weights = weights_[IndexOf(id.layer, id.expert)];
    TANDEM_RETURN_IF_ERROR(load(kProjections[0], &weights.gate));
    TANDEM_RETURN_IF_ERROR(load(kProjections[1], &weights.up));
    TANDEM_RETURN_IF_ERROR(load(kProjections[2], &weights.down));
    loaded_[IndexOf(id.layer, id.expert)] = true;
    ++num_loaded_;
  }
  if (missing.empty() && progress) progress(1.0f);
  return absl::OkStatus();
}

absl::Status LoadedExperts::Check(int64_t layer, absl::Span<const int32_t> experts) const {
  if (layer < 0 || layer >= config_.num_layers || !config_.IsMoeLayer(static_cast<int>(layer))) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " has no routed experts"));
  }
  for (const int32_t expert : experts) {
    if (expert < 0 || expert >= config_.num_experts) {
      return absl::InvalidArgumentError(absl::StrCat("expert ", expert, " is not one of the ",
                                                     config_.num_experts, " of a layer"));
    }
    if (!loaded_[IndexOf(layer, expert)]) {
      return absl::NotFoundError(
          absl::StrCat("expert ", expert, " of layer ", layer, " is not loaded"));
    }
  }
  return absl::OkStatus();
}

absl::Span<const kernels::ExpertWeights> LoadedExperts::Layer(int64_t layer) const {
  return absl::MakeConstSpan(weights_).subspan(IndexOf(layer, 0), config_.num_experts);
}

}  // namespace tandem
