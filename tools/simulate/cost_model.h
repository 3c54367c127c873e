// How long a deployment's parts take for their work: the model's shapes, and some constants of the
// machines that were measured elsewhere (tools/simulate/*.toml say where).
#ifndef TANDEM_TOOLS_SIMULATE_COST_MODEL_H_
#define TANDEM_TOOLS_SIMULATE_COST_MODEL_H_

#include <cstdint>

#include "common/model_config.h"

namespace tandem::simulate {

using Nanos = int64_t;  // of simulated time

// The defaults are those of cpu_amx_int4.toml.
struct CostConstants {
  // Attention and expert workers.
  double bytes_per_weight = 0.539;
  double weight_gb_per_s = 27.9;  // at which weights are read
  double matrix_tflop_per_s = 2.0;
  // f32 or tensor cores: scores and sums over cached positions, in the form of a decoded row and in
  // that of a prompt's.
  double absorbed_tflop_per_s = 0.085;
  double expanded_tflop_per_s = 0.193;
  double cache_gb_per_s = 27.9;
  double cache_bytes_per_value = 2;
  double layer_us = 40;        // of an attention worker's layer, whatever is in it
  double expert_call_us = 10;  // of a call at an expert worker, likewise
  double sample_us = 330;      // per drawn token
  // Links between attention and expert workers.
  double latency_us = 25;      // one way
  double link_gb_per_s = 2.6;  // of a worker's port, each way
  double message_us = 5;       // that a message takes of each port, besides its bytes
  double row_bytes_per_value = 2;
  // The gateway: one thread, with what the process takes (docs/scaling.md, "The gateway's
  // processor").
  double gateway_step_us = 60;   // to plan and send a step, and to take its result
  double gateway_token_us = 10;  // to pass on a token
  double gateway_request_us = 80;
  double gateway_latency_us = 25;  // to an attention worker, one way
};

// Rows that are active in a layer of an attention worker, and what they attend to.
struct LayerRows {
  int64_t rows = 0;
  int64_t absorbed_pairs = 0;      // (row, position it sees), rows in the absorbed form
  int64_t expanded_pairs = 0;      // likewise in the expanded form
  int64_t expanded_positions = 0;  // of which keys and values are made
};

// Times by the roofline: weights that are read or operations, whichever takes longer. Nothing here
// knows of queues or of other workers.
class CostModel {
 public:
  CostModel(const ModelConfig& model, const CostConstants& constants);

  const ModelConfig& model() const { return model_; }
  const CostConstants& constants() const { return constants_; }

  // Attention, and in a MoE layer the router, else the dense MLP.
  Nanos Attention(const LayerRows& work, bool moe) const;
  Nanos SharedExperts(int64_t rows) const;
  // Logits and draws of `rows` rows.
  Nanos Outputs(int64_t rows) const;
  // One routed expert's part of a call.
  Nanos Expert(int64_t routes) const;
  Nanos ExpertCall() const { return FromUs(constants_.expert_call_us); }
  // Of rows of hidden state through a port.
  Nanos Transfer(int64_t rows) const;
  Nanos Latency() const { return FromUs(constants_.latency_us); }

  static Nanos FromUs(double us) { return static_cast<Nanos>(us * 1e3); }

 private:
  // A product of `rows` rows with a matrix of so many weights.
  double Matrix(double weights, int64_t rows) const;  // seconds
  static Nanos FromSeconds(double seconds) { return static_cast<Nanos>(seconds * 1e9); }

  const ModelConfig model_;
  const CostConstants constants_;
  double attention_weights_ = 0;
  double key_value_weights_ = 0;
  double shared_weights_ = 0;
  double expert_weights_ = 0;
};

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_COST_MODEL_H_
