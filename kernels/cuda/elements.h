// Elements of tensors as kernels read and write them.
#ifndef TANDEM_KERNELS_CUDA_ELEMENTS_H_
#define TANDEM_KERNELS_CUDA_ELEMENTS_H_

#include <cstdint>

#include "kernels/cuda/ptx.h"

namespace tandem::kernels::cuda {

// The bits of a bfloat16.
struct Bf16 {
  uint16_t bits;
};

// What is read and written as one.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Chunk {
  T values[kCount];
};
template <typename T>
using Chunk16 = Chunk<T, 16 / sizeof(T)>;

__host__ __device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(Bf16 value) {
  return FloatOf(static_cast<uint32_t>(value.bits) << 16);
}

// To nearest, ties to even; NaNs stay quiet NaNs of their sign.
template <typename T>
__device__ T Round(float value);
template <>
__device__ inline float Round<float>(float value) {
  return value;
}
template <>
__device__ inline Bf16 Round<Bf16>(float value) {
  const uint32_t bits = BitsOf(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_ELEMENTS_H_
