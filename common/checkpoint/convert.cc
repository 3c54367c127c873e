#include "common/checkpoint/convert.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "common/check.h"

namespace tandem {
namespace {

float FromF16(uint16_t bits) {
  // Scaling by the difference of the exponents' biases is exact, for subnormal numbers too.
  float magnitude = std::bit_cast<float>(uint32_t{bits & 0x7fffu} << 13) * 0x1p112f;
  if ((bits & 0x7c00) == 0x7c00) {
    magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | 0x7f800000u);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float ReadElement(const std::byte* at, Dtype dtype) {
  if (dtype == Dtype::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return dtype == Dtype::kF16 ? FromF16(bits) : std::bit_cast<float>(uint32_t{bits} << 16);
}

}  // namespace

void ConvertElements(const TensorView& from, const TensorView& to) {
  TANDEM_CHECK(from.elements() == to.elements());
  TANDEM_CHECK(to.dtype == Dtype::kF32 || to.dtype == Dtype::kBF16);
  const auto* source = from.as<const std::byte>();
  auto* target = to.as<std::byte>();
  for (int64_t i = 0; i < from.elements(); ++i) {
    const float value = ReadElement(source, from.dtype);
    if (to.dtype == Dtype::kF32) {
      std::memcpy(target, &value, sizeof(value));
    } else {
      const uint16_t bits = ToBF16(value);
      std::memcpy(target, &bits, sizeof(bits));
    }
    source += DtypeBytes(from.dtype);
    target += DtypeBytes(to.dtype);
  }
}

}  // namespace tandem
