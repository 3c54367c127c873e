#include "attention_worker/weights.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";

bool IsRoutedExpert(const std::string& name) { return absl::StrContains(name, ".mlp.experts."); }

absl::StatusOr<MlpWeights> LoadMlp(CheckpointLoader& loader, const std::string& prefix) {
  MlpWeights mlp;
  TANDEM_ASSIGN_OR_RETURN(mlp.gate_proj, loader.Load(prefix + "gate_proj.weight"));
  TANDEM_ASSIGN_OR_RETURN(mlp.up_proj, loader.Load(prefix + "up_proj.weight"));
  TANDEM_ASSIGN_OR_RETURN(mlp.down_proj, loader.Load(prefix + "down_proj.weight"));
  return mlp;
}

absl::Status LoadAttention(CheckpointLoader& loader, const ModelConfig& config,
                           const std::string& prefix, LayerWeights* w) {
  if (config.q_lora_rank == 0) {
    TANDEM_ASSIGN_OR_RETURN(w->q_proj, loader.Load(prefix + "q_proj.weight"));
  } else {
    TANDEM_ASSIGN_OR_RETURN(w->q_a_proj, loader.Load(prefix + "q_a_proj.weight"));
    TANDEM_ASSIGN_OR_RETURN(w->q_a_layernorm, loader.Load(prefix + "q_a_layernorm.weight"));
    TANDEM_ASSIGN_OR_RETURN(w->q_b_proj, loader.Load(prefix + "q_b_proj.weight"));
  }
  TANDEM_ASSIGN_OR_RETURN(w->kv_a_proj_with_mqa, loader.Load(prefix + "kv_a_proj_with_mqa.weight"));
  TANDEM_ASSIGN_OR_RETURN(w->kv_a_layernorm, loader.Load(prefix + "kv_a_layernorm.weight"));
  TANDEM_ASSIGN_OR_RETURN(w->kv_b_proj, loader.Load(prefix + "kv_b_proj.weight"));
  TANDEM_ASSIGN_OR_RETURN(w->o_proj, loader.Load(prefix + "o_proj.weight"));
  return absl::OkStatus();
}

absl::StatusOr<LayerWeights> LoadLayer(CheckpointLoader& loader, const ModelConfig& config,
                                       int layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  LayerWeights w;
  TANDEM_ASSIGN_OR_RETURN(w.input_layernorm, loader.Load(prefix + "input_layernorm.weight"));
  TANDEM_RETURN_IF_ERROR(LoadAttention(loader, config, prefix + "self_attn.", &w));
  TANDEM_ASSIGN_OR_RETURN(w.post_attention_layernorm,
                          loader.Load(prefix + "post_attention_layernorm.weight"));
  if (!config.IsMoeLayer(layer)) {
    TANDEM_ASSIGN_OR_RETURN(w.mlp, LoadMlp(loader, prefix + "mlp."));
    return w;
  }
  TANDEM_ASSIGN_OR_RETURN(w.router, loader.Load(prefix + "mlp.gate.weight"));
  if (config.num_shared_experts > 0) {
    TANDEM_ASSIGN_OR_RETURN(w.shared_experts, LoadMlp(loader, prefix + "mlp.shared_experts."));
  }
  return w;
}

}  // namespace

absl::StatusOr<AttentionWeights> LoadAttentionWeights(const Checkpoint& checkpoint, Dtype mode,
                                                      const std::function<void(float)>& progress) {
  const ModelConfig& config = checkpoint.config();
  CheckpointLoader loader(
      &checkpoint, mode,
      TensorBytes(checkpoint, [](const std::string& name) { return !IsRoutedExpert(name); }),
      progress);
  AttentionWeights weights;
  TANDEM_ASSIGN_OR_RETURN(weights.embed_tokens, loader.Load(kEmbedding));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    TANDEM_ASSIGN_OR_RETURN(LayerWeights layer_weights, LoadLayer(loader, config, layer));
    weights.layers.push_back(std::move(layer_weights));
  }
  TANDEM_ASSIGN_OR_RETURN(weights.norm, loader.Load("model.norm.weight"));
  if (config.tie_word_embeddings) {
    weights.lm_head = weights.embed_tokens;
  } else {
    TANDEM_ASSIGN_OR_RETURN(weights.lm_head, loader.Load("lm_head.weight"));
  }
  return weights;
}

}  // namespace tandem
