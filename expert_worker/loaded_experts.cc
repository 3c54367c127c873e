#include "expert_worker/loaded_experts.h"

#include <algorithm>
#include <mutex>
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

LoadedExperts::LoadedExperts(const Checkpoint* checkpoint, WeightFormat format)
    : checkpoint_(checkpoint), config_(checkpoint->config()), format_(format) {
  const size_t size = IndexOf(config_.num_layers, 0);
  bytes_of_.resize(size);
  loaded_ = std::make_unique<std::atomic<bool>[]>(size);
  layers_.resize(config_.num_layers);
}

absl::StatusOr<std::unique_ptr<LoadedExperts>> LoadedExperts::Create(const Checkpoint* checkpoint,
                                                                     kernels::Backend* backend,
                                                                     WeightFormat format) {
  std::unique_ptr<LoadedExperts> experts(new LoadedExperts(checkpoint, format));
  const ModelConfig& config = checkpoint->config();
  const kernels::ExpertLayerShape shape{config.num_experts, config.hidden_size,
                                        config.moe_intermediate_size};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    if (!config.IsMoeLayer(layer)) continue;
    TANDEM_ASSIGN_OR_RETURN(experts->layers_[layer], backend->PrepareExpertLayer(shape, format));
  }
  return experts;
}

absl::Status LoadedExperts::Load(const Placement& placement, WorkerId self,
                                 const std::function<void(float)>& progress,
                                 const std::function<absl::Status()>& may_go_on) {
  MutexLock lock(changing_);
  if (placement.num_layers != config_.num_layers || placement.num_experts != config_.num_experts ||
      placement.holders.size() != bytes_of_.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the placement is for ", placement.num_layers, " layers of ", placement.num_experts,
        " experts, the checkpoint has ", config_.num_layers, " of ", config_.num_experts));
  }
  std::vector<bool> given = placement.GivenTo(self);
  std::vector<Id> missing;
  int64_t total_bytes = 0;
  for (size_t i = 0; i < given.size(); ++i) {
    const Id id{static_cast<int>(i / config_.num_experts),
                static_cast<int>(i % config_.num_experts)};
    given[i] = given[i] && config_.IsMoeLayer(id.layer);
    if (!given[i] || loaded_[i]) continue;
    missing.push_back(id);
    for (const char* projection : kProjections) {
      const auto& tensor = checkpoint_->tensors().at(TensorName(id.layer, id.expert, projection));
      total_bytes += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
    }
  }
  in_use_versions_[placement.version] = std::move(given);
  absl::Status status = LoadThese(missing, total_bytes, progress, may_go_on);
  if (!status.ok()) in_use_versions_.erase(placement.version);
  return status;
}

absl::Status LoadedExperts::LoadThese(const std::vector<Id>& missing, int64_t total_bytes,
                                      const std::function<void(float)>& progress,
                                      const std::function<absl::Status()>& may_go_on) {
  CheckpointLoader loader(checkpoint_, format_, total_bytes, progress);
  for (const Id& id : missing) {
    if (may_go_on) TANDEM_RETURN_IF_ERROR(may_go_on());
    kernels::ExpertTensors tensors;
    const std::unique_ptr<PackedUnit> unit =
        loader.Unit(absl::StrCat("model.layers.", id.layer, ".mlp.experts.", id.expert));
    const auto load = [&](const char* projection, OwnedTensor* tensor) {
      absl::StatusOr<OwnedTensor> loaded =
          loader.Load(TensorName(id.layer, id.expert, projection), unit.get());
      if (!loaded.ok()) return loaded.status();
      *tensor = *std::move(loaded);
      return absl::OkStatus();
    };
    TANDEM_RETURN_IF_ERROR(load(kProjections[0], &tensors.gate));
    TANDEM_RETURN_IF_ERROR(load(kProjections[1], &tensors.up));
    TANDEM_RETURN_IF_ERROR(load(kProjections[2], &tensors.down));
    const size_t index = IndexOf(id.layer, id.expert);
    TANDEM_ASSIGN_OR_RETURN(bytes_of_[index],
                            layers_[id.layer]->Load(id.expert, std::move(tensors), unit.get()));
    bytes_ += bytes_of_[index];
    loaded_[index] = true;
    ++num_loaded_;
    ++num_loads_;
  }
  if (missing.empty() && progress) progress(1.0f);
  return absl::OkStatus();
}

void LoadedExperts::Retire(PlacementVersion oldest_in_use) {
  MutexLock lock(changing_);
  // Versions of another gateway's life compare in no useful way; they are over.
  const auto in_use = [&](const auto& version) {
    return version.first.epoch == oldest_in_use.epoch && version.first >= oldest_in_use;
  };
  if (std::none_of(in_use_versions_.begin(), in_use_versions_.end(), in_use)) return;
  std::erase_if(in_use_versions_, [&](const auto& version) { return !in_use(version); });
  {
    std::unique_lock<std::shared_mutex> nobody(in_use_);
    floor_ = oldest_in_use;
  }
  UnloadUnwanted();
}

void LoadedExperts::DropUnwanted() {
  MutexLock lock(changing_);
  UnloadUnwanted();
}

void LoadedExperts::UnloadUnwanted() {
  std::unique_lock<std::shared_mutex> nobody(in_use_);
  for (size_t i = 0; i < bytes_of_.size(); ++i) {
    const bool wanted = std::any_of(in_use_versions_.begin(), in_use_versions_.end(),
                                    [i](const auto& version) { return version.second[i]; });
    if (wanted || !loaded_[i]) continue;
    loaded_[i] = false;
    layers_[i / config_.num_experts]->Unload(static_cast<int>(i % config_.num_experts));
    bytes_ -= std::exchange(bytes_of_[i], 0);
    --num_loaded_;
  }
}

std::vector<bool> LoadedExperts::Loaded() const {
  std::vector<bool> loaded(IndexOf(config_.num_layers, 0));
  for (size_t i = 0; i < loaded.size(); ++i) loaded[i] = loaded_[i];
  return loaded;
}

std::vector<const kernels::ExpertLayer*> LoadedExperts::Layers() const {
  std::vector<const kernels::ExpertLayer*> layers;
  for (const auto& layer : layers_) layers.push_back(layer.get());
  return layers;
}

absl::Status LoadedExperts::CheckVersion(PlacementVersion version) const {
  if (version.epoch != floor_.epoch || version >= floor_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "placement ", version.counter, " is used no more; the oldest in use is ", floor_.counter));
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

}  // namespace tandem
