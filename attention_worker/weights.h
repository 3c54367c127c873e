// The weights of an attention worker: everything but the routed experts, by the names of the
// checkpoint.
#ifndef TANDEM_ATTENTION_WORKER_WEIGHTS_H_
#define TANDEM_ATTENTION_WORKER_WEIGHTS_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/mode.h"
#include "kernels/backend.h"

namespace tandem {

using LinearPtr = std::unique_ptr<const kernels::LinearWeight>;
using NormPtr = std::unique_ptr<const kernels::NormWeight>;

// Linear weights are [out_features, in_features], without bias. A weight that a layer does not have
// is null.
struct MlpWeights {
  LinearPtr gate_proj;
  LinearPtr up_proj;
  LinearPtr down_proj;

  bool empty() const { return gate_proj == nullptr; }
};

struct LayerWeights {
  NormPtr input_layernorm;  // [hidden]

  LinearPtr q_proj;              // [heads * (dn + dr), hidden]; null where queries are compressed
  LinearPtr q_a_proj;            // [q_lora_rank, hidden]; these three only where they are
  NormPtr q_a_layernorm;         // [q_lora_rank]
  LinearPtr q_b_proj;            // [heads * (dn + dr), q_lora_rank]
  LinearPtr kv_a_proj_with_mqa;  // [r + dr, hidden]: the latent, then the shared rope key
  NormPtr kv_a_layernorm;        // [r]
  std::unique_ptr<const kernels::KvUpWeight> kv_b_proj;
  LinearPtr o_proj;  // [hidden, heads * dv]

  NormPtr post_attention_layernorm;  // [hidden]

  MlpWeights mlp;             // dense layers
  LinearPtr router;           // [experts, hidden]; MoE layers
  MlpWeights shared_experts;  // MoE layers, as one MLP; empty if the model has none
};

struct AttentionWeights {
  std::unique_ptr<const kernels::EmbeddingWeight> embed_tokens;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  NormPtr norm;       // [hidden]
  LinearPtr lm_head;  // [vocab, hidden]; made of embed_tokens' tensor where they are tied
};

// Prepares the weights, and nothing else; tells `progress` the share of bytes that is done.
// Errors: those of Checkpoint::Load and Backend::Prepare...
absl::StatusOr<AttentionWeights> LoadAttentionWeights(const Checkpoint& checkpoint,
                                                      kernels::Backend* backend,
                                                      WeightFormat format,
                                                      const std::function<void(float)>& progress);

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_WEIGHTS_H_
