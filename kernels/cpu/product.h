// Products of rows with a matrix, in any format: the arithmetic of Linear and of every op that is
// defined by it. Runs on the calling thread; the ops divide the work.
#ifndef TANDEM_KERNELS_CPU_PRODUCT_H_
#define TANDEM_KERNELS_CPU_PRODUCT_H_

#include <cstdint>

#include "common/tensor.h"
#include "kernels/cpu/matrix.h"

namespace tandem::kernels::cpu {

// out[i, n] = round(sum_k x[first_row + i, k] * weight[n, k]) for `rows` rows, as
// kernels/ops/dense.h says for the format.
struct Product {
  const Matrix& weight;
  const MatrixRows& x;  // of weight.RowsFor the activations
  int64_t first_row;
  int64_t rows;
  TensorView out;                     // [*, columns] f32 or bf16; rounded where bf16
  const int32_t* out_rows = nullptr;  // [rows] row of `out` that row i goes to; null: i
  bool round_to_bf16 = false;         // round also where out is f32
  int64_t first_output = 0;           // the one in column 0 of out
  const std::byte* next = nullptr;  // weights that are read afterwards, so that they are asked for
};

// Computes outputs [begin, end), begin >= first_output. `begin` is a multiple of kPanelOutputs,
// `end` is one or the last.
void Multiply(const Product& product, int64_t begin, int64_t end);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_PRODUCT_H_
