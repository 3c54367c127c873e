#include "attention_worker/row_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <vector>

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

class RowPlanTest : public ::testing::Test {
 protected:
  std::shared_ptr<Sequence> MakeSequence(int32_t expanded_length, int num_pages) {
    auto sequence = std::make_shared<Sequence>();
    sequence->spec.expanded_length = expanded_length;
    sequence->spec.token_ids.resize(64 * num_pages);
    std::iota(sequence->spec.token_ids.begin(), sequence->spec.token_ids.end(), 100);
    for (int i = 0; i < num_pages; ++i)
      sequence->pages.Extend(pages_.Take(std::vector<int32_t>{next_page_++}));
    return sequence;
  }
  static void AddRun(Batch* batch, std::shared_ptr<Sequence> sequence, int32_t first,
                     int32_t count) {
    batch->runs.push_back({{0, first, count, false}, std::move(sequence), batch->num_rows});
    batch->num_rows += count;
  }

  PagePool pool_{16};
  SessionPages pages_{&pool_};
  int32_t next_page_ = 0;
};

TEST_F(RowPlanTest, PutsAbsorbedRowsFirstAndExpandedRowsBySequence) {
  const auto a = MakeSequence(64, 2);
  const auto b = MakeSequence(64, 2);
  Batch first, second;
  AddRun(&first, a, 60, 3);   // expanded
  AddRun(&first, b, 62, 4);   // half expanded
  AddRun(&second, a, 63, 2);  // half expanded
  const RowPlan plan = MakeRowPlan(std::vector<Batch*>{&first, &second});
  EXPECT_THAT(plan.rows.positions, ElementsAre(64, 65, 64, 60, 61, 62, 63, 62, 63));
  EXPECT_THAT(plan.rows.lengths, ElementsAre(65, 66, 65));
  EXPECT_THAT(plan.rows.slots, ElementsAre(0, 1, 0, 60, 61, 62, 63, 62, 63));
  EXPECT_EQ(plan.rows.page_ids[0], b->pages.page_ids()[1]);
  EXPECT_EQ(plan.rows.page_ids[3], a->pages.page_ids()[0]);
  EXPECT_THAT(plan.rows.token_ids, ElementsAre(164, 165, 164, 160, 161, 162, 163, 162, 163));
  EXPECT_THAT(plan.rows.table_of_row, ElementsAre(1, 1, 0));
  ASSERT_THAT(plan.rows.page_tables, SizeIs(2));
  EXPECT_EQ(plan.rows.page_tables[0].data(), a->pages.page_ids().data());
  ASSERT_THAT(plan.rows.expanded, SizeIs(2));
  EXPECT_EQ(plan.rows.expanded[0].first_row, 3);
  EXPECT_EQ(plan.rows.expanded[0].num_rows, 4);
  EXPECT_EQ(plan.rows.expanded[0].table, 0);
  EXPECT_EQ(plan.rows.expanded[1].num_rows, 2);
  EXPECT_EQ(plan.rows.expanded[1].table, 1);
  EXPECT_EQ(plan.PassRow(&first, 0), 3);
  EXPECT_EQ(plan.PassRow(&first, 6), 1);
  EXPECT_EQ(plan.PassRow(&second, 0), 6);
  EXPECT_EQ(plan.PassRow(&second, 1), 2);
  EXPECT_THAT(plan.sequences, ElementsAre(a, b));
}

TEST_F(RowPlanTest, PagesBelowTheExpandedLengthMayBeAbsorbedAsWell) {
  const auto sequence = MakeSequence(4 * 64, 5);
  sequence->spec.absorbed_pages = {{1, 2}, {3, 4}};
  Batch batch;
  AddRun(&batch, sequence, 62, 3 * 64);
  const RowPlan plan = MakeRowPlan(std::vector<Batch*>{&batch});
  ASSERT_EQ(plan.rows.num_rows(), 192);
  std::vector<int32_t> absorbed, expanded;
  for (int32_t position = 62; position < 254; ++position) {
    const int32_t page = position / 64;
    (page == 1 || page == 3 ? absorbed : expanded).push_back(position);
  }
  std::vector<int32_t> in_order = absorbed;
  in_order.insert(in_order.end(), expanded.begin(), expanded.end());
  EXPECT_EQ(plan.rows.positions, in_order);
  EXPECT_EQ(plan.rows.num_absorbed(), 126);
  ASSERT_THAT(plan.rows.expanded, SizeIs(1));
  EXPECT_EQ(plan.rows.expanded[0].first_row, 126);
  EXPECT_EQ(plan.rows.expanded[0].num_rows, 66);
  for (int32_t row = 0; row < 192; ++row) {
    EXPECT_EQ(plan.rows.positions[plan.PassRow(&batch, row)], 62 + row);
    EXPECT_EQ(plan.rows.token_ids[plan.PassRow(&batch, row)], 162 + row);
  }
}

TEST_F(RowPlanTest, RowsPastTheEmbeddingNeedNoToken) {
  Batch batch;
  AddRun(&batch, MakeSequence(0, 1), 0, 2);
  batch.next_layer = 1;
  EXPECT_THAT(MakeRowPlan(std::vector<Batch*>{&batch}).rows.token_ids, ElementsAre(0, 0));
}

TEST_F(RowPlanTest, JoinsRowsThatStaySideBySideIntoOneSlice) {
  Batch batch;
  for (int i = 0; i < 5; ++i) AddRun(&batch, MakeSequence(0, 1), 10 + i, 1);
  const RowPlan plan = MakeRowPlan(std::vector<Batch*>{&batch});
  ASSERT_THAT(plan.slices, SizeIs(1));
  EXPECT_EQ(plan.slices[0].num_rows, 5);
}

TEST_F(RowPlanTest, LeavesDeadRowsOut) {
  Batch batch;
  const auto ended = MakeSequence(0, 1);
  AddRun(&batch, MakeSequence(0, 1), 0, 2);
  AddRun(&batch, ended, 0, 2);
  AddRun(&batch, nullptr, 0, 2);
  AddRun(&batch, MakeSequence(0, 1), 5, 1);
  ended->ended = true;
  const RowPlan plan = MakeRowPlan(std::vector<Batch*>{&batch});
  EXPECT_THAT(plan.rows.positions, ElementsAre(0, 1, 5));
  EXPECT_EQ(plan.PassRow(&batch, 2), -1);
  EXPECT_EQ(plan.PassRow(&batch, 5), -1);
  EXPECT_EQ(plan.PassRow(&batch, 6), 2);
  EXPECT_FALSE(plan.AnyEnded());
  plan.sequences[0]->ended = true;
  EXPECT_TRUE(plan.AnyEnded());
  EXPECT_FALSE(plan.AllEnded());
}

}  // namespace
}  // namespace tandem
