// Scalar conversions between f32 and bf16, bit-identical to those of kernels/cpu/lanes.h.
#ifndef TANDEM_KERNELS_CPU_BF16_H_
#define TANDEM_KERNELS_CPU_BF16_H_

#include <cstdint>
#include <cstring>

#include "common/tensor.h"

namespace tandem::kernels::cpu {

inline float WidenBF16(BF16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// To nearest even; a NaN stays one.
inline BF16 RoundToBF16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return BF16{static_cast<uint16_t>((bits >> 16) | 0x40)};
  return BF16{static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

// Element i of an unaligned array of f32 or bf16.
inline float LoadElement(const void* data, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kF32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(data) + i * 4, sizeof(value));
    return value;
  }
  BF16 value;
  std::memcpy(&value, static_cast<const char*>(data) + i * 2, sizeof(value));
  return WidenBF16(value);
}
// Rounds where dtype is bf16.
inline void StoreElement(float value, void* data, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kF32) {
    std::memcpy(static_cast<char*>(data) + i * 4, &value, sizeof(value));
    return;
  }
  const BF16 rounded = RoundToBF16(value);
  std::memcpy(static_cast<char*>(data) + i * 2, &rounded, sizeof(rounded));
}

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_BF16_H_
