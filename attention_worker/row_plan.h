// Puts the live rows of all batches that are active in a layer into the order of one pass.
#ifndef TANDEM_ATTENTION_WORKER_ROW_PLAN_H_
#define TANDEM_ATTENTION_WORKER_ROW_PLAN_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "attention_worker/pass_inputs.h"
#include "attention_worker/sequence.h"

namespace tandem {

// Rows are valid until a sequence in it ends or takes more pages.
struct RowPlan {
  // Rows that lie side by side both in the pass and in their batch, of whichever sequences.
  struct BatchSlice {
    Batch* batch = nullptr;
    int32_t batch_row = 0;
    int32_t pass_row = 0;
    int32_t num_rows = 0;
  };

  PassRows rows;
  std::vector<BatchSlice> slices;
  std::vector<std::shared_ptr<Sequence>> sequences;  // whose rows these are, each once

  // The pass row of a batch's row; -1 if it is dead.
  int32_t PassRow(const Batch* batch, int32_t batch_row) const;
  // Whether a sequence in it has ended, or all of them.
  bool AnyEnded() const;
  bool AllEnded() const;
};

// Requires `batches` in ascending order (Batch::order), and that every live sequence's pages reach
// to its last row. What ended before is left out.
RowPlan MakeRowPlan(absl::Span<Batch* const> batches);

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_ROW_PLAN_H_
