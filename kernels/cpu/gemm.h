// Products of f32 rows with a weight matrix that lies as in the file, summed in lane order. Runs on
// the calling thread; the ops divide the work. Conventions of kernels/ops/dense.h.
#ifndef TANDEM_KERNELS_CPU_GEMM_H_
#define TANDEM_KERNELS_CPU_GEMM_H_

#include <cstdint>

#include "common/tensor.h"

namespace tandem::kernels::cpu {

// Floats per row of a widened operand of k values: k rounded up to whole vectors.
constexpr int64_t WidenedWidth(int64_t k) { return (k + 15) / 16 * 16; }

// A product of f32 rows with a weight matrix; GemmRange computes some of its columns.
struct Gemm {
  const float* x;    // [rows, k], unaligned
  int64_t x_stride;  // floats between rows
  int64_t rows;
  int64_t k;                   // a multiple of 8
  TensorView weight;           // [n, k] f32 or bf16, unaligned
  TensorView out;              // [rows, n] f32 or bf16; rounded where bf16
  bool round_to_bf16 = false;  // round also where out is f32
};

// out[i, n] = sum_k x[i, k] weight[n, k] in lane order for n in [n_begin, n_end), all rows.
void GemmRange(const Gemm& gemm, int64_t n_begin, int64_t n_end);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_GEMM_H_
