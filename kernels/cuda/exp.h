// The CPU backend's exponential (ExpPart in kernels/cpu/lanes.h), bit for bit: of operations that
// are rounded each as IEEE 754 has it, in the same order.
#ifndef TANDEM_KERNELS_CUDA_EXP_H_
#define TANDEM_KERNELS_CUDA_EXP_H_

#include <cstdint>

#include "kernels/cuda/ptx.h"

namespace tandem::kernels::cuda {

// 2^exponent, of a normal number.
__device__ inline float PowerOfTwo(int32_t exponent) {
  return FloatOf(static_cast<uint32_t>(exponent + 127) << 23);
}

// exp(x), within 2 units in the last place; 0 below -104, +inf above 88.73, a NaN for a NaN.
__device__ inline float PortableExp(float x) {
  if (x != x) return x;
  const float above = x > -104.0f ? x : -104.0f;
  const float clamped = above < 89.0f ? above : 89.0f;
  const float q = RoundToInteger(clamped * 1.44269504088896341f);
  float r = FusedMultiplyAdd(q, -0.693145751953125f, clamped);
  r = FusedMultiplyAdd(q, -1.428606765330187045e-6f, r);
  float p = 0.000198527617612853646278381f;
  p = FusedMultiplyAdd(p, r, 0.00139304355252534151077271f);
  p = FusedMultiplyAdd(p, r, 0.00833336077630519866943359f);
  p = FusedMultiplyAdd(p, r, 0.0416664853692054748535156f);
  p = FusedMultiplyAdd(p, r, 0.166666671633720397949219f);
  p = FusedMultiplyAdd(p, r, 0.5f);
  const float y = 1.0f + FusedMultiplyAdd(p, r * r, r);
  const auto exponent = static_cast<int32_t>(q);
  const int32_t half = exponent >> 1;  // in two steps: subnormal results are rounded once
  return y * PowerOfTwo(half) * PowerOfTwo(exponent - half);
}

// silu(z) = z / (1 + exp(-z)).
__device__ inline float Silu(float z) { return Divide(z, 1.0f + PortableExp(-z)); }

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_EXP_H_
