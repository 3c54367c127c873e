#include "attention_worker/row_plan.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace tandem {
namespace {

// A run of a batch that is in one form.
struct FormRun {
  Batch* batch;
  PlacedRun run;  // first_row: within the batch
};

// One past the last row of the run up to which all are in the form of `row`.
int32_t EndOfForm(const PlacedRun& run, int32_t row) {
  const SequenceSpec& spec = run.sequence->spec;
  const bool is_expanded = spec.IsExpanded(run.rows.first_position + row);
  do {
    ++row;
  } while (row < run.rows.count && spec.IsExpanded(run.rows.first_position + row) == is_expanded);
  return row;
}

// Appends a run's rows to the pass; returns its first pass row.
int32_t Append(const FormRun& part, RowPlan* plan) {
  const PlacedRun& run = part.run;
  PassRows& rows = plan->rows;
  const absl::Span<const int32_t> page_table = run.sequence->pages.page_ids();
  const std::vector<int32_t>& token_ids = run.sequence->spec.token_ids;
  const auto pass_row = static_cast<int32_t>(rows.num_rows());
  for (int32_t i = 0; i < run.rows.count; ++i) {
    const int32_t position = run.rows.first_position + i;
    rows.token_ids.push_back(part.batch->next_layer == 0 ? token_ids[position] : 0);
    rows.positions.push_back(position);
    rows.page_ids.push_back(page_table[position / kPageTokens]);
    rows.slots.push_back(position % kPageTokens);
  }
  if (!plan->slices.empty()) {
    RowPlan::BatchSlice& last = plan->slices.back();
    if (last.batch == part.batch && last.batch_row + last.num_rows == run.first_row) {
      last.num_rows += run.rows.count;
      return pass_row;
    }
  }
  plan->slices.push_back({part.batch, run.first_row, pass_row, run.rows.count});
  return pass_row;
}

}  // namespace

int32_t RowPlan::PassRow(const Batch* batch, int32_t batch_row) const {
  for (const BatchSlice& slice : slices) {
    if (slice.batch == batch && batch_row >= slice.batch_row &&
        batch_row < slice.batch_row + slice.num_rows) {
      return slice.pass_row + batch_row - slice.batch_row;
    }
  }
  return -1;
}

bool RowPlan::AnyEnded() const {
  return std::any_of(sequences.begin(), sequences.end(), [](const auto& s) { return s->ended; });
}

bool RowPlan::AllEnded() const {
  return std::all_of(sequences.begin(), sequences.end(), [](const auto& s) { return s->ended; });
}

RowPlan MakeRowPlan(absl::Span<Batch* const> batches) {
  RowPlan plan;
  std::vector<FormRun> absorbed;
  // By index into plan.sequences; the rows of one sequence are attended to by one call.
  std::vector<std::vector<FormRun>> expanded;
  absl::flat_hash_map<const Sequence*, int32_t> index_of;
  for (Batch* batch : batches) {
    for (const PlacedRun& run : batch->runs) {
      if (!run.live()) continue;
      const Sequence* sequence = run.sequence.get();
      const auto next_index = static_cast<int32_t>(plan.sequences.size());
      const auto [index, is_new] = index_of.emplace(sequence, next_index);
      if (is_new) {
        plan.sequences.push_back(run.sequence);
        plan.rows.page_tables.push_back(sequence->pages.page_ids());
        expanded.emplace_back();
      }
      for (int32_t row = 0, end = 0; row < run.rows.count; row = end) {
        const bool is_expanded = sequence->spec.IsExpanded(run.rows.first_position + row);
        end = EndOfForm(run, row);
        const PlacedRun part = run.Part(row, end - row, run.first_row + row);
        (is_expanded ? expanded[index->second] : absorbed).push_back({batch, part});
      }
    }
  }
  for (const FormRun& part : absorbed) {
    Append(part, &plan);
    const RowRun& rows = part.run.rows;
    plan.rows.table_of_row.insert(plan.rows.table_of_row.end(), rows.count,
                                  index_of.at(part.run.sequence.get()));
    for (int32_t i = 0; i < rows.count; ++i) {
      plan.rows.lengths.push_back(rows.first_position + i + 1);
    }
  }
  for (size_t table = 0; table < expanded.size(); ++table) {
    if (expanded[table].empty()) continue;
    const auto first_row = static_cast<int32_t>(plan.rows.num_rows());
    for (const FormRun& part : expanded[table]) Append(part, &plan);
    plan.rows.expanded.push_back({first_row, static_cast<int32_t>(plan.rows.num_rows()) - first_row,
                                  static_cast<int32_t>(table)});
  }
  return plan;
}

}  // namespace tandem
