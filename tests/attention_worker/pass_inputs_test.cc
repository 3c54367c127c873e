#include "attention_worker/pass_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/backend.h"
#include "kernels/device_access.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

class PassInputsTest : public ::testing::Test {
 protected:
  // Absorbed rows at position 70, one of each sequence; sequence i has pages 10 i, 10 i + 1, ...
  PassRows Rows(int num_rows, int num_pages) {
    PassRows rows;
    tables_.clear();
    for (int i = 0; i < num_rows; ++i) {
      tables_.emplace_back(num_pages);
      for (int page = 0; page < num_pages; ++page) tables_.back()[page] = 10 * i + page;
    }
    for (int i = 0; i < num_rows; ++i) {
      rows.token_ids.push_back(100 + i);
      rows.positions.push_back(70);
      rows.page_ids.push_back(10 * i + 1);
      rows.slots.push_back(6);
      rows.table_of_row.push_back(i);
      rows.lengths.push_back(71);
      rows.page_tables.emplace_back(tables_[i]);
    }
    return rows;
  }
  static const int32_t* Address(const kernels::DeviceTensor& tensor) {
    return reinterpret_cast<const int32_t*>(kernels::DeviceAccess::Address(tensor));
  }
  static std::vector<int32_t> Values(const kernels::DeviceTensor& tensor) {
    return {Address(tensor), Address(tensor) + tensor.elements()};
  }
  std::vector<const int32_t*> Addresses() const {
    return {Address(inputs_.token_ids),  Address(inputs_.positions),    Address(inputs_.page_ids),
            Address(inputs_.slots),      Address(inputs_.table_of_row), Address(inputs_.lengths),
            Address(inputs_.page_tables)};
  }

  const std::unique_ptr<kernels::Backend> backend_ = *kernels::CreateCpuBackend(1);
  PassInputs inputs_{backend_.get()};
  std::vector<std::vector<int32_t>> tables_;
};

TEST_F(PassInputsTest, PutsEveryColumnAndTableOntoTheDevice) {
  inputs_.Put(Rows(3, 2));
  EXPECT_THAT(Values(inputs_.token_ids), ElementsAre(100, 101, 102));
  EXPECT_THAT(Values(inputs_.positions), ElementsAre(70, 70, 70));
  EXPECT_THAT(Values(inputs_.page_ids), ElementsAre(1, 11, 21));
  EXPECT_THAT(Values(inputs_.slots), ElementsAre(6, 6, 6));
  EXPECT_THAT(Values(inputs_.table_of_row), ElementsAre(0, 1, 2));
  EXPECT_THAT(Values(inputs_.lengths), ElementsAre(71, 71, 71));
  EXPECT_EQ(inputs_.page_tables.dim(0), 3);
  const std::vector<int32_t> tables = Values(inputs_.page_tables);
  const int32_t* const second = tables.data() + inputs_.page_tables.width();
  EXPECT_THAT(std::vector<int32_t>(second, second + 3), ElementsAre(10, 11, -1));
}

TEST_F(PassInputsTest, AddressesAndTableWidthStayWithinTheCapacities) {
  inputs_.Put(Rows(1, 2));
  const auto addresses = Addresses();
  const int64_t width = inputs_.page_tables.width();
  for (const int32_t* address : addresses) EXPECT_EQ((address - addresses[0]) % 16, 0);
  inputs_.Put(Rows(16, static_cast<int>(width)));
  EXPECT_THAT(Addresses(), ElementsAreArray(addresses));
  EXPECT_EQ(inputs_.page_tables.width(), width);
  // What a longer pass left behind does not show.
  inputs_.Put(Rows(2, 2));
  EXPECT_THAT(Addresses(), ElementsAreArray(addresses));
  const auto tables = Values(inputs_.page_tables);
  ASSERT_EQ(tables.size(), static_cast<size_t>(2 * width));
  EXPECT_EQ(tables[1], 1);
  for (int64_t i = 2; i < width; ++i) EXPECT_EQ(tables[i], -1);
}

TEST_F(PassInputsTest, GrowsByDoubling) {
  inputs_.Put(Rows(1, 2));
  inputs_.Put(Rows(100, static_cast<int>(inputs_.page_tables.width()) + 1));
  inputs_.Put(Rows(100, 40));
  EXPECT_EQ(inputs_.page_tables.width(), 64);
  EXPECT_EQ(Values(inputs_.token_ids).back(), 199);
  EXPECT_EQ(Values(inputs_.page_tables)[99 * 64 + 39], 990 + 39);
  const auto addresses = Addresses();
  inputs_.Put(Rows(128, 64));
  EXPECT_THAT(Addresses(), ElementsAreArray(addresses));
}

}  // namespace
}  // namespace tandem
