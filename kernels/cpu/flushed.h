// f32 arithmetic to nearest even in which denormal numbers count as zeros of their sign, as AMX and
// AVX-512 BF16 have it, and SSE and AVX where MXCSR says so. In plain C++, for emulations.
#ifndef TANDEM_KERNELS_CPU_FLUSHED_H_
#define TANDEM_KERNELS_CPU_FLUSHED_H_

#include <cmath>
#include <limits>

namespace tandem::kernels::cpu {

inline float Flushed(float value) {
  return std::abs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
}

inline float FlushedAdd(float a, float b) { return Flushed(Flushed(a) + Flushed(b)); }

// a * b + c, rounded once. Whether the result is denormal is asked of it as it would be with more
// exponents: what would be rounded up to the smallest normal number only for want of bits is zero.
inline float FlushedFma(float a, float b, float c) {
  a = Flushed(a);
  b = Flushed(b);
  c = Flushed(c);
  constexpr float kSmallest = std::numeric_limits<float>::min();
  constexpr float kLarger = 0x1p64f;  // of the two factors' the smaller one stays finite times it
  const float result = std::fma(a, b, c);
  if (!(std::abs(result) <= kSmallest)) return result;
  float& smaller = std::abs(a) < std::abs(b) ? a : b;
  smaller *= kLarger;
  const float scaled = std::fma(a, b, c * kLarger);
  return std::abs(scaled) < kSmallest * kLarger ? std::copysign(0.0f, result) : result;
}

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_FLUSHED_H_
