// Contracts of the dense ops: embedding, norm, linear map, gated activation, addition.
//
// Activations ("act") are f32 or bf16, one dtype throughout a model: the mode. Weights are f32 or
// bf16 as the checkpoint stores them, widened exactly on the fly, and may be unaligned. Arithmetic
// is f32. "Rounded" means to the output's dtype, to nearest even; a no-op for f32. No result
// depends on how many rows a call has, on the other rows, on threads or on the vector width.
//
// The order of every long sum over k ("lane order"): sixteen partial sums, partial sum i takes
// k = i, i + 16, i + 32, ... in that order by fused multiply-add from zero, and they are folded as
// a tree: lane i += lane i + 8, then + 4, + 2, + 1.
#ifndef TANDEM_KERNELS_OPS_DENSE_H_
#define TANDEM_KERNELS_OPS_DENSE_H_

#include <cstdint>

#include "absl/types/span.h"
#include "common/tensor.h"

namespace tandem::kernels {

// out[i] = table[ids[i]].
struct EmbedArgs {
  TensorView table;               // [vocab, hidden] weight
  absl::Span<const int32_t> ids;  // [rows], each in [0, vocab)
  TensorView out;                 // [rows, hidden] act; a bf16 act of an f32 table is rounded
};

// out = round(weight * round(x / sqrt(mean(x^2) + eps))). Two roundings, as the reference has them
// (DeepSeek-V2 modeling code, DeepseekV2RMSNorm). The mean is summed in lane order.
struct RmsNormArgs {
  TensorView x;       // [rows, width] act; rows may be strided
  TensorView weight;  // [width] weight
  TensorView out;     // [rows, width] act; may be x
  float eps;
};

// out[i, n] = round(sum_k x[i, k] * weight[n, k]), the sum in lane order.
// Cost: rows * n * k fused multiply-adds; reads the weight once per block of rows.
struct LinearArgs {
  TensorView x;       // [rows, k] act; rows may be strided; k a multiple of 8
  TensorView weight;  // [n, k] weight
  TensorView out;     // [rows, n] act, or f32 for unrounded results; rows may be strided
};

// out = round(round(silu(gate)) * up), silu(z) = z / (1 + exp(-z)).
struct SiluMulArgs {
  TensorView gate;  // [rows, width] act
  TensorView up;    // [rows, width] act
  TensorView out;   // [rows, width] act; may be gate or up
};

// out = round(a + b).
struct AddArgs {
  TensorView a;    // [rows, width] act
  TensorView b;    // [rows, width] act
  TensorView out;  // [rows, width] act; may be a or b
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_OPS_DENSE_H_
