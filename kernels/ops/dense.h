// Contracts of the dense ops: embedding, gathering, norm, linear map, gated activation, addition.
//
// Tensors lie in the memory of the backend, also those that change from step to step (ids,
// positions, page tables): an op's arguments on the host are sizes and constants only, so that a
// backend can record a pass once and replay it. Shapes and dtypes are checked once, before any
// backend's op (kernels/check_args.h), and a violation ends the process; what the indices in a
// tensor must satisfy is required of whoever puts them there.
//
// Activations ("act") are f32 or bf16, one dtype throughout a model: the mode. A weight's values
// are those of its format (common/mode.h), floats widened exactly on the fly. Arithmetic is f32,
// but in products with a matrix of integers. "Rounded" means to the output's dtype, to nearest
// even; a no-op for f32. No result depends on how many rows a call has, on the other rows, on
// threads or on the vector width.
//
// The orders of long sums over k:
//   lane order   sixteen partial sums, partial sum i takes k = i, i + 16, i + 32, ... in that order
//                by fused multiply-add from zero, and they are folded as a tree: lane i += lane
//                i + 8, then + 4, + 2, + 1.
//   block order  the sums of blocks of 32 k, ascending, are added to zero. In a block the even k and
//                the odd k are each summed by fused multiply-add, ascending, from zero, and the two
//                are added. What AMX does (tdpbf16ps).
//   pair order   the same, but a block's sum is one chain of fused multiply-adds from zero, over
//                pairs of k ascending, in a pair the odd k first. What AVX-512 BF16 does (vdpbf16ps).
//   tensor order the sums of steps of 16 k, ascending, are added to zero, step by step, by one
//                instruction of a GPU's tensor cores each (mma.m16n8k16), whose order within the step
//                is the GPU's own: the same for every value, but not on every GPU.
// In block and pair order denormal operands and results of each step count as zeros of their sign.
#ifndef TANDEM_KERNELS_OPS_DENSE_H_
#define TANDEM_KERNELS_OPS_DENSE_H_

#include "kernels/device_tensor.h"
#include "kernels/weights.h"

namespace tandem::kernels {

// out[i] = table[ids[i]].
struct EmbedArgs {
  const EmbeddingWeight& table;
  DeviceTensor ids;  // [rows] i32, each in [0, table.rows())
  DeviceTensor out;  // [rows, table.width()] act; a bf16 act of an f32 table is rounded
};

// out[i] = x[rows[i]], bit for bit.
struct GatherRowsArgs {
  DeviceTensor x;     // [any, width]
  DeviceTensor rows;  // [rows] i32, each a row of x
  DeviceTensor out;   // [rows, width], dtype of x
};

// out = round(weight * round(x / sqrt(mean(x^2) + eps))). Two roundings, as the reference has them
// (DeepSeek-V2 modeling code, DeepseekV2RMSNorm). The mean is summed in lane order.
struct RmsNormArgs {
  DeviceTensor x;  // [rows, width] act; rows may be strided
  const NormWeight& weight;
  DeviceTensor out;  // [rows, width] act; may be x
  float eps;
};

// out[i, n] = round(sum_k x[i, k] * weight[n, k]), the sum in block order; where act and format
// are bf16 a backend may have pair or tensor order instead, each of which is another numerics
// class.
//
// With a weight of integers, w[n, k] = s_w[n] q_w[n, k], a row is quantized as well:
//   s_x[i] = max_k |x[i, k]| / 127,  q_x[i, k] = x[i, k] * (127 / max), to nearest even
//   out[i, n] = round(float(sum_k q_x[i, k] q_w[n, k]) * (s_x[i] * s_w[n]))
// The sum is exact in 32 bits, so its order does not matter. A row whose largest magnitude is below
// 2^-100 is zero; a row or an output's weights with a NaN or an infinity give NaN.
// Cost: rows * n * k fused multiply-adds; reads the weight once per block of rows.
struct LinearArgs {
  DeviceTensor x;  // [rows, k] act; rows may be strided
  const LinearWeight& weight;
  DeviceTensor out;  // [rows, n] act, or f32 for unrounded results; rows may be strided
};

// out = round(silu(gate) * up), silu(z) = z / (1 + exp(-z)). One rounding, where the reference has
// two: so bf16 stays nearer to f32.
struct SiluMulArgs {
  DeviceTensor gate;  // [rows, width] act
  DeviceTensor up;    // [rows, width] act
  DeviceTensor out;   // [rows, width] act; may be gate or up
};

// out = round(a + b).
struct AddArgs {
  DeviceTensor a;    // [rows, width] act
  DeviceTensor b;    // [rows, width] act
  DeviceTensor out;  // [rows, width] act; may be a or b
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_OPS_DENSE_H_
