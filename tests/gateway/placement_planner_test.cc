#include "gateway/placement_planner.h"

#include <gtest/gtest.h>

#include <map>

namespace tandem {
namespace {

ModelConfig Config(int experts) {
  ModelConfig config;
  config.num_layers = 5;
  config.num_experts = experts;
  config.first_k_dense_replace = 1;
  config.moe_layer_freq = 2;
  return config;
}

TEST(PlacementTest, EveryExpertOfEveryMoeLayerHasOneHolder) {
  for (int num_workers : {1, 2, 3, 4, 7, 64, 70}) {
    std::vector<Placement::Worker> workers;
    for (int i = 0; i < num_workers; ++i) workers.push_back({static_cast<WorkerId>(10 + i), "x"});
    const auto placement = PlanPlacement(Config(64), workers, {1, 2});
    ASSERT_TRUE(placement.ok());
    for (int layer = 0; layer < 5; ++layer) {
      std::map<WorkerId, int> share;
      for (int expert = 0; expert < 64; ++expert) {
        const auto& holders = placement->Holders(layer, expert);
        ASSERT_EQ(holders.size(), layer == 2 || layer == 4 ? 1u : 0u);
        if (!holders.empty()) ++share[holders[0]];
      }
      for (const auto& [worker, count] : share) {
        EXPECT_GE(count, 64 / num_workers);
        EXPECT_LE(count, 64 / num_workers + 1);
      }
    }
  }
}

TEST(PlacementTest, ExpertsNeedAWorker) {
  EXPECT_EQ(PlanPlacement(Config(8), {}, {1, 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(PlanPlacement(Config(0), {}, {1, 1}).ok());
}

}  // namespace
}  // namespace tandem
