// The elementwise functions of kernels/cpu/lanes.h, seen through kernels/cpu/row_ops.h.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/row_ops.h"
#include "tests/kernels/targets.h"

namespace tandem::kernels::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
float ExpOf(float x) {
  float y;
  ExpRow(&x, 1, &y);
  return y;
}

// Floats over the whole range: every exponent, some mantissas, both signs.
std::vector<float> ManyFloats() {
  std::vector<float> values;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 9973) {
    values.push_back(FromBits(static_cast<uint32_t>(bits)));
  }
  return values;
}

TEST(ExpTest, IsWithinTwoUnitsInTheLastPlace) {
  std::vector<float> x, y;
  for (float v = -87.0f; v < 88.0f; v += 0.000971f) x.push_back(v);
  y.resize(x.size());
  ExpRow(x.data(), static_cast<int64_t>(x.size()), y.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    ASSERT_NEAR(y[i], exact, exact * std::ldexp(1.0, -22)) << x[i];
  }
}

TEST(ExpTest, IsRightAtTheEdges) {
  EXPECT_EQ(ExpOf(0.0f), 1.0f);
  EXPECT_EQ(ExpOf(-0.0f), 1.0f);
  EXPECT_EQ(ExpOf(-kInfinity), 0.0f);
  EXPECT_EQ(ExpOf(-104.0f), 0.0f);
  EXPECT_EQ(ExpOf(-1e30f), 0.0f);
  EXPECT_EQ(ExpOf(std::numeric_limits<float>::lowest()), 0.0f);
  EXPECT_EQ(ExpOf(89.0f), kInfinity);
  EXPECT_EQ(ExpOf(1e30f), kInfinity);
  EXPECT_EQ(ExpOf(kInfinity), kInfinity);
  EXPECT_TRUE(std::isfinite(ExpOf(88.72f)));
  EXPECT_TRUE(std::isnan(ExpOf(kNan)));
  EXPECT_NEAR(ExpOf(-100.0f), std::exp(-100.0), std::ldexp(1.0, -149));  // subnormal
}

TEST(ExpTest, HasTheSameBitsOnEveryTarget) {
  const std::vector<float> x = ManyFloats();
  std::vector<float> first;
  for (int64_t target : AvailableTargets()) {
    ScopedTarget scoped(target);
    std::vector<float> y(x.size());
    ExpRow(x.data(), static_cast<int64_t>(x.size()), y.data());
    if (first.empty()) first = y;
    EXPECT_EQ(std::memcmp(first.data(), y.data(), y.size() * sizeof(float)), 0)
        << hwy::TargetName(target);
  }
}

TEST(BF16Test, VectorsRoundAsScalarsDoOnEveryTarget) {
  std::vector<float> x = ManyFloats();
  for (uint32_t upper : {0x3F80u, 0x3F81u, 0xBF80u, 0x7F7Fu, 0x0000u, 0x7F80u}) {
    for (uint32_t lower : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      x.push_back(FromBits(upper << 16 | lower));
    }
  }
  for (int64_t target : AvailableTargets()) {
    ScopedTarget scoped(target);
    std::vector<BF16> y(x.size());
    ConvertRow(x.data(), Dtype::kF32, static_cast<int64_t>(x.size()), y.data(), Dtype::kBF16);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(y[i].bits, RoundToBF16(x[i]).bits) << Bits(x[i]);
    }
  }
}

TEST(BF16Test, RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(RoundToBF16(FromBits(0x3F808000u)).bits, 0x3F80);  // tie to even below
  EXPECT_EQ(RoundToBF16(FromBits(0x3F818000u)).bits, 0x3F82);  // tie to even above
  EXPECT_EQ(RoundToBF16(FromBits(0x3F808001u)).bits, 0x3F81);
  EXPECT_EQ(RoundToBF16(FromBits(0x7F7FFFFFu)).bits, 0x7F80);  // beyond the largest: infinity
  EXPECT_TRUE(std::isnan(WidenBF16(RoundToBF16(FromBits(0x7F800001u)))));
}

TEST(FixedPointExpRowTest, GivesIntegersUpToTwoToTheForty) {
  const std::vector<float> logits = {3.0f, 2.0f, -kInfinity, 3.0f - 27.0f, -90.0f};
  std::vector<float> w(logits.size());
  FixedPointExpRow(logits.data(), 3.0f, 1.0f, 5, w.data());
  EXPECT_EQ(w[0], std::ldexp(1.0f, 40));
  EXPECT_NEAR(w[1], std::ldexp(std::exp(-1.0), 40), std::ldexp(1.0, 18));
  EXPECT_EQ(w[2], 0.0f);
  EXPECT_EQ(w[3], std::nearbyint(std::ldexp(std::exp(-27.0), 40)));
  EXPECT_EQ(w[4], 0.0f);
}

}  // namespace
}  // namespace tandem::kernels::cpu
