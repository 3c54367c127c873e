// What is wanted of rows after the last layer: drawn tokens, log-probabilities, logits.
#ifndef TANDEM_ATTENTION_WORKER_ROW_OUTPUTS_H_
#define TANDEM_ATTENTION_WORKER_ROW_OUTPUTS_H_

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention_worker/model.h"
#include "common/transport/attention_link.h"

namespace tandem {

// One wanted output.
struct WantedOutput {
  int32_t pass_row = 0;  // whose logits
  RowOutputKind kind = RowOutputKind::kSample;
  int32_t target = 0;                  // kLogProb
  const SequenceSpec* spec = nullptr;  // kSample: of the row's sequence
  // kSample: of the drawn token.
  absl::Span<const kernels::LogitAdjustment> adjustments;
  const std::atomic<bool>* cancelled = nullptr;  // true: left out, if it is not computed yet
  RowResult* result = nullptr;  // sequence, position and kind are set; the rest is filled in

  bool masked() const { return spec != nullptr && spec->mask_ids_without_token; }
};

// Computes the outputs in slabs of rows, so that few [rows, vocab] logits exist at once and a
// cancel is seen between them, and reads them back. `ids_with_token` [vocab] u8 or empty: what
// masked draws may take. x: [rows, hidden] act.
void ComputeOutputs(const AttentionModel& model, const ModelContext& context, Workspace* workspace,
                    const kernels::DeviceTensor& x, const kernels::DeviceTensor& ids_with_token,
                    std::vector<WantedOutput> wanted);

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_ROW_OUTPUTS_H_
