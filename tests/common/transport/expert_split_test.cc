#include "common/transport/expert_split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Three rows of two values with two routes each.
struct Batch {
  std::shared_ptr<std::vector<float>> values =
      std::make_shared<std::vector<float>>(std::vector<float>{0, 1, 10, 11, 20, 21});
  std::vector<int32_t> ids = {0, 1, 0, 2, 2, 3};
  std::vector<float> weights = {.1f, .2f, .3f, .4f, .5f, .6f};
  std::vector<int32_t> all = {0, 1, 2, 3, 4, 5};
  RowBatch rows() {
    RowBatch batch;
    batch.rows = TensorView(values->data(), Dtype::kF32, {3, 2});
    batch.rows_owner = values;
    batch.expert_ids = ids.data();
    batch.weights = weights.data();
    batch.top_k = 2;
    return batch;
  }
};

TEST(SplitRoutesTest, OneWorkerGetsAllRowsCombinedWithoutACopy) {
  Batch batch;
  const ExpertSplit split = SplitRoutes(batch.rows(), batch.all, [](int) { return 7; });
  ASSERT_EQ(split.parts.size(), 1u);
  const ExpertPart& part = split.parts[0];
  EXPECT_EQ(part.worker, 7u);
  EXPECT_EQ(part.request->rows.data, batch.values->data());
  EXPECT_EQ(part.request->rows_owner, batch.values);
  EXPECT_THAT(part.request->combined, ElementsAre(1, 1, 1));
  EXPECT_THAT(part.request->route_offsets, ElementsAre(0, 2, 4, 6));
  EXPECT_EQ(part.request->route_experts, batch.ids);
  EXPECT_EQ(part.request->route_weights, batch.weights);
  EXPECT_EQ(part.request->num_output_rows(), 3);
}

TEST(SplitRoutesTest, RowsWithoutAnOwnerAreCopied) {
  Batch batch;
  RowBatch rows = batch.rows();
  rows.rows_owner = nullptr;
  const ExpertSplit split = SplitRoutes(rows, batch.all, [](int) { return 7; });
  EXPECT_NE(split.parts[0].request->rows.data, batch.values->data());
  EXPECT_EQ(split.parts[0].request->rows.as<float>()[5], 21);
}

TEST(SplitRoutesTest, OnlyRowsWithOneWorkerAreCombined) {
  Batch batch;
  // Experts 0 and 1 at worker 1, 2 and 3 at worker 2.
  const ExpertSplit split =
      SplitRoutes(batch.rows(), batch.all, [](int expert) { return expert < 2 ? 1 : 2; });
  ASSERT_EQ(split.parts.size(), 2u);
  const ExpertPart& one = split.parts[0];
  EXPECT_THAT(one.rows, ElementsAre(0, 1));
  EXPECT_THAT(one.routes, ElementsAre(0, 1, 2));
  EXPECT_THAT(one.request->combined, ElementsAre(1, 0));
  EXPECT_THAT(one.request->route_offsets, ElementsAre(0, 2, 3));
  const ExpertPart& two = split.parts[1];
  EXPECT_THAT(two.rows, ElementsAre(1, 2));
  EXPECT_THAT(two.routes, ElementsAre(3, 4, 5));
  EXPECT_THAT(two.request->combined, ElementsAre(0, 1));
  EXPECT_EQ(two.request->rows.as<float>()[0], 10);
  EXPECT_EQ(two.request->rows.as<float>()[3], 21);
}

TEST(SplitRoutesTest, APartOfARowIsNeverCombined) {
  Batch batch;
  const std::vector<int32_t> some = {1, 4, 5};
  const ExpertSplit split = SplitRoutes(batch.rows(), some, [](int) { return 1; });
  ASSERT_EQ(split.parts.size(), 1u);
  EXPECT_THAT(split.parts[0].request->combined, ElementsAre(0, 1));
  EXPECT_THAT(split.parts[0].request->route_experts, ElementsAre(1, 2, 3));
}

TEST(SplitRoutesTest, RoutesWithoutAWorkerStayUnplaced) {
  Batch batch;
  const ExpertSplit split =
      SplitRoutes(batch.rows(), batch.all, [](int expert) -> std::optional<WorkerId> {
        if (expert == 2) return std::nullopt;
        return 1;
      });
  EXPECT_THAT(split.unplaced, ElementsAre(3, 4));
  ASSERT_EQ(split.parts.size(), 1u);
  EXPECT_THAT(split.parts[0].routes, ElementsAre(0, 1, 2, 5));
  EXPECT_THAT(split.parts[0].request->combined, ElementsAre(1, 0, 0));
  EXPECT_THAT(SplitRoutes(batch.rows(), {}, [](int) { return 1; }).parts, IsEmpty());
}

}  // namespace
}  // namespace tandem
