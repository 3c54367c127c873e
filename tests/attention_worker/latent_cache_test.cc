#include "attention_worker/latent_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "kernels/device_access.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;

TEST(LatentCacheTest, HasOneZeroedTensorPerLayer) {
  auto backend = kernels::CreateCpuBackend(1);
  if (!backend.ok()) GTEST_SKIP() << backend.status();
  auto cache = LatentCache::Create(backend->get(), 3, 4, 24, Dtype::kBF16);
  ASSERT_TRUE(cache.ok()) << cache.status();
  std::set<void*> memory;
  for (int layer = 0; layer < 3; ++layer) {
    const kernels::DeviceTensor& view = (*cache)->layer(layer);
    EXPECT_THAT(std::vector<int64_t>(view.shape.begin(), view.shape.begin() + 3),
                ElementsAre(4, kPageTokens, 24));
    EXPECT_EQ(view.dtype, Dtype::kBF16);
    std::vector<uint16_t> values(view.elements(), 1);
    (*backend)->Read(view, values.data())->Wait();
    EXPECT_EQ(values.back(), 0);
    memory.insert(kernels::DeviceAccess::Address(view));
  }
  EXPECT_EQ(memory.size(), 3u);
  EXPECT_EQ((*cache)->pool().free_pages(), 4);
}

TEST(LatentCacheTest, SaysWhenItDoesNotFitIntoMemory) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer ends the process where malloc would return null";
#endif
  auto backend = kernels::CreateCpuBackend(1);
  if (!backend.ok()) GTEST_SKIP() << backend.status();
  const auto cache = LatentCache::Create(backend->get(), 2, 1 << 16, 1 << 30, Dtype::kF32);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted) << cache.status();
}

TEST(LatentCacheTest, CountsPagesOfTokens) {
  EXPECT_EQ(PagesFor(0), 0);
  EXPECT_EQ(PagesFor(1), 1);
  EXPECT_EQ(PagesFor(64), 1);
  EXPECT_EQ(PagesFor(65), 2);
}

}  // namespace
}  // namespace tandem
