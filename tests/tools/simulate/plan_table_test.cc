#include "tools/simulate/plan_table.h"

#include "gtest/gtest.h"
#include "tests/tools/simulate/small_model.h"

namespace tandem::simulate {
namespace {

TEST(PlanTableTest, CountsWhatMoves) {
  PlanTableOptions options;
  options.model = SmallModel();  // 32 experts
  options.copies = 1;
  const absl::StatusOr<PlanRow> row = PlanFor(options, 4);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_EQ(row->least_experts, 8);
  EXPECT_EQ(row->most_experts, 8);
  EXPECT_EQ(row->busiest_share, 1);
  EXPECT_EQ(row->busiest_in_all, 1);
  EXPECT_EQ(row->idle_moves, 0);
  EXPECT_EQ(row->fair_moves, 6);
  EXPECT_EQ(row->join_moves, 6);   // three of each layer's sixteen
  EXPECT_EQ(row->leave_moves, 6);  // what the one that leaves has left: three or four of each layer
}

TEST(PlanTableTest, LargeDeploymentsAreBalancedAndStable) {
  PlanTableOptions options;
  options.model = SmallModel();
  options.model.num_layers = 27;
  options.model.num_experts = 64;
  const absl::StatusOr<PlanRow> row = PlanFor(options, 256);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_EQ(row->idle_moves, 0);
  EXPECT_GE(row->least_experts, 12);  // 13 on average: two copies of 1,664 experts
  EXPECT_LE(row->most_experts, 14);
}

}  // namespace
}  // namespace tandem::simulate
