// Contracts of the mixture of experts: routing, the routed experts, combination.
// Source: DeepSeek-V2 (arXiv:2405.04434) section 2.2 and its modeling code (MoEGate).
// Conventions of kernels/ops/dense.h.
#ifndef TANDEM_KERNELS_OPS_MOE_H_
#define TANDEM_KERNELS_OPS_MOE_H_

#include "kernels/device_tensor.h"
#include "kernels/weights.h"

namespace tandem::kernels {

// Picks each row's experts, best first.
//   p = softmax(x . weight^T) over all experts, in f32 (logits as by Linear, exponentials summed
//   with expert ascending); with num_groups > 0 only experts of the top_groups groups whose best
//   score is highest stay, the others score 0; the top_k highest are taken, of equal ones the lower
//   index first (groups too). weights = p * scaling, or, where normalize is set,
//   p / (sum of the chosen p in ranking order + 1e-20) without the scaling, as the original does.
struct RouteArgs {
  DeviceTensor x;              // [rows, hidden] act
  const LinearWeight& weight;  // one output per expert
  int top_k;
  int num_groups = 0;  // 0: plain greedy choice
  int top_groups = 0;
  bool normalize = false;
  float scaling = 1.0f;
  DeviceTensor expert_ids;  // [rows, top_k] i32
  DeviceTensor weights;     // [rows, top_k] f32
};

// out[t] = round(down(SiluMul(round(gate x), round(up x)))) of expert route_experts[t] applied to
// row route_rows[t] of x: the same arithmetic as Linear, SiluMul, Linear on that row alone.
// Rows are grouped by expert inside; an expert's weights are read once per call.
struct ExpertMlpArgs {
  DeviceTensor x;  // [rows, hidden] act
  const ExpertLayer& experts;
  DeviceTensor route_experts;  // [routes] i32, each loaded
  DeviceTensor route_rows;     // [routes] i32, each in [0, rows)
  DeviceTensor out;            // [routes, hidden] act
};

// Canonical combine: out[i] = round(sum over t in [offsets[i], offsets[i + 1]) of
// weights[t] * expert_rows[t]), in f32 from zero, t ascending (the router's ranking), product and
// addition fused.
struct CombineArgs {
  DeviceTensor expert_rows;  // [routes, hidden] act
  DeviceTensor offsets;      // [rows + 1] i32, ascending, in [0, routes]
  DeviceTensor weights;      // [routes] f32
  DeviceTensor out;          // [rows, hidden] act
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_OPS_MOE_H_
