#include "attention_worker/pass_inputs.h"

#include <algorithm>

#include "common/check.h"
#include "common/pages.h"

namespace tandem {
namespace {

constexpr size_t kMinCapacity = 4096;  // ids

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

void PassInputs::Put(const PassRows& rows) {
  Check(rows);
  const int64_t num_rows = rows.num_rows();
  const int64_t num_absorbed = rows.num_absorbed();
  const auto num_tables = static_cast<int64_t>(rows.page_tables.size());
  int64_t table_width = 1;
  for (const auto& table : rows.page_tables) {
    table_width = std::max(table_width, static_cast<int64_t>(table.size()));
  }

  staging_.clear();
  const auto add = [this](const std::vector<int32_t>& values) {
    staging_.insert(staging_.end(), values.begin(), values.end());
  };
  add(rows.token_ids);
  add(rows.positions);
  add(rows.page_ids);
  add(rows.slots);
  add(rows.table_of_row);
  add(rows.lengths);
  for (const auto& table : rows.page_tables) {
    staging_.insert(staging_.end(), table.begin(), table.end());
    staging_.resize(staging_.size() + table_width - table.size(), -1);
  }

  if (buffer_ == nullptr || buffer_->bytes() < staging_.size() * sizeof(int32_t)) {
    buffer_.reset();
    size_t capacity = kMinCapacity;
    while (capacity < staging_.size()) capacity *= 2;
    auto buffer = backend_->Allocate(capacity * sizeof(int32_t));
    TANDEM_CHECK(buffer.ok());
    buffer_ = *std::move(buffer);
  }
  const auto size = static_cast<int64_t>(staging_.size());
  const auto all = buffer_->Tensor(Dtype::kI32, {size});
  backend_->Write(staging_.data(), all);
  int64_t next = 0;
  const auto take = [&](int64_t count) {
    next += count;
    return all.slice(next - count, count);
  };
  token_ids = take(num_rows);
  positions = take(num_rows);
  page_ids = take(num_rows);
  slots = take(num_rows);
  table_of_row = take(num_absorbed);
  lengths = take(num_absorbed);
  page_tables = take(num_tables * table_width).reshaped({num_tables, table_width});
}

}  // namespace tandem
