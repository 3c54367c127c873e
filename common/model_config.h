// The shape and the switches of a DeepSeek-V2 model, read from config.json and validated.
#ifndef TANDEM_COMMON_MODEL_CONFIG_H_
#define TANDEM_COMMON_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

enum class TopkMethod { kGreedy, kGroupLimitedGreedy };

// YaRN (arXiv:2309.00071) as DeepSeek-V2 uses it: static, at every length.
struct YarnScaling {
  double factor = 1;
  double original_max_position_embeddings = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
  bool operator==(const YarnScaling&) const = default;
};

// Plain data, immutable once parsed. Names follow config.json, with "num_" for counts.
struct ModelConfig {
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;      // of dense layers
  int32_t moe_intermediate_size = 0;  // of one routed expert
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t q_lora_rank = 0;  // 0: queries are not compressed
  int32_t kv_lora_rank = 0;
  int32_t qk_nope_head_dim = 0;
  int32_t qk_rope_head_dim = 0;
  int32_t v_head_dim = 0;
  int32_t num_experts = 0;  // routed, per MoE layer; 0: all layers are dense
  int32_t num_shared_experts = 0;
  int32_t experts_per_token = 0;
  int32_t first_k_dense_replace = 0;
  int32_t moe_layer_freq = 1;
  TopkMethod topk_method = TopkMethod::kGreedy;
  int32_t num_groups = 1;       // kGroupLimitedGreedy only
  int32_t top_groups = 1;       // likewise
  bool norm_topk_prob = false;  // weights are normalised, and then not scaled (original V2 code)
  float routed_scaling_factor = 1;
  float rms_norm_eps = 1e-6f;
  // Of the norms of compressed queries and latents: fixed in the reference, whatever config.json
  // says.
  static constexpr float kLatentNormEps = 1e-6f;
  double rope_theta = 10000;
  std::optional<YarnScaling> yarn;
  int32_t max_position_embeddings = 0;  // the context
  bool tie_word_embeddings = false;
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;

  int32_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  // Values per token and layer in the cache: the latent, then the rotated key.
  int32_t cache_row_width() const { return kv_lora_rank + qk_rope_head_dim; }
  int32_t shared_intermediate_size() const { return num_shared_experts * moe_intermediate_size; }
  bool IsMoeLayer(int32_t layer) const {
    return num_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  // Over all layers.
  int64_t num_routed_experts() const {
    int64_t experts = 0;
    for (int32_t layer = 0; layer < num_layers; ++layer)
      experts += IsMoeLayer(layer) ? num_experts : 0;
    return experts;
  }
  // qk_head_dim^-1/2, times g(factor, mscale_all_dim)^2 where YaRN asks for it.
  float SoftmaxScale() const;
  // What cosines and sines are multiplied by: g(factor, mscale) / g(factor, mscale_all_dim).
  float RopeFactor() const;
  // [qk_rope_head_dim / 2], each step rounded to f32 as the reference does it.
  std::vector<float> RopeFrequencies() const;
};

// Accepts the spellings of all transformers versions. `source` names the file in errors.
//   INVALID_ARGUMENT  broken JSON, a missing key, a value out of range
//   UNIMPLEMENTED     another architecture or a switch that is not supported
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json, absl::string_view source);
// Reads dir/config.json. NOT_FOUND without it.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

}  // namespace tandem

#endif  // TANDEM_COMMON_MODEL_CONFIG_H_
