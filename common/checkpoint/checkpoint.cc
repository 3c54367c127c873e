#include "common/checkpoint/checkpoint.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint/convert.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

using Json = nlohmann::json;
using Shapes = std::map<std::string, std::vector<int64_t>>;

std::string ShapeName(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

void AddMlp(const std::string& prefix, int64_t hidden, int64_t intermediate, Shapes* shapes) {
  (*shapes)[prefix + "gate_proj.weight"] = {intermediate, hidden};
  (*shapes)[prefix + "up_proj.weight"] = {intermediate, hidden};
  (*shapes)[prefix + "down_proj.weight"] = {hidden, intermediate};
}

// Every tensor that the model is made of (MODEL.md 2.1).
Shapes NeededTensors(const ModelConfig& c) {
  Shapes shapes;
  const int64_t hidden = c.hidden_size;
  const int64_t query = int64_t{c.num_heads} * c.qk_head_dim();
  shapes["model.embed_tokens.weight"] = {c.vocab_size, hidden};
  shapes["model.norm.weight"] = {hidden};
  if (!c.tie_word_embeddings) shapes["lm_head.weight"] = {c.vocab_size, hidden};
  for (int32_t l = 0; l < c.num_layers; ++l) {
    const std::string layer = absl::StrCat("model.layers.", l, ".");
    const std::string attention = layer + "self_attn.";
    shapes[layer + "input_layernorm.weight"] = {hidden};
    shapes[layer + "post_attention_layernorm.weight"] = {hidden};
    if (c.q_lora_rank > 0) {
      shapes[attention + "q_a_proj.weight"] = {c.q_lora_rank, hidden};
      shapes[attention + "q_a_layernorm.weight"] = {c.q_lora_rank};
      shapes[attention + "q_b_proj.weight"] = {query, c.q_lora_rank};
    } else {
      shapes[attention + "q_proj.weight"] = {query, hidden};
    }
    shapes[attention + "kv_a_proj_with_mqa.weight"] = {c.cache_row_width(), hidden};
    shapes[attention + "kv_a_layernorm.weight"] = {c.kv_lora_rank};
    shapes[attention + "kv_b_proj.weight"] = {
        int64_t{c.num_heads} * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank};
    shapes[attention + "o_proj.weight"] = {hidden, int64_t{c.num_heads} * c.v_head_dim};
    if (!c.IsMoeLayer(l)) {
      AddMlp(layer + "mlp.", hidden, c.intermediate_size, &shapes);
      continue;
    }
    shapes[layer + "mlp.gate.weight"] = {c.num_experts, hidden};
    for (int32_t e = 0; e < c.num_experts; ++e) {
      AddMlp(absl::StrCat(layer, "mlp.experts.", e, "."), hidden, c.moe_intermediate_size, &shapes);
    }
    if (c.num_shared_experts > 0) {
      AddMlp(layer + "mlp.shared_experts.", hidden, c.shared_intermediate_size(), &shapes);
    }
  }
  return shapes;
}

using Files = std::map<std::string, std::shared_ptr<const SafetensorsFile>>;

// Tensor name -> file name, from the index; file names must stay in the folder.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no object \"weight_map\""));
  }
  std::map<std::string, std::string> names;
  for (const auto& [tensor, value] : json["weight_map"].items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": the file of ", tensor, " is not a name"));
    }
    const std::string name = value.get<std::string>();
    if (name.empty() || name == ".." || name == "." || absl::StrContains(name, '/')) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": \"", name, "\" is not the name of a file beside it"));
    }
    names[tensor] = name;
  }
  return names;
}

// Where every needed tensor lies, by the index or in the single file.
absl::StatusOr<std::map<std::string, std::shared_ptr<const SafetensorsFile>>> FindFiles(
    const std::string& dir, const Shapes& needed) {
  const std::string index = dir + "/model.safetensors.index.json";
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> result;
  std::error_code error;
  if (!std::filesystem::exists(index, error)) {
    TANDEM_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(dir + "/model.safetensors"));
    for (const auto& [name, shape] : needed) result[name] = file;
    return result;
  }
  TANDEM_ASSIGN_OR_RETURN(const auto names, ReadIndex(index));
  Files files;
  for (const auto& [name, shape] : needed) {
    const auto it = names.find(name);
    if (it == names.end()) {
      return absl::NotFoundError(absl::StrCat(index, ": tensor ", name, " is missing"));
    }
    std::shared_ptr<const SafetensorsFile>& file = files[it->second];
    if (file == nullptr) {
      TANDEM_ASSIGN_OR_RETURN(file, SafetensorsFile::Open(absl::StrCat(dir, "/", it->second)));
    }
    result[name] = file;
  }
  return result;
}

