#include "common/checkpoint/convert.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace tandem {
namespace {

template <typename To, typename From>
std::vector<To> Convert(std::vector<From> from, Dtype from_dtype, Dtype to_dtype) {
  std::vector<To> to(from.size());
  const auto n = static_cast<int64_t>(from.size());
  ConvertElements(TensorView(from.data(), from_dtype, {n}), TensorView(to.data(), to_dtype, {n}));
  return to;
}

TEST(ConvertTest, WidensEveryHalf) {
  std::vector<uint16_t> halves;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) halves.push_back(static_cast<uint16_t>(bits));
  const auto floats = Convert<float>(halves, Dtype::kF16, Dtype::kF32);
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 0x1f);
    const int mantissa = static_cast<int>(bits & 0x3ff);
    const double sign = (bits & 0x8000) != 0 ? -1 : 1;
    if (exponent == 0x1f && mantissa != 0) {
      EXPECT_TRUE(std::isnan(floats[bits])) << bits;
    } else if (exponent == 0x1f) {
      EXPECT_EQ(floats[bits], sign * std::numeric_limits<float>::infinity());
    } else if (exponent == 0) {
      EXPECT_EQ(floats[bits], sign * mantissa * std::pow(2.0, -24)) << bits;
    } else {
      EXPECT_EQ(floats[bits], sign * (1 + mantissa / 1024.0) * std::pow(2.0, exponent - 15));
    }
    if (!std::isnan(floats[bits])) {
      EXPECT_EQ(std::signbit(floats[bits]), sign < 0) << bits;
    }
  }
}

TEST(ConvertTest, RoundsToNearestEven) {
  const float ulp = 1.0f / 128;  // of bf16 at 1
  const float huge = std::numeric_limits<float>::max();
  const auto rounded = Convert<uint16_t>(
      std::vector<float>{1 + ulp / 2, 1 + ulp * 3 / 2, 1 + ulp * 0.51f, -1 - ulp / 2, huge, -0.0f,
                         std::numeric_limits<float>::infinity()},
      Dtype::kF32, Dtype::kBF16);
  EXPECT_EQ(rounded,
            (std::vector<uint16_t>{0x3f80, 0x3f82, 0x3f81, 0xbf80, 0x7f80, 0x8000, 0x7f80}));
}

TEST(ConvertTest, KeepsNanWhoseBitsWouldBeCutOff) {
  uint32_t bits = 0x7f800001;
  float nan;
  std::memcpy(&nan, &bits, sizeof(nan));
  const auto rounded = Convert<uint16_t>(std::vector<float>{nan}, Dtype::kF32, Dtype::kBF16);
  EXPECT_EQ(rounded[0] & 0x7f80, 0x7f80);
  EXPECT_NE(rounded[0] & 0x007f, 0);
}

TEST(ConvertTest, WidensBF16Exactly) {
  const auto floats =
      Convert<float>(std::vector<uint16_t>{0x3f80, 0xc000, 0x0001}, Dtype::kBF16, Dtype::kF32);
  EXPECT_EQ(floats, (std::vector<float>{1.0f, -2.0f, std::ldexp(1.0f, -133)}));
}

TEST(ConvertTest, ReadsUnalignedElements) {
  std::string bytes(1 + 4, '\0');
  const float value = 3.5f;
  std::memcpy(bytes.data() + 1, &value, sizeof(value));
  uint16_t rounded = 0;
  ConvertElements(TensorView(bytes.data() + 1, Dtype::kF32, {1}),
                  TensorView(&rounded, Dtype::kBF16, {1}));
  EXPECT_EQ(rounded, 0x4060);
}

}  // namespace
}  // namespace tandem
