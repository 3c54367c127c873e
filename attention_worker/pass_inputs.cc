#include "attention_worker/pass_inputs.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "common/check.h"
#include "common/pages.h"

namespace tandem {
namespace {

constexpr int kColumns = 6;  // of PassRows, by row
constexpr int64_t kMinRows = 64;
constexpr int64_t kMinTables = 16;
constexpr int64_t kMinPages = 16;

// The device trusts what it reads there.
void Check(const PassRows& rows) {
  const auto num_rows = static_cast<size_t>(rows.num_rows());
  TANDEM_CHECK(rows.token_ids.size() == num_rows && rows.page_ids.size() == num_rows &&
               rows.slots.size() == num_rows);
  TANDEM_CHECK(rows.table_of_row.size() == rows.lengths.size());
  for (size_t i = 0; i < num_rows; ++i) {
    TANDEM_CHECK(rows.positions[i] >= 0 && rows.page_ids[i] >= 0 && rows.slots[i] >= 0 &&
                 rows.slots[i] < kPageTokens);
  }
  for (size_t i = 0; i < rows.lengths.size(); ++i) {
    TANDEM_CHECK(rows.lengths[i] >= 1);
    const auto& table = rows.page_tables.at(rows.table_of_row[i]);
    TANDEM_CHECK(PagesFor(rows.lengths[i]) <= static_cast<int64_t>(table.size()));
  }
  for (const auto& table : rows.page_tables) {
    for (const int32_t page : table) TANDEM_CHECK(page >= 0);
  }
  for (const PassRows::Expanded& expanded : rows.expanded) {
    const int32_t last = expanded.first_row + expanded.num_rows - 1;
    TANDEM_CHECK(expanded.num_rows >= 1 && last < rows.num_rows());
    for (int32_t i = expanded.first_row; i < last; ++i) {
      TANDEM_CHECK(rows.positions[i] <= rows.positions[i + 1]);
    }
    const auto& table = rows.page_tables.at(expanded.table);
    TANDEM_CHECK(PagesFor(rows.positions[last] + 1) <= static_cast<int64_t>(table.size()));
  }
}

}  // namespace

void PassInputs::Grow(int64_t rows, int64_t tables, int64_t pages) {
  if (rows <= row_capacity_ && tables <= table_capacity_ && pages <= page_capacity_) return;
  const auto grown = [](int64_t capacity, int64_t least, int64_t wanted) {
    return std::max({capacity, least, static_cast<int64_t>(std::bit_ceil<uint64_t>(wanted))});
  };
  row_capacity_ = grown(row_capacity_, kMinRows, rows);
  table_capacity_ = grown(table_capacity_, kMinTables, tables);
  page_capacity_ = grown(page_capacity_, kMinPages, pages);
  staging_.assign(column(kColumns) + table_capacity_ * page_capacity_, -1);
  buffer_.reset();
  auto buffer = backend_->Allocate(staging_.size() * sizeof(int32_t));
  TANDEM_CHECK(buffer.ok());
  buffer_ = *std::move(buffer);
}

void PassInputs::Put(const PassRows& rows) {
  Check(rows);
  const auto num_tables = static_cast<int64_t>(rows.page_tables.size());
  int64_t longest = 0;
  for (const auto& table : rows.page_tables) {
    longest = std::max(longest, static_cast<int64_t>(table.size()));
  }
  Grow(rows.num_rows(), num_tables, longest);

  const std::pair<const std::vector<int32_t>*, kernels::DeviceTensor*> columns[kColumns] = {
      {&rows.token_ids, &token_ids},       {&rows.positions, &positions},
      {&rows.page_ids, &page_ids},         {&rows.slots, &slots},
      {&rows.table_of_row, &table_of_row}, {&rows.lengths, &lengths}};
  const int64_t used = column(kColumns) + num_tables * page_capacity_;
  const auto all = buffer_->Tensor(Dtype::kI32, {used});
  for (int i = 0; i < kColumns; ++i) {
    const auto& [values, tensor] = columns[i];
    std::copy(values->begin(), values->end(), staging_.begin() + column(i));
    *tensor = all.slice(column(i), static_cast<int64_t>(values->size()));
  }
  for (int64_t i = 0; i < num_tables; ++i) {
    const auto& table = rows.page_tables[i];
    const auto begin = staging_.begin() + column(kColumns) + i * page_capacity_;
    std::fill(std::copy(table.begin(), table.end(), begin), begin + page_capacity_, -1);
  }
  page_tables = all.slice(column(kColumns), num_tables * page_capacity_)
                    .reshaped({num_tables, page_capacity_});
  backend_->Write(staging_.data(), all);
}

}  // namespace tandem
