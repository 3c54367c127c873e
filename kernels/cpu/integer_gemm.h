// Products of quantized rows with an IntegerWeight. Runs on the calling thread; the ops divide the
// work.
#ifndef TANDEM_KERNELS_CPU_INTEGER_GEMM_H_
#define TANDEM_KERNELS_CPU_INTEGER_GEMM_H_

#include <cstdint>
#include <vector>

#include "common/tensor.h"
#include "kernels/cpu/integer_kernels.h"
#include "kernels/cpu/integer_rows.h"
#include "kernels/cpu/integer_weight.h"

namespace tandem::kernels::cpu {

struct IntegerGemm {
  const IntegerWeight& weight;
  const IntegerRows& x;
  int64_t first_row;
  int64_t rows;
  TensorView out;           // [*, outputs] f32 or bf16; rounded where bf16
  const int32_t* out_rows;  // [rows] row of `out` that row i goes to; null: i
  bool round_to_bf16;       // round also where out is f32
};

// out[i, n] = round(float(sum_k q_x[i, k] q_w[n, k]) * (scale_x[i] * scale_w[n])), the sum exact in
// 32 bits, for the outputs of panels [begin, end).
void MultiplyPanels(const IntegerGemm& gemm, int64_t begin, int64_t end);

// Makes MultiplyPanels use these, as IntegerKernels orders them, until they are set back. For tests
// and benchmarks, while nothing is multiplied. Returns those that were used before.
std::vector<IntegerKernel> ExchangeIntegerKernels(std::vector<IntegerKernel> kernels);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_INTEGER_GEMM_H_
