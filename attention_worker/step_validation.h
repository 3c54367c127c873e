// Judges what a gateway sends before anything is changed by it.
#ifndef TANDEM_ATTENTION_WORKER_STEP_VALIDATION_H_
#define TANDEM_ATTENTION_WORKER_STEP_VALIDATION_H_

#include <cstdint>

#include "absl/status/status.h"
#include "attention_worker/sequence.h"
#include "common/transport/attention_link.h"

namespace tandem {

struct StepLimits {
  int32_t num_layers = 0;
  int32_t vocab_size = 0;
  int32_t max_positions = 0;
};

// Whether rows of the sequence can be run at all.
//   INVALID_ARGUMENT  a token id, a length, a page range or a sampling parameter is out of range, or
//                     no row is left behind the shared pages
absl::Status ValidateSpec(const SequenceSpec& spec, const StepLimits& limits);

// Whether the step can be run from where the session stands. Rows of ended sequences are not looked
// at. Beyond what AttentionLink::Run says:
//   - the rows of a sequence come in order and without gaps: a run begins at the first position
//     that is in no batch yet
//   - a later batch of a sequence is never ahead of an earlier one
//   - a token is drawn only for a position that has none, and is there when its row is embedded
// Errors: those of AttentionLink::Run.
absl::Status ValidateStep(const Step& step, const SessionState& state, const StepLimits& limits);

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_STEP_VALIDATION_H_
