#include "common/checkpoint/tensor_table.h"

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {
namespace {

using Visit = absl::FunctionRef<absl::Status(const std::string& name, const TensorShape& shape)>;

absl::Status VisitAttention(const ModelConfig& c, const std::string& prefix, Visit visit) {
  const int64_t hidden = c.hidden_size;
  const int64_t heads = c.num_heads;
  const int64_t query = heads * c.qk_head_dim();
  if (c.q_lora_rank > 0) {
    TANDEM_RETURN_IF_ERROR(visit(prefix + "q_a_proj.weight", {c.q_lora_rank, hidden}));
    TANDEM_RETURN_IF_ERROR(visit(prefix + "q_a_layernorm.weight", {c.q_lora_rank}));
    TANDEM_RETURN_IF_ERROR(visit(prefix + "q_b_proj.weight", {query, c.q_lora_rank}));
  } else {
    TANDEM_RETURN_IF_ERROR(visit(prefix + "q_proj.weight", {query, hidden}));
  }
  TANDEM_RETURN_IF_ERROR(
      visit(prefix + "kv_a_proj_with_mqa.weight", {c.cache_row_width(), hidden}));
  TANDEM_RETURN_IF_ERROR(visit(prefix + "kv_a_layernorm.weight", {c.kv_lora_rank}));
  TANDEM_RETURN_IF_ERROR(visit(prefix + "kv_b_proj.weight",
                               {heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank}));
  return visit(prefix + "o_proj.weight", {hidden, heads * c.v_head_dim});
}

absl::Status VisitMlp(const std::string& prefix, int64_t hidden, int64_t intermediate,
                      Visit visit) {
  TANDEM_RETURN_IF_ERROR(visit(prefix + "gate_proj.weight", {intermediate, hidden}));
  TANDEM_RETURN_IF_ERROR(visit(prefix + "up_proj.weight", {intermediate, hidden}));
  return visit(prefix + "down_proj.weight", {hidden, intermediate});
}

absl::Status VisitMoe(const ModelConfig& c, const std::string& prefix, Visit visit) {
  TANDEM_RETURN_IF_ERROR(visit(prefix + "gate.weight", {c.num_experts, c.hidden_size}));
  for (int32_t e = 0; e < c.num_experts; ++e) {
    TANDEM_RETURN_IF_ERROR(VisitMlp(absl::StrCat(prefix, "experts.", e, "."), c.hidden_size,
                                    c.moe_intermediate_size, visit));
  }
  if (c.num_shared_experts == 0) return absl::OkStatus();
  return VisitMlp(prefix + "shared_experts.", c.hidden_size, c.shared_intermediate_size(), visit);
}

}  // namespace

absl::Status ForEachNeededTensor(const ModelConfig& c, Visit visit) {
  TANDEM_RETURN_IF_ERROR(visit("model.embed_tokens.weight", {c.vocab_size, c.hidden_size}));
  for (int32_t layer = 0; layer < c.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    TANDEM_RETURN_IF_ERROR(visit(prefix + "input_layernorm.weight", {c.hidden_size}));
    TANDEM_RETURN_IF_ERROR(VisitAttention(c, prefix + "self_attn.", visit));
    TANDEM_RETURN_IF_ERROR(visit(prefix + "post_attention_layernorm.weight", {c.hidden_size}));
    TANDEM_RETURN_IF_ERROR(
        c.IsMoeLayer(layer) ? VisitMoe(c, prefix + "mlp.", visit)
                            : VisitMlp(prefix + "mlp.", c.hidden_size, c.intermediate_size, visit));
  }
  TANDEM_RETURN_IF_ERROR(visit("model.norm.weight", {c.hidden_size}));
  if (c.tie_word_embeddings) return absl::OkStatus();
  return visit("lm_head.weight", {c.vocab_size, c.hidden_size});
}

}  // namespace tandem
