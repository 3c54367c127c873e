#include "kernels/backend.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

TEST(CpuBackendTest, DescribesItself) {
  auto backend = CreateCpuBackend(2);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->Description().rfind("cpu avx", 0), 0u) << (*backend)->Description();
  EXPECT_NE((*backend)->Description().find(", 2 threads"), std::string::npos);
  EXPECT_EQ((*backend)->NumericsClass(), "cpu-1");
}

TEST(CpuBackendTest, RefusesANegativeNumberOfThreads) {
  EXPECT_EQ(CreateCpuBackend(-1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuBackendTest, AllocatesZeroedAlignedMemory) {
  auto backend = *CreateCpuBackend(1);
  for (size_t bytes : {0, 1, 63, 64, 65, 100000}) {
    auto buffer = backend->Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ((*buffer)->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*buffer)->data()) % 64, 0u);
    const auto* data = static_cast<const unsigned char*>((*buffer)->data());
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], 0);
  }
}

TEST(CpuBackendTest, SaysThatMemoryIsExhausted) {
  auto backend = *CreateCpuBackend(1);
  EXPECT_EQ(backend->Allocate(SIZE_MAX - 10).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(CpuBackendTest, CopiesRowsThatLieApart) {
  auto backend = *CreateCpuBackend(1);
  TestTensor t(Dtype::kF32, {3, 5}, /*row_gap=*/2);
  std::vector<float> from(15), to(15);
  for (int i = 0; i < 15; ++i) from[i] = static_cast<float>(i);
  backend->CopyFromHost(from.data(), t.view());
  EXPECT_EQ(t.at(1, 0), 5.0);
  EXPECT_EQ(t.at(2, 4), 14.0);
  backend->CopyToHost(t.view(), to.data());
  EXPECT_EQ(from, to);
}

TEST(CpuBackendDeathTest, ViolatedRequirementsEndTheProcess) {
  auto backend = *CreateCpuBackend(1);
  TestTensor x(Dtype::kF32, {1, 16}), w(Dtype::kF32, {3, 8}), out(Dtype::kF32, {1, 3});
  EXPECT_DEATH(backend->Linear({x.view(), w.view(), out.view()}), "broken invariant");
}

}  // namespace
}  // namespace tandem::kernels
