// What a gateway says to an attention worker in one session, message by message, each its length in
// two bytes, then so many bytes: sequences are opened, steps judged by where the session stands.

#include <cmath>
#include <memory>

#include "attention_worker/page_pool.h"
#include "attention_worker/step_validation.h"
#include "common/check.h"
#include "common/transport/attention_proto.h"
#include "proto/attention.pb.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace tandem;

constexpr StepLimits kLimits{.num_layers = 4, .vocab_size = 512, .max_positions = 1024};

// The device trusts them.
void CheckAdjustments(Sequence* sequence) {
  for (const kernels::LogitAdjustment& a : sequence->logit_adjustments.Next(sequence->spec)) {
    TANDEM_CHECK(a.row == 0 && a.id >= 0 && a.id < kLimits.vocab_size);
    TANDEM_CHECK(a.bias <= kMaxLogitBias && a.repetition > 0 && std::isfinite(a.penalty));
  }
}

void Open(SequenceSpec spec, SessionState* state) {
  if (spec.sequence <= state->last_opened) return;
  state->last_opened = spec.sequence;
  auto sequence = std::make_shared<Sequence>();
  sequence->usable = ValidateSpec(spec, kLimits);
  sequence->spec = std::move(spec);
  if (sequence->usable.ok()) CheckAdjustments(sequence.get());
  state->sequences.emplace(state->last_opened, std::move(sequence));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  PagePool pool(/*total_pages=*/16);
  SessionState state;
  state.pages = std::make_unique<SessionPages>(&pool);
  while (!input.empty()) {
    const absl::string_view bytes = input.Take(input.Number());
    const auto length = static_cast<int>(bytes.size());
    v1::AttentionRequest request;
    if (request.ParseFromArray(bytes.data(), length)) {
      if (request.has_open()) Open(FromProto(request.open()), &state);
      if (request.has_step()) {
        const auto step = FromProto(request.step());
        if (step.ok() && ValidateStep(*step, state, kLimits).ok()) state.last_step = step->step;
      }
    }
    // The other direction.
    v1::AttentionReply reply;
    if (reply.ParseFromArray(bytes.data(), length) && reply.has_result()) {
      (void)FromProto(reply.result());
    }
  }
  return 0;
}
