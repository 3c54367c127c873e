// The weights of an attention worker: everything but the routed experts, by the names of the
// checkpoint.
#ifndef TANDEM_ATTENTION_WORKER_WEIGHTS_H_
#define TANDEM_ATTENTION_WORKER_WEIGHTS_H_

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/tensor.h"

namespace tandem {

// Linear weights are [out_features, in_features], without bias. A weight that a layer does not have
// is left empty.
struct MlpWeights {
  Weight gate_proj;
  Weight up_proj;
  Weight down_proj;

  bool empty() const { return gate_proj.view.empty(); }
};

struct LayerWeights {
  Weight input_layernorm;  // [hidden]

  Weight q_proj;              // [heads * (dn + dr), hidden]; empty where queries are compressed
  Weight q_a_proj;            // [q_lora_rank, hidden]; these three only where they are
  Weight q_a_layernorm;       // [q_lora_rank]
  Weight q_b_proj;            // [heads * (dn + dr), q_lora_rank]
  Weight kv_a_proj_with_mqa;  // [r + dr, hidden]: the latent, then the shared rope key
  Weight kv_a_layernorm;      // [r]
  Weight kv_b_proj;           // [heads * (dn + dv), r]; head h: W^UK_h, then W^UV_h
  Weight o_proj;              // [hidden, heads * dv]

  Weight post_attention_layernorm;  // [hidden]

  MlpWeights mlp;             // dense layers
  Weight router;              // [experts, hidden]; MoE layers
  MlpWeights shared_experts;  // MoE layers, as one MLP; empty if the model has none
};

struct AttentionWeights {
  Weight embed_tokens;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  Weight norm;     // [hidden]
  Weight lm_head;  // [vocab, hidden]; embed_tokens where they are tied
};

// Maps the weights, and nothing else, for a mode; tells `progress` the share of bytes that is done.
// Errors: those of Checkpoint::Load.
absl::StatusOr<AttentionWeights> LoadAttentionWeights(const Checkpoint& checkpoint, Dtype mode,
                                                      const std::function<void(float)>& progress);

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_WEIGHTS_H_
