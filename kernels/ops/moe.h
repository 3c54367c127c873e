// Contracts of the mixture of experts: routing, the routed experts, combination.
// Source: DeepSeek-V2 (arXiv:2405.04434) section 2.2 and its modeling code (MoEGate).
// Conventions of kernels/ops/dense.h.
#ifndef TANDEM_KERNELS_OPS_MOE_H_
#define TANDEM_KERNELS_OPS_MOE_H_

#include <cstdint>

#include "absl/types/span.h"
#include "common/tensor.h"

namespace tandem::kernels {

// Picks each row's experts, best first.
//   p = softmax(x . weight^T) over all experts, in f32 (logits in lane order, exponentials summed
//   with expert ascending); with num_groups > 0 only experts of the top_groups groups whose best
//   score is highest stay, the others score 0; the top_k highest are taken, of equal ones the lower
//   index first (groups too). weights = p * scaling, or, where normalize is set,
//   p / (sum of the chosen p in ranking order + 1e-20) without the scaling, as the original does.
struct RouteArgs {
  TensorView x;       // [rows, hidden] act
  TensorView weight;  // [experts, hidden] weight
  int top_k;
  int num_groups = 0;  // 0: plain greedy choice
  int top_groups = 0;
  bool normalize = false;
  float scaling = 1.0f;
  TensorView expert_ids;  // [rows, top_k] i32
  TensorView weights;     // [rows, top_k] f32
};

struct ExpertWeights {
  TensorView gate;  // [intermediate, hidden] weight
  TensorView up;    // [intermediate, hidden] weight
  TensorView down;  // [hidden, intermediate] weight
};

// out[t] = round(down(SiluMul(round(gate x), round(up x)))) of expert route_experts[t] applied to
// row route_rows[t] of x: the same arithmetic as Linear, SiluMul, Linear on that row alone.
// Rows are grouped by expert inside; an expert's weights are read once per call.
struct ExpertMlpArgs {
  TensorView x;                             // [rows, hidden] act
  absl::Span<const ExpertWeights> experts;  // by expert id; only those named below are read
  absl::Span<const int32_t> route_experts;  // [routes]
  absl::Span<const int32_t> route_rows;     // [routes], each in [0, rows)
  TensorView out;                           // [routes, hidden] act
};

// Canonical combine: out[i] = round(sum over t in [offsets[i], offsets[i + 1]) of
// weights[t] * expert_rows[t]), in f32 from zero, t ascending (the router's ranking), product and
// addition fused.
struct CombineArgs {
  TensorView expert_rows;             // [routes, hidden] act
  absl::Span<const int32_t> offsets;  // [rows + 1]
  absl::Span<const float> weights;    // [routes]
  TensorView out;                     // [rows, hidden] act
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_OPS_MOE_H_
