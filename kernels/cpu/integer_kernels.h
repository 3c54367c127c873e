// The sums of integer products, one kernel per instruction set, all to the same bits.
#ifndef TANDEM_KERNELS_CPU_INTEGER_KERNELS_H_
#define TANDEM_KERNELS_CPU_INTEGER_KERNELS_H_

#include <cstdint>
#include <vector>

#include "common/mode.h"
#include "kernels/cpu/integer_rows.h"

namespace tandem::kernels::cpu {

// One panel of a weight by rows [first_row, first_row + rows) of x.
struct PanelProduct {
  WeightFormat format;
  const uint8_t* panel;
  const IntegerRows* x;
  int64_t first_row;
  int64_t rows;
  // [rows, 32], aligned to 64 bytes, with room for a multiple of 16 rows: sum over all inputs of
  // the integers of row and output.
  int32_t* sums;
  const uint8_t* next = nullptr;  // what is read after the panel, so that it is asked for
};

struct IntegerKernel {
  const char* name;
  void (*run)(const PanelProduct& product);
  // For products with fewer rows there is a faster one.
  int64_t min_rows;
  // At once: more would fall out of the caches.
  int64_t max_rows;
};

// What this machine can run, the fastest for many rows first; the last takes any number of rows.
// With the plain C++ versions of the same kernels, for tests, where `emulated`.
std::vector<IntegerKernel> IntegerKernels(bool emulated = false);

const IntegerKernel& IntegerKernelFor(int64_t rows);

// Makes IntegerKernelFor choose among these, as IntegerKernels orders them, until they are set
// back. For tests and benchmarks, while nothing is multiplied. Returns those that were used before.
std::vector<IntegerKernel> ExchangeIntegerKernels(std::vector<IntegerKernel> kernels);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_INTEGER_KERNELS_H_
