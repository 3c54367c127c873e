// The processor's ceiling of f32 arithmetic.
#ifndef TANDEM_TOOLS_BENCH_KERNELS_MUL_ADD_PEAK_H_
#define TANDEM_TOOLS_BENCH_KERNELS_MUL_ADD_PEAK_H_

#include <cstdint>

namespace tandem::kernels {

// Runs `steps` rounds of independent fused multiply-adds on the widest registers that the kernels
// use; returns the floating-point operations that were done.
int64_t RunMulAdds(int64_t steps);

}  // namespace tandem::kernels

#endif  // TANDEM_TOOLS_BENCH_KERNELS_MUL_ADD_PEAK_H_
