#include "tools/simulate/cost_model.h"

#include "gtest/gtest.h"
#include "tests/tools/simulate/small_model.h"

namespace tandem::simulate {
namespace {

// Per layer: q_proj 1000 x 2 x 50, kv_a_proj 1000 x 80, kv_b_proj 2 x 60 x 80, o_proj 2 x 50 x
// 1000; router 1000 x 16; dense 3 x 1000 x 4000.
constexpr Nanos kAttentionWeights = 100'000 + 80'000 + 9'600 + 100'000;

TEST(CostModelTest, FewRowsCostTheWeights) {
  const CostModel costs(SmallModel(), OnlyWeights());
  for (const int64_t rows : {1, 8}) {
    EXPECT_EQ(costs.Attention({.rows = rows}, true), kAttentionWeights + 16'000);
    EXPECT_EQ(costs.Attention({.rows = rows}, false), kAttentionWeights + 12'000'000);
    EXPECT_EQ(costs.Expert(rows), 3'000'000);
    EXPECT_EQ(costs.SharedExperts(rows), 3'000'000);
    EXPECT_EQ(costs.Outputs(rows), 1'000'000);
  }
  EXPECT_EQ(costs.Expert(0), 0);
}

TEST(CostModelTest, ManyRowsCostOperations) {
  CostConstants constants = OnlyWeights();
  constants.matrix_tflop_per_s = 0.01;  // as long as the weights at 5 rows
  const CostModel costs(SmallModel(), constants);
  EXPECT_EQ(costs.Expert(5), 3'000'000);
  EXPECT_EQ(costs.Expert(10), 6'000'000);
  EXPECT_EQ(costs.SharedExperts(20), 12'000'000);
}

TEST(CostModelTest, AttentionCostsPairs) {
  const Nanos weights = CostModel(SmallModel(), OnlyWeights()).Attention({.rows = 1}, true);
  CostConstants constants = OnlyWeights();
  constants.absorbed_tflop_per_s = 0.001;
  constants.expanded_tflop_per_s = 0.002;
  const CostModel costs(SmallModel(), constants);
  // Two heads; 80 + 60 values of a latent, 50 + 50 of a head, a multiply and an add for each.
  EXPECT_EQ(costs.Attention({.rows = 1, .absorbed_pairs = 1000}, true) - weights, 560'000);
  EXPECT_EQ(costs.Attention({.rows = 1, .expanded_pairs = 1000}, true) - weights, 200'000);
  constants.cache_gb_per_s = 0.1;  // 160 bytes a pair
  EXPECT_EQ(
      CostModel(SmallModel(), constants).Attention({.rows = 1, .absorbed_pairs = 1000}, true) -
          weights,
      1'600'000);
}

TEST(CostModelTest, MessagesCostTheirRowsAndThemselves) {
  CostConstants constants = OnlyWeights();
  constants.link_gb_per_s = 2;
  constants.message_us = 7;
  const CostModel costs(SmallModel(), constants);
  EXPECT_EQ(costs.Transfer(0), 7'000);
  EXPECT_EQ(costs.Transfer(10), 7'000 + 10'000);  // 2,000 bytes each
}

}  // namespace
}  // namespace tandem::simulate
