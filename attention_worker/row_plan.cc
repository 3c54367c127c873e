#include "attention_worker/row_plan.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"

namespace tandem {
namespace {

// A part of a run that is all in one form.
struct Stretch {
  Batch* batch;
  const Batch::Run* run;
  int32_t first;  // within the run
  int32_t count;
};

void Append(const Stretch& stretch, RowPlan* plan) {
  const Batch::Run& run = *stretch.run;
  const absl::Span<const int32_t> page_table = run.sequence->pages.page_ids();
  const int32_t batch_row = run.first_row + stretch.first;
  const auto pass_row = static_cast<int32_t>(plan->rows.num_rows());
  for (int32_t i = 0; i < stretch.count; ++i) {
    const int32_t position = run.first_position + stretch.first + i;
    plan->rows.positions.push_back(position);
    plan->rows.page_ids.push_back(page_table[position / kernels::kPageTokens]);
    plan->rows.slots.push_back(position % kernels::kPageTokens);
  }
  if (!plan->pieces.empty()) {
    RowPlan::Piece& last = plan->pieces.back();
    if (last.batch == stretch.batch && last.batch_row + last.num_rows == batch_row) {
      last.num_rows += stretch.count;
      return;
    }
  }
  plan->pieces.push_back({stretch.batch, batch_row, pass_row, stretch.count});
}

}  // namespace

int32_t RowPlan::PassRow(const Batch* batch, int32_t batch_row) const {
  for (const Piece& piece : pieces) {
    if (piece.batch == batch && batch_row >= piece.batch_row &&
        batch_row < piece.batch_row + piece.num_rows) {
      return piece.pass_row + batch_row - piece.batch_row;
    }
  }
  return -1;
}

RowPlan MakeRowPlan(absl::Span<Batch* const> batches) {
  RowPlan plan;
  std::vector<Stretch> absorbed;
  std::vector<std::vector<Stretch>> expanded;  // by sequence, in order of appearance
  absl::flat_hash_map<const Sequence*, size_t> expanded_index;
  absl::flat_hash_map<const Sequence*, bool> seen;
  for (Batch* batch : batches) {
    for (const Batch::Run& run : batch->runs) {
      if (!run.live()) continue;
      Sequence* sequence = run.sequence.get();
      if (seen.emplace(sequence, true).second) plan.sequences.push_back(sequence);
      const int32_t num_expanded =
          std::clamp(sequence->spec.expanded_length - run.first_position, 0, run.num_rows);
      if (num_expanded > 0) {
        const auto [index, added] = expanded_index.emplace(sequence, expanded.size());
        if (added) expanded.emplace_back();
        expanded[index->second].push_back({batch, &run, 0, num_expanded});
      }
      if (num_expanded < run.num_rows) {
        absorbed.push_back({batch, &run, num_expanded, run.num_rows - num_expanded});
      }
    }
  }
  for (const Stretch& stretch : absorbed) {
    Append(stretch, &plan);
    const absl::Span<const int32_t> page_table = stretch.run->sequence->pages.page_ids();
    plan.rows.page_tables.insert(plan.rows.page_tables.end(), stretch.count, page_table.data());
    for (int32_t i = 0; i < stretch.count; ++i) {
      plan.rows.lengths.push_back(stretch.run->first_position + stretch.first + i + 1);
    }
  }
  for (const std::vector<Stretch>& stretches : expanded) {
    ModelRows::ExpandedRun run;
    run.first_row = static_cast<int32_t>(plan.rows.num_rows());
    run.page_table = stretches[0].run->sequence->pages.page_ids();
    for (const Stretch& stretch : stretches) Append(stretch, &plan);
    run.num_rows = static_cast<int32_t>(plan.rows.num_rows()) - run.first_row;
    plan.rows.expanded.push_back(run);
  }
  return plan;
}

}  // namespace tandem
