// Functions of single rows that ops share, on the calling thread. Conventions of
// kernels/ops/dense.h; rows are unaligned, `out` may be an input.
#ifndef TANDEM_KERNELS_CPU_ROW_OPS_H_
#define TANDEM_KERNELS_CPU_ROW_OPS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "common/tensor.h"

namespace tandem::kernels::cpu {

// Floats of a row of k values: k rounded up to whole vectors.
constexpr int64_t PaddedWidth(int64_t k) { return (k + 15) / 16 * 16; }

// out = from, widened or rounded where the dtypes differ.
void ConvertRow(const void* from, Dtype from_dtype, int64_t width, void* out, Dtype out_dtype);

// out = round(a + b).
void AddRow(const void* a, const void* b, Dtype act, int64_t width, void* out);

// The formula of RmsNormArgs.
void RmsNormRow(const void* x, Dtype act, const void* weight, Dtype weight_dtype, float eps,
                int64_t width, void* out);

// The formula of SiluMulArgs.
void SiluMulRow(const void* gate, const void* up, Dtype act, int64_t width, void* out);
// The same in f32 memory, rounding as for `act`.
void SiluMulWidened(const float* gate, const float* up, Dtype act, int64_t width, float* out);

// to[i] = exp(from[i]) with the Exp of kernels/cpu/lanes.h.
void ExpRow(const float* from, int64_t width, float* to);

// to[i] = round(2^40 exp((from[i] - max) / temperature)) to the nearest integer, ties to even; for
// from[i] <= max at most 2^40. -inf gives 0. max is finite, temperature > 0.
void FixedPointExpRow(const float* from, float max, float temperature, int64_t width, float* to);

// The sum of CombineArgs: out = round(sum_t weights[t] * rows[first + t]); `out` is no input.
void CombineRow(const TensorView& rows, int64_t first, absl::Span<const float> weights, void* out);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_ROW_OPS_H_
