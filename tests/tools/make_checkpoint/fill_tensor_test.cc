#include "tools/make_checkpoint/fill_tensor.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

std::vector<uint16_t> Bits(uint64_t seed, const std::string& name, int64_t first, int64_t count) {
  std::vector<BF16> values(count);
  FillTensor(seed, name, absl::MakeSpan(values), first);
  std::vector<uint16_t> bits(count);
  std::memcpy(bits.data(), values.data(), count * sizeof(BF16));
  return bits;
}

struct Moments {
  double mean = 0;
  double deviation = 0;
  double beyond_two = 0;  // share further than two deviations from the mean
};

Moments MomentsOf(const std::vector<uint16_t>& bits) {
  Moments m;
  const auto n = static_cast<double>(bits.size());
  const auto value = [](uint16_t b) {
    return std::bit_cast<float>(static_cast<uint32_t>(b) << 16);
  };
  for (const uint16_t b : bits) m.mean += value(b) / n;
  for (const uint16_t b : bits) m.deviation += std::pow(value(b) - m.mean, 2) / n;
  m.deviation = std::sqrt(m.deviation);
  for (const uint16_t b : bits) {
    if (std::abs(value(b) - m.mean) > 2 * m.deviation) m.beyond_two += 1 / n;
  }
  return m;
}

constexpr int64_t kMany = 1 << 20;
constexpr char kLinear[] = "model.layers.1.self_attn.o_proj.weight";

TEST(FillTensorTest, WeightsAreNormalAroundZero) {
  const Moments m = MomentsOf(Bits(1, kLinear, 0, kMany));
  EXPECT_NEAR(m.mean, 0, 5 * 0.02 / std::sqrt(kMany));
  EXPECT_NEAR(m.deviation, 0.02, 1e-4);
  EXPECT_NEAR(m.beyond_two, 0.0455, 0.003);
}

TEST(FillTensorTest, NormsLieAroundOne) {
  const Moments m = MomentsOf(Bits(1, "model.layers.1.input_layernorm.weight", 0, kMany));
  EXPECT_NEAR(m.mean, 1, 1e-3);
  EXPECT_NEAR(m.deviation, 0.02, 3e-4);  // bf16 has steps of 1/128 there
}

TEST(FillTensorTest, PiecesMakeTheWhole) {
  const std::vector<uint16_t> whole = Bits(7, kLinear, 0, 1000);
  const std::vector<uint16_t> piece = Bits(7, kLinear, 333, 100);
  EXPECT_EQ(piece, std::vector<uint16_t>(whole.begin() + 333, whole.begin() + 433));
}

TEST(FillTensorTest, SeedAndNameChangeTheValues) {
  const std::vector<uint16_t> values = Bits(7, kLinear, 0, 100);
  EXPECT_NE(values, Bits(8, kLinear, 0, 100));
  EXPECT_NE(values, Bits(7, "lm_head.weight", 0, 100));
}

}  // namespace
}  // namespace tandem
