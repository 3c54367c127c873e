#include "expert_worker/loaded_experts.h"

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr const char* kProjections[] = {"gate_proj", "up_proj", "down_proj"};

std::string TensorName(int layer, int expert, const char* projection) {
  return absl::StrCat(LoadedExperts::UnitName(layer, expert), ".", projection, ".weight");
}

// What is in memory already.
class FetchedUnit final : public PackedUnit {
 public:
  explicit FetchedUnit(PackedBytes expert) : expert_(std::move(expert)) {}
  bool is_kept() const override { return true; }
  std::shared_ptr<const std::byte> Find(const std::string& layout, int64_t bytes, ForAll) override {
    // The caller has nothing else to pack it from.
    TANDEM_CHECK(layout == expert_.layout.name && bytes == expert_.layout.bytes);
    return std::move(expert_.memory);
  }
  void Keep(const std::string&, std::shared_ptr<const std::byte>, int64_t) override {}

 private:
  PackedBytes expert_;
};

}  // namespace

std::string LoadedExperts::UnitName(int layer, int expert) {
  return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert);
}

std::vector<std::string> LoadedExperts::TensorNames(int layer, int expert) {
  std::vector<std::string> names;
  for (const char* projection : kProjections) {
    names.push_back(TensorName(layer, expert, projection));
  }
  return names;
}

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
                                 const std::function<absl::Status()>& may_go_on,
                                 const ExpertFetch& fetch) {
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
    for (const std::string& name : TensorNames(id.layer, id.expert)) {
      const auto& tensor = checkpoint_->tensors().at(name);
      total_bytes += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
    }
  }
  in_use_versions_[placement.version] = std::move(given);
  absl::Status status = LoadThese(missing, total_bytes, progress, may_go_on, fetch);
  if (!status.ok()) in_use_versions_.erase(placement.version);
  return status;
}

absl::Status LoadedExperts::LoadThese(const std::vector<Id>& missing, int64_t total_bytes,
                                      const std::function<void(float)>& progress,
                                      const std::function<absl::Status()>& may_go_on,
                                      const ExpertFetch& fetch) {
  CheckpointLoader loader(checkpoint_, format_, total_bytes, progress);
  for (const Id& id : missing) {
    if (may_go_on) TANDEM_RETURN_IF_ERROR(may_go_on());
    const size_t index = IndexOf(id.layer, id.expert);
    TANDEM_ASSIGN_OR_RETURN(bytes_of_[index], LoadOne(id, loader, fetch));
    bytes_ += bytes_of_[index];
    loaded_[index] = true;
    ++num_loaded_;
    ++num_loads_;
  }
  if (missing.empty() && progress) progress(1.0f);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> LoadedExperts::LoadOne(const Id& id, CheckpointLoader& loader,
                                               const ExpertFetch& fetch) {
  kernels::ExpertLayer& layer = *layers_[id.layer];
  if (fetch) {
    TANDEM_ASSIGN_OR_RETURN(kernels::ExpertTensors outline, Outline(id));
    const PackedLayout layout = layer.LayoutOf(outline);
    auto memory = layout.bytes > 0 ? fetch(id.layer, id.expert, layout) : nullptr;
    if (memory != nullptr) {
      FetchedUnit unit({layout, std::move(memory)});
      for (const std::string& name : TensorNames(id.layer, id.expert)) loader.Skip(name);
      return layer.Load(id.expert, std::move(outline), &unit);
    }
  }
  kernels::ExpertTensors tensors;
  const std::unique_ptr<PackedUnit> unit = loader.Unit(UnitName(id.layer, id.expert));
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
  return layer.Load(id.expert, std::move(tensors), unit.get());
}

absl::StatusOr<kernels::ExpertTensors> LoadedExperts::Outline(const Id& id) const {
  kernels::ExpertTensors tensors;
  const auto outline = [&](const char* projection, OwnedTensor* tensor) {
    const std::string name = TensorName(id.layer, id.expert, projection);
    absl::StatusOr<TensorView> view = checkpoint_->Outline(name, FormatOf(name, format_));
    if (!view.ok()) return view.status();
    tensor->view = *view;
    return absl::OkStatus();
  };
  TANDEM_RETURN_IF_ERROR(outline(kProjections[0], &tensors.gate));
  TANDEM_RETURN_IF_ERROR(outline(kProjections[1], &tensors.up));
  TANDEM_RETURN_IF_ERROR(outline(kProjections[2], &tensors.down));
  return tensors;
}

absl::StatusOr<PackedBytes> LoadedExperts::Packed(int64_t layer, int32_t expert) const {
  const std::shared_lock<std::shared_mutex> use = Use();
  TANDEM_RETURN_IF_ERROR(Check(layer, {expert}));
  const kernels::ExpertLayer& of_layer = *layers_[layer];
  TANDEM_ASSIGN_OR_RETURN(const kernels::ExpertTensors outline,
                          Outline({static_cast<int>(layer), expert}));
  PackedBytes packed{of_layer.LayoutOf(outline), nullptr};
  if (packed.layout.bytes == 0) {
    return absl::NotFoundError("what this worker's device has of an expert is for itself alone");
  }
  packed.memory = of_layer.Packed(expert);
  return packed;
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
