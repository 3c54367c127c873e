#include "common/placement.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

TEST(PlacementTest, FindsAWorkerByItsIdAndKnowsItsLife) {
  Placement placement;
  placement.workers = {{3, "a:1", 30}, {5, "b:1", 50}};
  ASSERT_NE(placement.Find(5), nullptr);
  EXPECT_EQ(placement.Find(5)->address, "b:1");
  EXPECT_EQ(placement.Find(4), nullptr);
  EXPECT_TRUE(placement.Names({3, "a:1", 30}));
  EXPECT_FALSE(placement.Names({3, "a:1", 31}));
  EXPECT_FALSE(placement.Names({4, "a:1", 30}));
}

}  // namespace
}  // namespace tandem
