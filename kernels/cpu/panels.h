// What every packed weight has in common: panels of outputs, which a kernel multiplies one at a
// time.
#ifndef TANDEM_KERNELS_CPU_PANELS_H_
#define TANDEM_KERNELS_CPU_PANELS_H_

#include <cstdint>

namespace tandem::kernels::cpu {

inline constexpr int64_t kPanelOutputs = 32;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_PANELS_H_
