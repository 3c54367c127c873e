#include "common/checkpoint/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr uint64_t kWindowBytes = 64;
constexpr uint64_t kWindows = 18;  // head, tail, and sixteen between

std::string ConfigText(const ModelConfig& c) {
  std::string text = absl::StrJoin({c.vocab_size,
                                    c.hidden_size,
                                    c.intermediate_size,
                                    c.moe_intermediate_size,
                                    c.num_layers,
                                    c.num_heads,
                                    c.q_lora_rank,
                                    c.kv_lora_rank,
                                    c.qk_nope_head_dim,
                                    c.qk_rope_head_dim,
                                    c.v_head_dim,
                                    c.num_experts,
                                    c.num_shared_experts,
                                    c.experts_per_token,
                                    c.first_k_dense_replace,
                                    c.moe_layer_freq,
                                    static_cast<int32_t>(c.topk_method),
                                    c.num_groups,
                                    c.top_groups,
                                    c.norm_topk_prob ? 1 : 0,
                                    c.max_position_embeddings,
                                    c.tie_word_embeddings ? 1 : 0},
                                   ",");
  absl::StrAppendFormat(&text, ";%a,%a,%a", c.routed_scaling_factor, c.rms_norm_eps, c.rope_theta);
  if (c.yarn) {
    absl::StrAppendFormat(&text, ";%a,%a,%a,%a,%a,%a", c.yarn->factor,
                          c.yarn->original_max_position_embeddings, c.yarn->beta_fast,
                          c.yarn->beta_slow, c.yarn->mscale, c.yarn->mscale_all_dim);
  }
  absl::StrAppend(&text, ";bos ", c.bos_token_id.value_or(-1), ";eos ",
                  absl::StrJoin(c.eos_token_ids, ","));
  return text;
}

}  // namespace

absl::StatusOr<std::string> CheckpointDigest(const Checkpoint& checkpoint) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  const auto add = [&](const std::string& bytes) {
    const uint64_t length = bytes.size();
    XXH3_128bits_update(state.get(), &length, sizeof(length));
    XXH3_128bits_update(state.get(), bytes.data(), bytes.size());
  };
  add(ConfigText(checkpoint.config()));
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const SafetensorsEntry& entry = tensor.entry;
    add(absl::StrCat(name, ":", entry.dtype, ":", absl::StrJoin(entry.shape, ",")));
    const uint64_t size = entry.end - entry.begin;
    const uint64_t window = std::min(size, kWindowBytes);
    for (uint64_t i = 0; i < kWindows; ++i) {
      std::string bytes(window, '\0');
      const uint64_t offset = (size - window) / (kWindows - 1) * i;
      const uint64_t at = i + 1 == kWindows ? size - window : offset;
      TANDEM_RETURN_IF_ERROR(tensor.file->Read(entry.begin + at, window, bytes.data()));
      add(bytes);
    }
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

}  // namespace tandem
