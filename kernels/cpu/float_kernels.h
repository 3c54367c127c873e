// The sums of products of floats, one kernel per instruction set; all kernels of an order find the
// same bits. The orders are those of kernels/ops/dense.h.
#ifndef TANDEM_KERNELS_CPU_FLOAT_KERNELS_H_
#define TANDEM_KERNELS_CPU_FLOAT_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/tensor.h"
#include "kernels/cpu/float_rows.h"
#include "kernels/cpu/float_weight.h"

namespace tandem::kernels::cpu {

// One panel of a weight by rows [first_row, first_row + rows) of x.
struct FloatPanelProduct {
  Dtype dtype;  // of the weight
  const std::byte* panel;
  const FloatRows* x;
  int64_t first_row;
  int64_t rows;
  // [rows, 32], aligned to 64 bytes, with room for a multiple of 16 rows.
  float* sums;
  const std::byte* next = nullptr;  // what is read after the panel, so that it is asked for
};

struct FloatKernel {
  const char* name;
  FloatOrder order;
  Dtype rows_dtype;  // of x; with rows of bf16 the weight is bf16 as well
  void (*run)(const FloatPanelProduct& product);
};

// What this machine can run, the fastest first; the last takes f32 rows. With the plain C++
// versions of the same kernels, for tests, where `emulated`.
std::vector<FloatKernel> FloatKernels(bool emulated = false);

// The order in which this machine multiplies bf16 by bf16 fastest.
FloatOrder FastestOrder();
// Whether there is a kernel for rows of bf16.
bool TakesBF16Rows(FloatOrder order);
// Requires that there is one.
const FloatKernel& FloatKernelFor(FloatOrder order, Dtype rows_dtype);

// Makes the functions above choose among these until they are set back. For tests and benchmarks,
// while nothing is multiplied. Returns those that were used before.
std::vector<FloatKernel> ExchangeFloatKernels(std::vector<FloatKernel> kernels);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_FLOAT_KERNELS_H_
