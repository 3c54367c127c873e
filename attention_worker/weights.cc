#include "attention_worker/weights.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kLmHead[] = "lm_head.weight";

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, kernels::Backend* backend, WeightFormat format,
         const std::function<void(float)>& progress)
      : config_(checkpoint.config()),
        backend_(*backend),
        format_(format),
        tensors_(
            &checkpoint, format,
            TensorBytes(checkpoint, [](const std::string& name) { return !IsRoutedExpert(name); }),
            progress) {}

  absl::StatusOr<AttentionWeights> Load() {
    AttentionWeights weights;
    TANDEM_ASSIGN_OR_RETURN(OwnedTensor embedding, tensors_.Load(kEmbedding));
    TANDEM_ASSIGN_OR_RETURN(weights.embed_tokens,
                            backend_.PrepareEmbedding(embedding, FormatOf(kEmbedding, format_)));
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      TANDEM_ASSIGN_OR_RETURN(LayerWeights layer_weights, LoadLayer(layer));
      weights.layers.push_back(std::move(layer_weights));
    }
    TANDEM_ASSIGN_OR_RETURN(weights.norm, Norm("model.norm.weight"));
    if (config_.tie_word_embeddings) {
      TANDEM_ASSIGN_OR_RETURN(
          weights.lm_head, backend_.PrepareLinear(std::move(embedding), FormatOf(kLmHead, format_),
                                                  tensors_.Unit(kLmHead).get()));
    } else {
      TANDEM_ASSIGN_OR_RETURN(weights.lm_head, Linear(kLmHead));
    }
    return weights;
  }

 private:
  absl::StatusOr<LinearPtr> Linear(const std::string& name) {
    const WeightFormat format = FormatOf(name, format_);
    // A router stays in floats: nothing is gained by keeping it apart.
    const auto unit = IsInteger(format) ? tensors_.Unit(name) : nullptr;
    TANDEM_ASSIGN_OR_RETURN(OwnedTensor tensor, tensors_.Load(name, unit.get()));
    return backend_.PrepareLinear(std::move(tensor), format, unit.get());
  }

  absl::StatusOr<NormPtr> Norm(const std::string& name) {
    TANDEM_ASSIGN_OR_RETURN(OwnedTensor tensor, tensors_.Load(name));
    return backend_.PrepareNorm(std::move(tensor), FormatOf(name, format_));
  }

  absl::StatusOr<MlpWeights> Mlp(const std::string& prefix) {
    MlpWeights mlp;
    TANDEM_ASSIGN_OR_RETURN(mlp.gate_proj, Linear(prefix + "gate_proj.weight"));
    TANDEM_ASSIGN_OR_RETURN(mlp.up_proj, Linear(prefix + "up_proj.weight"));
    TANDEM_ASSIGN_OR_RETURN(mlp.down_proj, Linear(prefix + "down_proj.weight"));
    return mlp;
  }

  absl::Status LoadAttention(const std::string& prefix, LayerWeights* w) {
    if (config_.q_lora_rank == 0) {
      TANDEM_ASSIGN_OR_RETURN(w->q_proj, Linear(prefix + "q_proj.weight"));
    } else {
      TANDEM_ASSIGN_OR_RETURN(w->q_a_proj, Linear(prefix + "q_a_proj.weight"));
      TANDEM_ASSIGN_OR_RETURN(w->q_a_layernorm, Norm(prefix + "q_a_layernorm.weight"));
      TANDEM_ASSIGN_OR_RETURN(w->q_b_proj, Linear(prefix + "q_b_proj.weight"));
    }
    TANDEM_ASSIGN_OR_RETURN(w->kv_a_proj_with_mqa, Linear(prefix + "kv_a_proj_with_mqa.weight"));
    TANDEM_ASSIGN_OR_RETURN(w->kv_a_layernorm, Norm(prefix + "kv_a_layernorm.weight"));
    const std::string kv_b_name = prefix + "kv_b_proj.weight";
    const std::unique_ptr<PackedUnit> unit = tensors_.Unit(kv_b_name);
    TANDEM_ASSIGN_OR_RETURN(OwnedTensor kv_b, tensors_.Load(kv_b_name, unit.get()));
    const kernels::KvUpShape shape{config_.num_heads, config_.qk_nope_head_dim, config_.v_head_dim,
                                   config_.kv_lora_rank};
    TANDEM_ASSIGN_OR_RETURN(
        w->kv_b_proj,
        backend_.PrepareKvUp(std::move(kv_b), shape, FormatOf(kv_b_name, format_), unit.get()));
    TANDEM_ASSIGN_OR_RETURN(w->o_proj, Linear(prefix + "o_proj.weight"));
    return absl::OkStatus();
  }

  absl::StatusOr<LayerWeights> LoadLayer(int layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    LayerWeights w;
    TANDEM_ASSIGN_OR_RETURN(w.input_layernorm, Norm(prefix + "input_layernorm.weight"));
    TANDEM_RETURN_IF_ERROR(LoadAttention(prefix + "self_attn.", &w));
    TANDEM_ASSIGN_OR_RETURN(w.post_attention_layernorm,
                            Norm(prefix + "post_attention_layernorm.weight"));
    if (!config_.IsMoeLayer(layer)) {
      TANDEM_ASSIGN_OR_RETURN(w.mlp, Mlp(prefix + "mlp."));
      return w;
    }
    TANDEM_ASSIGN_OR_RETURN(w.router, Linear(prefix + "mlp.gate.weight"));
    if (config_.num_shared_experts > 0) {
      TANDEM_ASSIGN_OR_RETURN(w.shared_experts, Mlp(prefix + "mlp.shared_experts."));
    }
    return w;
  }

  const ModelConfig& config_;
  kernels::Backend& backend_;
  const WeightFormat format_;
  CheckpointLoader tensors_;
};

}  // namespace

absl::StatusOr<AttentionWeights> LoadAttentionWeights(const Checkpoint& checkpoint,
                                                      kernels::Backend* backend,
                                                      WeightFormat format,
                                                      const std::function<void(float)>& progress) {
  return Loader(checkpoint, backend, format, progress).Load();
}

}  // namespace tandem
