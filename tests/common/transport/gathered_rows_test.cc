#include "common/transport/gathered_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace tandem {
namespace {

using ::testing::ElementsAre;

constexpr int kTopK = 2;

// A part of rows of one value, with so many routes each; all of a combined row's are in it.
ExpertPart MakePart(std::vector<int32_t> rows, std::vector<int32_t> routes,
                    std::vector<uint8_t> combined) {
  ExpertPart part;
  auto request = std::make_shared<ExpertRequest>();
  request->route_offsets.push_back(0);
  for (const int32_t row : rows) {
    int32_t count = 0;
    for (const int32_t route : routes) count += route / kTopK == row ? 1 : 0;
    request->route_offsets.push_back(request->route_offsets.back() + count);
  }
  request->combined = std::move(combined);
  part.request = std::move(request);
  part.rows = std::move(rows);
  part.routes = std::move(routes);
  return part;
}

ExpertReply MakeReply(std::vector<float> values) {
  auto owned = std::make_shared<std::vector<float>>(std::move(values));
  return {absl::OkStatus(),
          TensorView(owned->data(), Dtype::kF32, {static_cast<int64_t>(owned->size()), 1}), owned};
}

class GatheredRowsTest : public ::testing::Test {
 protected:
  int64_t Take(const ExpertPart& part, std::vector<float> values) {
    return gathered_.Take(part, MakeReply(std::move(values)), &pool_);
  }
  float Combined(int row) const { return gathered_.rows().combined_rows.as<float>()[row]; }
  float Expert(int route) const { return gathered_.rows().expert_rows.as<float>()[route]; }

  HostRowsPool pool_;
  GatheredRows gathered_{2, kTopK};
};

TEST_F(GatheredRowsTest, NoRowsAreComplete) { EXPECT_TRUE(GatheredRows(0, kTopK).complete()); }

TEST_F(GatheredRowsTest, CombinedRowsAndRoutesGoWhereTheyBelong) {
  EXPECT_EQ(Take(MakePart({0, 1}, {0, 1, 2}, {1, 0}), {10, 12}), 2);
  EXPECT_FALSE(gathered_.complete());
  EXPECT_TRUE(gathered_.has(2));
  EXPECT_FALSE(gathered_.has(3));
  EXPECT_EQ(Take(MakePart({1}, {3}, {0}), {13}), 1);
  EXPECT_TRUE(gathered_.complete());
  EXPECT_THAT(gathered_.rows().combined, ElementsAre(1, 0));
  EXPECT_EQ(Combined(0), 10);
  EXPECT_EQ(Expert(2), 12);
  EXPECT_EQ(Expert(3), 13);
}

TEST_F(GatheredRowsTest, TheFirstAnswerIsTaken) {
  EXPECT_EQ(Take(MakePart({0, 1}, {0, 1, 2, 3}, {1, 0}), {10, 12, 13}), 3);
  EXPECT_EQ(Take(MakePart({0, 1}, {0, 1, 2, 3}, {1, 0}), {-1, -1, -1}), 0);
  EXPECT_EQ(Combined(0), 10);
  EXPECT_EQ(Expert(2), 12);
}

TEST_F(GatheredRowsTest, ACombinedRowIsNotTakenOnceAllItsRoutesAreThere) {
  EXPECT_EQ(Take(MakePart({0}, {0}, {0}), {10}), 1);
  EXPECT_EQ(Take(MakePart({0}, {1}, {0}), {11}), 1);
  EXPECT_EQ(Take(MakePart({0}, {0, 1}, {1}), {-1}), 0);
  EXPECT_THAT(gathered_.rows().combined, ElementsAre(0, 0));
  EXPECT_EQ(Expert(0), 10);
  EXPECT_EQ(Expert(1), 11);
}

TEST_F(GatheredRowsTest, ACombinedRowTakesThePlaceOfSomeOfItsRoutes) {
  EXPECT_EQ(Take(MakePart({0}, {1}, {0}), {11}), 1);
  EXPECT_EQ(Take(MakePart({0, 1}, {0, 1, 2, 3}, {1, 1}), {20, 21}), 2);
  EXPECT_TRUE(gathered_.complete());
  EXPECT_THAT(gathered_.rows().combined, ElementsAre(1, 1));
  EXPECT_EQ(Combined(0), 20);
  // What was missing may still come, for nothing.
  EXPECT_EQ(Take(MakePart({0}, {0}, {0}), {10}), 0);
  EXPECT_THAT(gathered_.rows().combined, ElementsAre(1, 1));
}

}  // namespace
}  // namespace tandem
