#include "tools/simulate/cost_model.h"

#include <algorithm>

namespace tandem::simulate {

CostModel::CostModel(const ModelConfig& model, const CostConstants& constants)
    : model_(model), constants_(constants) {
  const double hidden = model.hidden_size;
  const double heads = model.num_heads;
  const double queries = heads * model.qk_head_dim();
  key_value_weights_ = heads * model.kv_lora_rank * (model.qk_nope_head_dim + model.v_head_dim);
  const double query_weights =
      model.q_lora_rank > 0 ? model.q_lora_rank * (hidden + queries) : hidden * queries;
  attention_weights_ = query_weights + hidden * model.cache_row_width() + key_value_weights_ +
                       heads * model.v_head_dim * hidden;
  shared_weights_ = 3 * hidden * model.shared_intermediate_size();
  expert_weights_ = 3 * hidden * model.moe_intermediate_size;
}

double CostModel::Matrix(double weights, int64_t rows) const {
  if (rows == 0) return 0;
  return std::max(weights * constants_.bytes_per_weight / (constants_.weight_gb_per_s * 1e9),
                  2 * weights * static_cast<double>(rows) / (constants_.matrix_tflop_per_s * 1e12));
}

Nanos CostModel::Attention(const LayerRows& work, bool moe) const {
  const double hidden = model_.hidden_size;
  const double mlp = moe ? hidden * model_.num_experts : 3 * hidden * model_.intermediate_size;
  double seconds = Matrix(attention_weights_ + mlp, work.rows);
  seconds += 2 * key_value_weights_ * static_cast<double>(work.expanded_positions) /
             (constants_.matrix_tflop_per_s * 1e12);
  // A multiply and an add for each value of a key and of a value.
  const double latent = model_.cache_row_width() + model_.kv_lora_rank;
  const double head = model_.qk_head_dim() + model_.v_head_dim;
  const double absorbed_flops =
      2.0 * model_.num_heads * latent * static_cast<double>(work.absorbed_pairs);
  const double expanded_flops =
      2.0 * model_.num_heads * head * static_cast<double>(work.expanded_pairs);
  const double cache_bytes = model_.cache_row_width() * constants_.cache_bytes_per_value *
                             static_cast<double>(work.absorbed_pairs);
  seconds += std::max(absorbed_flops / (constants_.absorbed_tflop_per_s * 1e12),
                      cache_bytes / (constants_.cache_gb_per_s * 1e9));
  seconds += expanded_flops / (constants_.expanded_tflop_per_s * 1e12);
  return FromSeconds(seconds) + FromUs(constants_.layer_us);
}

Nanos CostModel::SharedExperts(int64_t rows) const {
  return FromSeconds(Matrix(shared_weights_, rows));
}

Nanos CostModel::Outputs(int64_t rows) const {
  const double head = static_cast<double>(model_.hidden_size) * model_.vocab_size;
  return FromSeconds(Matrix(head, rows)) + FromUs(constants_.sample_us * static_cast<double>(rows));
}

Nanos CostModel::Expert(int64_t routes) const {
  return FromSeconds(Matrix(expert_weights_, routes));
}

Nanos CostModel::Transfer(int64_t rows) const {
  const double bytes =
      static_cast<double>(rows) * model_.hidden_size * constants_.row_bytes_per_value;
  return FromUs(constants_.message_us) + FromSeconds(bytes / (constants_.link_gb_per_s * 1e9));
}

}  // namespace tandem::simulate
