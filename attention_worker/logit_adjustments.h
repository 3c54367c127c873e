// What a sequence's sampling parameters do to the logits of its next token.
#ifndef TANDEM_ATTENTION_WORKER_LOGIT_ADJUSTMENTS_H_
#define TANDEM_ATTENTION_WORKER_LOGIT_ADJUSTMENTS_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "common/transport/attention_link.h"
#include "kernels/ops/sample.h"

namespace tandem {

// Follows a sequence, token by token. What it says depends on the sequence's spec and tokens alone,
// not on when it was asked: so it is the same where the sequence is opened again.
class LogitAdjustments {
 public:
  // For the token behind all of spec.token_ids, which must begin with those of the call before: at
  // most one for each id, with row 0; empty: it is drawn from the model's own logits. Until the
  // next call. Costs O(tokens that are new).
  absl::Span<const kernels::LogitAdjustment> Next(const SequenceSpec& spec);

 private:
  kernels::LogitAdjustment& Of(int32_t id);
  void Count(const SequenceSpec& spec, size_t position);
  void HoldBack(const SequenceSpec& spec, bool hold);

  std::vector<kernels::LogitAdjustment> all_;
  absl::flat_hash_map<int32_t, size_t> by_id_;       // places in all_
  absl::flat_hash_map<int32_t, int32_t> generated_;  // how often an id was generated
  size_t num_counted_ = 0;                           // tokens
  bool began_ = false;
  bool holds_back_ = false;  // what min_tokens does
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_LOGIT_ADJUSTMENTS_H_
