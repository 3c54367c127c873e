#include "kernels/cuda/made_up.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

#include "common/made_up_values.h"
#include "tests/kernels/cuda/cuda_test.h"

namespace tandem::kernels {
namespace {

TEST(CudaMadeUpTest, AreTheHostsValues) {
  for (const char* const name : {"model.norm.weight", "lm_head.weight"}) {
    const MadeUpTensor tensor = MakeUpTensor(7, name);
    const TestTensor out(Dtype::kBF16, {33, 17});
    cuda::MakeUpValues(TestStream(1), tensor, out.device());
    for (int64_t i = 0; i < 33 * 17; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, out.view().row(i / 17) + i % 17 * 2, sizeof(bits));
      ASSERT_EQ(bits, MadeUpBits(tensor, static_cast<uint64_t>(i))) << name << " " << i;
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
