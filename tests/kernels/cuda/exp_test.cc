#include "kernels/cuda/exp.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <vector>

#include "kernels/cpu/row_ops.h"

namespace tandem::kernels {
namespace {

void ExpectTheCpusBits(const std::vector<float>& values) {
  std::vector<float> want(values.size());
  cpu::ExpRow(values.data(), static_cast<int64_t>(values.size()), want.data());
  for (size_t i = 0; i < values.size(); ++i) {
    const float got = cuda::PortableExp(values[i]);
    ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want[i]))
        << "x = " << values[i] << ", bits " << std::bit_cast<uint32_t>(values[i]);
  }
}

TEST(CudaExpTest, HasTheCpusBitsForFloatsOfAllKinds) {
  constexpr uint64_t kAll = uint64_t{1} << 32, kEvery = 397, kAtOnce = 1 << 16;
  std::vector<float> values;
  for (uint64_t bits = 0; bits < kAll; bits += kEvery) {
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    if (values.size() < kAtOnce && bits + kEvery < kAll) continue;
    ASSERT_NO_FATAL_FAILURE(ExpectTheCpusBits(values));
    values.clear();
  }
}

// All floats near where something changes: zeros and denormals, 1, the ends of the range, results
// that are denormal, infinities and NaNs.
TEST(CudaExpTest, HasTheCpusBitsAtTheEdges) {
  constexpr uint32_t kNear = 20000;
  std::vector<float> values;
  for (const uint32_t edge :
       {0x00000000u, 0x00800000u, 0x3F800000u, std::bit_cast<uint32_t>(87.33654f),
        std::bit_cast<uint32_t>(88.72284f), std::bit_cast<uint32_t>(89.0f),
        std::bit_cast<uint32_t>(103.9721f), std::bit_cast<uint32_t>(104.0f), 0x7F800000u,
        0x7FC00000u}) {
    for (uint32_t bits = edge - kNear; bits != edge + kNear; ++bits) {
      values.push_back(std::bit_cast<float>(bits));
      values.push_back(std::bit_cast<float>(bits ^ 0x80000000u));
    }
  }
  ExpectTheCpusBits(values);
}

}  // namespace
}  // namespace tandem::kernels
