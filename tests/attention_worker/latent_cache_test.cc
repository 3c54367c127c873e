#include "attention_worker/latent_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

#include "kernels/device_access.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

std::vector<int32_t> Ids(const PageLease& lease) {
  return {lease.page_ids().begin(), lease.page_ids().end()};
}

TEST(PagePoolTest, GivesEveryPageOnceAndThenNone) {
  PagePool pool(5);
  auto first = pool.TryReserve(2);
  auto second = pool.TryReserve(3);
  ASSERT_TRUE(first.has_value() && second.has_value());
  std::set<int32_t> all;
  for (int32_t id : first->page_ids()) all.insert(id);
  for (int32_t id : second->page_ids()) all.insert(id);
  EXPECT_THAT(all, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_FALSE(pool.TryReserve(1).has_value());
  EXPECT_TRUE(pool.TryReserve(0).has_value());
}

TEST(PagePoolTest, GivesNothingWhereNotAllPagesAreFree) {
  PagePool pool(3);
  const auto lease = pool.TryReserve(2);
  EXPECT_FALSE(pool.TryReserve(2).has_value());
  EXPECT_EQ(pool.free_pages(), 1);
}

TEST(PagePoolTest, PagesComeBackWhenTheirLeaseEnds) {
  PagePool pool(4);
  {
    const auto lease = pool.TryReserve(3);
    EXPECT_EQ(pool.free_pages(), 1);
  }
  EXPECT_EQ(pool.free_pages(), 4);
  EXPECT_TRUE(pool.TryReserve(4).has_value());
}

TEST(PageLeaseTest, ExtendsInOrderAndKeepsItsFirstPages) {
  PagePool pool(6);
  PageLease lease = *pool.TryReserve(2);
  std::vector<int32_t> expected = Ids(lease);
  PageLease more = *pool.TryReserve(3);
  const std::vector<int32_t> added = Ids(more);
  expected.insert(expected.end(), added.begin(), added.end());
  lease.Extend(std::move(more));
  EXPECT_THAT(Ids(lease), ElementsAreArray(expected));
  EXPECT_EQ(pool.free_pages(), 1);
  lease.GiveBack();
  EXPECT_EQ(lease.num_pages(), 0);
  EXPECT_EQ(pool.free_pages(), 6);
}

TEST(PageLeaseTest, ExtendsFromAndByNothing) {
  PagePool pool(2);
  PageLease lease;
  lease.Extend(PageLease());
  lease.Extend(*pool.TryReserve(2));
  lease.Extend(*pool.TryReserve(0));
  EXPECT_EQ(lease.num_pages(), 2);
}

TEST(PageLeaseTest, MovingGivesBackWhatWasHeldBefore) {
  PagePool pool(5);
  PageLease a = *pool.TryReserve(2);
  PageLease b = *pool.TryReserve(3);
  const std::vector<int32_t> of_b = Ids(b);
  a = std::move(b);
  EXPECT_EQ(pool.free_pages(), 2);
  EXPECT_THAT(Ids(a), ElementsAreArray(of_b));
}

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
