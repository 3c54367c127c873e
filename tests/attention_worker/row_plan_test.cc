#include "attention_worker/row_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
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
    sequence->pages.Extend(*pool_.TryReserve(num_pages));
    return sequence;
  }
  static void AddRun(Batch* batch, std::shared_ptr<Sequence> sequence, int32_t first,
                     int32_t count) {
    batch->runs.push_back({std::move(sequence), batch->num_rows, first, count, false});
    batch->num_rows += count;
  }

  PagePool pool_{16};
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
  EXPECT_EQ(plan.rows.page_tables[2], a->pages.page_ids().data());
  ASSERT_THAT(plan.rows.expanded, SizeIs(2));
  EXPECT_EQ(plan.rows.expanded[0].first_row, 3);
  EXPECT_EQ(plan.rows.expanded[0].num_rows, 4);
  EXPECT_EQ(plan.rows.expanded[1].num_rows, 2);
  EXPECT_EQ(plan.PassRow(&first, 0), 3);
  EXPECT_EQ(plan.PassRow(&first, 6), 1);
  EXPECT_EQ(plan.PassRow(&second, 0), 6);
  EXPECT_EQ(plan.PassRow(&second, 1), 2);
  EXPECT_THAT(plan.sequences, ElementsAre(a.get(), b.get()));
}

TEST_F(RowPlanTest, JoinsRowsThatStaySideBySideIntoOnePiece) {
  Batch batch;
  for (int i = 0; i < 5; ++i) AddRun(&batch, MakeSequence(0, 1), 10 + i, 1);
  const RowPlan plan = MakeRowPlan(std::vector<Batch*>{&batch});
  ASSERT_THAT(plan.pieces, SizeIs(1));
  EXPECT_EQ(plan.pieces[0].num_rows, 5);
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
}

}  // namespace
}  // namespace tandem
