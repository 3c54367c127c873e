// A model with few layers, and constants that are easy to reckon with.
#ifndef TANDEM_TESTS_TOOLS_SIMULATE_SMALL_MODEL_H_
#define TANDEM_TESTS_TOOLS_SIMULATE_SMALL_MODEL_H_

#include "tools/simulate/simulation.h"

namespace tandem::simulate {

inline ModelConfig SmallModel() {
  ModelConfig model;
  model.vocab_size = 1000;
  model.hidden_size = 1000;
  model.intermediate_size = 4000;
  model.moe_intermediate_size = 1000;
  model.num_layers = 3;
  model.num_heads = 2;
  model.kv_lora_rank = 60;
  model.qk_nope_head_dim = 30;
  model.qk_rope_head_dim = 20;
  model.v_head_dim = 50;
  model.num_experts = 16;
  model.num_shared_experts = 1;
  model.experts_per_token = 4;
  model.first_k_dense_replace = 1;
  return model;
}

// 1e9 weights a second; everything else is free.
inline CostConstants OnlyWeights() {
  CostConstants constants = {};
  constants.bytes_per_weight = 1;
  constants.weight_gb_per_s = 1;
  constants.matrix_tflop_per_s = 1e6;
  constants.absorbed_tflop_per_s = constants.expanded_tflop_per_s = 1e6;
  constants.cache_gb_per_s = constants.link_gb_per_s = 1e6;
  constants.layer_us = constants.expert_call_us = constants.sample_us = 0;
  constants.latency_us = constants.message_us = 0;
  constants.gateway_step_us = constants.gateway_token_us = constants.gateway_request_us = 0;
  constants.gateway_latency_us = 0;
  return constants;
}

}  // namespace tandem::simulate

#endif  // TANDEM_TESTS_TOOLS_SIMULATE_SMALL_MODEL_H_