absl::StatusOr<Dtype> WeightDtype(const SafetensorsEntry& entry) {
  if (entry.dtype == "BF16") return Dtype::kBF16;
  if (entry.dtype == "F16") return Dtype::kF16;
  if (entry.dtype == "F32") return Dtype::kF32;
  return absl::UnimplementedError(
      absl::StrCat("dtype ", entry.dtype, " is not supported for weights: BF16, F16 or F32 is"));
}

TensorView ViewOf(const void* data, Dtype dtype, const std::vector<int64_t>& shape) {
  void* memory =
      const_cast<void*>(data);  // views are shared with outputs; weights are never written
  if (shape.size() == 1) return TensorView(memory, dtype, {shape[0]});
  return TensorView(memory, dtype, {shape[0], shape[1]});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir) {
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint);
  TANDEM_ASSIGN_OR_RETURN(checkpoint->config_, LoadModelConfig(dir));
  const Shapes needed = NeededTensors(checkpoint->config_);
  TANDEM_ASSIGN_OR_RETURN(const auto files, FindFiles(dir, needed));
  for (const auto& [name, shape] : needed) {
    const std::shared_ptr<const SafetensorsFile>& file = files.at(name);
    const auto entry = file->entries().find(name);
    if (entry == file->entries().end()) {
      return absl::NotFoundError(absl::StrCat(file->path(), ": tensor ", name, " is missing"));
    }
    if (entry->second.shape != shape) {
      return absl::InvalidArgumentError(
          absl::StrCat(file->path(), ": tensor ", name, " has the shape ",
                       ShapeName(entry->second.shape), ", expected ", ShapeName(shape)));
    }
    if (const auto dtype = WeightDtype(entry->second); !dtype.ok()) {
      return absl::Status(dtype.status().code(), absl::StrCat(file->path(), ": tensor ", name, ": ",
                                                              dtype.status().message()));
    }
    checkpoint->tensors_[name] = {file, entry->second};
  }
  return checkpoint;
}

uint64_t Checkpoint::num_parameters() const {
  uint64_t total = 0;
  for (const auto& [name, tensor] : tensors_) {
    uint64_t elements = 1;
    for (int64_t n : tensor.entry.shape) elements *= static_cast<uint64_t>(n);
    total += elements;
  }
  return total;
}

absl::StatusOr<Weight> Checkpoint::Load(const std::string& name, Dtype mode) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", name));
  const TensorLocation& tensor = it->second;
  TANDEM_ASSIGN_OR_RETURN(const Dtype stored, WeightDtype(tensor.entry));
  TANDEM_ASSIGN_OR_RETURN(const auto mapped,
                          tensor.file->Map(tensor.entry.begin, tensor.entry.end));
  ++mapped_tensors_;
  mapped_bytes_ += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
  const TensorView view = ViewOf(mapped.get(), stored, tensor.entry.shape);
  const Dtype wanted = mode == Dtype::kBF16    ? Dtype::kBF16
                       : stored == Dtype::kF16 ? Dtype::kF32
                                               : stored;
  if (wanted == stored) return Weight{view, mapped};
  const std::shared_ptr<void> copy(std::malloc(view.elements() * DtypeBytes(wanted)), std::free);
  if (copy == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory to convert tensor ", name));
  }
  const TensorView converted = ViewOf(copy.get(), wanted, tensor.entry.shape);
  ConvertElements(view, converted);
  return Weight{converted, copy};
}

CheckpointLoader::CheckpointLoader(const Checkpoint* checkpoint, Dtype mode, int64_t total_bytes,
                                   std::function<void(float)> progress)
    : checkpoint_(checkpoint),
      mode_(mode),
      total_bytes_(std::max<int64_t>(1, total_bytes)),
      progress_(std::move(progress)) {}

absl::StatusOr<Weight> CheckpointLoader::Load(const std::string& name) {
  TANDEM_ASSIGN_OR_RETURN(Weight weight, checkpoint_->Load(name, mode_));
  constexpr size_t kPageBytes = 4096;
  const volatile char* bytes = weight.view.as<const volatile char>();
  for (size_t i = 0; i < weight.view.bytes(); i += kPageBytes) (void)bytes[i];
  const SafetensorsEntry& entry = checkpoint_->tensors().at(name).entry;
  done_bytes_ += static_cast<int64_t>(entry.end - entry.begin);
  if (progress_) {
    progress_(
        static_cast<float>(static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_)));
  }
  return weight;
}

int64_t TensorBytes(const Checkpoint& checkpoint,
                    const std::function<bool(const std::string&)>& wanted) {
  int64_t total = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (wanted(name)) total += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
  }
  return total;
}

}  // namespace tandem
