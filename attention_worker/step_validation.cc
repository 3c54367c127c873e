#include "attention_worker/step_validation.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {
namespace {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}
template <typename... Parts>
absl::Status NotNow(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat(parts...));
}

// One step's judgement; what it would change is kept aside.
class StepValidator {
 public:
  StepValidator(const Step& step, const SessionState& state, const StepLimits& limits)
      : step_(step), state_(state), limits_(limits) {}

  absl::Status Validate() {
    if (step_.step <= state_.last_step) {
      return NotNow("step ", step_.step, " is older than step ", state_.last_step);
    }
    for (const NewBatch& batch : step_.new_batches) {
      TANDEM_RETURN_IF_ERROR(CheckNewBatch(batch));
    }
    for (const Advance& advance : step_.advance) TANDEM_RETURN_IF_ERROR(CheckAdvance(advance));
    TANDEM_RETURN_IF_ERROR(CheckOrder());
    return state_.pages->CheckTake(pages_);
  }

 private:
  absl::Status CheckNewBatch(const NewBatch& batch) {
    if (batch.batch <= state_.last_batch || !new_batches_.emplace(batch.batch, &batch).second) {
      return NotNow("batch ", batch.batch, " is not new");
    }
    int64_t num_rows = 0;
    int64_t num_pages = 0;
    for (const RowRun& run : batch.runs) {
      TANDEM_RETURN_IF_ERROR(CheckRun(batch, run));
      num_rows += run.count;
      const int64_t first_page = num_pages;
      num_pages += NewPages(run);
      if (state_.FindSequence(run.sequence) == nullptr) continue;
      for (int64_t i = first_page; i < std::min<int64_t>(num_pages, batch.pages.size()); ++i) {
        pages_.push_back(batch.pages[i]);
      }
    }
    if (num_rows == 0 || num_rows > INT32_MAX) {
      return Invalid("batch ", batch.batch, " has ", num_rows, " rows");
    }
    if (num_pages != static_cast<int64_t>(batch.pages.size())) {
      return Invalid("batch ", batch.batch, " names ", batch.pages.size(), " pages, its rows take ",
                     num_pages);
    }
    return CheckOutputs(batch, num_rows);
  }

  absl::Status CheckRun(const NewBatch& batch, const RowRun& run) {
    const auto row_name = [&] {
      return absl::StrCat("batch ", batch.batch, ", sequence ", run.sequence, ": ");
    };
    if (run.count < 1 || (run.last_sampled && run.count != 1)) {
      return Invalid(row_name(), "a run of ", run.count,
                     run.last_sampled ? " rows that were last sampled" : " rows");
    }
    if (run.sequence > state_.last_opened) {
      return NotNow(row_name(), "the sequence was never opened");
    }
    const Sequence* sequence = state_.FindSequence(run.sequence);
    if (sequence == nullptr) {
      if (run.first_position >= 0) return absl::OkStatus();
      return Invalid(row_name(), "rows begin at position ", run.first_position);
    }
    TANDEM_RETURN_IF_ERROR(sequence->usable);
    int64_t& next = next_position_.try_emplace(run.sequence, sequence->num_scheduled).first->second;
    if (run.first_position != next) {
      return Invalid(row_name(), "rows begin at position ", run.first_position, ", but ", next,
                     " is next");
    }
    next += run.count;
    if (next > limits_.max_positions) {
      return Invalid(row_name(), "position ", next - 1, " is beyond the model's ",
                     limits_.max_positions);
    }
    if (!run.last_sampled && next > sequence->num_tokens()) {
      return Invalid(row_name(), "position ", next - 1, " has no token, ", sequence->num_tokens(),
                     " are known");
    }
    return absl::OkStatus();
  }

  absl::Status CheckOutputs(const NewBatch& batch, int64_t num_rows) const {
    size_t run = 0;
    int64_t run_end = batch.runs[0].count;
    int32_t last_row = 0;
    int32_t last_sampled_row = -1;
    for (const RowOutput& output : batch.outputs) {
      if (output.row < last_row || output.row >= num_rows) {
        return Invalid("batch ", batch.batch, ": an output of row ", output.row,
                       " is out of order or beyond the ", num_rows, " rows");
      }
      last_row = output.row;
      while (output.row >= run_end) run_end += batch.runs[++run].count;
      const RowRun& rows = batch.runs[run];
      const int64_t position = rows.first_position + rows.count - (run_end - output.row);
      if (output.kind != RowOutputKind::kSample && output.kind != RowOutputKind::kLogProb &&
          output.kind != RowOutputKind::kLogits) {
        return Invalid("batch ", batch.batch, ": no output is of kind ",
                       static_cast<int>(output.kind));
      }
      if (output.kind == RowOutputKind::kLogProb &&
          (output.target < 0 || output.target >= limits_.vocab_size)) {
        return Invalid("batch ", batch.batch, ": target ", output.target, " is not in [0, ",
                       limits_.vocab_size, ")");
      }
      if (output.kind != RowOutputKind::kSample) continue;
      const Sequence* sequence = state_.FindSequence(rows.sequence);
      if (sequence != nullptr && position + 1 < sequence->num_tokens()) {
        return Invalid("batch ", batch.batch, ", sequence ", rows.sequence, ": position ",
                       position + 1, " has a token, none can be drawn for it");
      }
      if (output.row == last_sampled_row) {
        return Invalid("batch ", batch.batch, ": row ", output.row, " is sampled twice");
      }
      last_sampled_row = output.row;
    }
    return absl::OkStatus();
  }

  absl::Status CheckAdvance(const Advance& advance) {
    const Batch* batch = state_.FindBatch(advance.batch);
    const auto fresh = new_batches_.find(advance.batch);
    if (batch == nullptr && fresh == new_batches_.end()) {
      return NotNow("batch ", advance.batch, " is not there or finished");
    }
    if (!planned_end_.emplace(advance.batch, advance.end_layer).second) {
      return Invalid("batch ", advance.batch, " is advanced twice");
    }
    const int32_t next_layer = batch == nullptr ? 0 : batch->next_layer;
    if (advance.first_layer != next_layer) {
      return NotNow("batch ", advance.batch, " stands at layer ", next_layer, ", not at ",
                    advance.first_layer);
    }
    if (advance.end_layer <= advance.first_layer || advance.end_layer > limits_.num_layers) {
      return Invalid("batch ", advance.batch, ": layers [", advance.first_layer, ", ",
                     advance.end_layer, ") of ", limits_.num_layers);
    }
    if (next_layer > 0) return absl::OkStatus();
    if (batch == nullptr) {
      for (const RowRun& run : fresh->second->runs) {
        TANDEM_RETURN_IF_ERROR(CheckTokenIsThere(state_.FindSequence(run.sequence), run.sequence,
                                                 run.first_position, run.last_sampled));
      }
    } else {
      for (const PlacedRun& run : batch->runs) {
        if (!run.live()) continue;
        TANDEM_RETURN_IF_ERROR(CheckTokenIsThere(run.sequence.get(), run.sequence->spec.sequence,
                                                 run.rows.first_position, run.rows.last_sampled));
      }
    }
    return absl::OkStatus();
  }

  static absl::Status CheckTokenIsThere(const Sequence* sequence, SequenceId id, int32_t position,
                                        bool last_sampled) {
    if (sequence == nullptr || !last_sampled || position < sequence->num_tokens()) {
      return absl::OkStatus();
    }
    return NotNow("sequence ", id, ": no token was drawn for position ", position, " yet");
  }

  int32_t PlannedEnd(BatchId id) const {
    const auto it = planned_end_.find(id);
    if (it != planned_end_.end()) return it->second;
    const Batch* batch = state_.FindBatch(id);
    return batch == nullptr ? 0 : batch->next_layer;
  }

  // A batch attends to what earlier batches of its sequences have appended to the cache.
  absl::Status CheckOrder() const {
    absl::flat_hash_map<SequenceId, std::vector<BatchId>> chains;
    for (const Advance& advance : step_.advance) {
      const Batch* batch = state_.FindBatch(advance.batch);
      if (batch == nullptr) continue;
      for (const PlacedRun& run : batch->runs) {
        if (run.live()) AddKnownBatches(*run.sequence, &chains);
      }
    }
    for (const NewBatch& batch : step_.new_batches) {
      for (const RowRun& run : batch.runs) {
        const Sequence* sequence = state_.FindSequence(run.sequence);
        if (sequence == nullptr) continue;
        AddKnownBatches(*sequence, &chains);
        chains[run.sequence].push_back(batch.batch);
      }
    }
    for (const auto& [sequence, chain] : chains) {
      for (size_t i = 1; i < chain.size(); ++i) {
        if (PlannedEnd(chain[i - 1]) >= PlannedEnd(chain[i])) continue;
        return NotNow("batch ", chain[i], " would overtake batch ", chain[i - 1], " of sequence ",
                      sequence);
      }
    }
    return absl::OkStatus();
  }

  static void AddKnownBatches(const Sequence& sequence,
                              absl::flat_hash_map<SequenceId, std::vector<BatchId>>* chains) {
    const auto [chain, added] = chains->try_emplace(sequence.spec.sequence);
    if (!added) return;
    for (const Batch* batch : sequence.batches) chain->second.push_back(batch->id);
  }

  const Step& step_;
  const SessionState& state_;
  const StepLimits& limits_;
  absl::flat_hash_map<BatchId, const NewBatch*> new_batches_;
  absl::flat_hash_map<BatchId, int32_t> planned_end_;       // of the advanced batches
  absl::flat_hash_map<SequenceId, int64_t> next_position_;  // of sequences with new rows
  std::vector<int32_t> pages_;                              // that they take
};

}  // namespace

absl::Status ValidateSpec(const SequenceSpec& spec, const StepLimits& limits) {
  const SamplingParams& sampling = spec.sampling;
  const auto invalid = [&](const auto&... parts) {
    return Invalid("sequence ", spec.sequence, ": ", parts...);
  };
  if (spec.token_ids.empty() || spec.token_ids.size() > static_cast<size_t>(limits.max_positions)) {
    return invalid(spec.token_ids.size(), " tokens, the model takes 1 to ", limits.max_positions);
  }
  const auto is_id = [&](int32_t id) { return id >= 0 && id < limits.vocab_size; };
  for (int32_t id : spec.token_ids) {
    if (!is_id(id)) {
      return invalid("token id ", id, " is not in [0, ", limits.vocab_size, ")");
    }
  }
  if (spec.expanded_length < 0) return invalid("expanded_length is ", spec.expanded_length);
  int32_t last_end = -1;
  for (const PageRange& range : spec.absorbed_pages) {
    if (range.first <= last_end || range.end <= range.first ||
        range.end > spec.expanded_length / kPageTokens) {
      return invalid("pages [", range.first, ", ", range.end, ") of absorbed_pages are out of ",
                     "order or beyond the ", spec.expanded_length, " expanded positions");
    }
    last_end = range.end;
  }
  if (spec.pages.size() * kPageTokens >= spec.token_ids.size()) {
    return invalid(spec.pages.size(), " pages hold all of its ", spec.token_ids.size(), " tokens");
  }
  if (spec.num_prompt_tokens < 0 ||
      static_cast<size_t>(spec.num_prompt_tokens) > spec.token_ids.size()) {
    return invalid(spec.num_prompt_tokens, " of its ", spec.token_ids.size(),
                   " tokens are the prompt's");
  }
  if (!(sampling.temperature >= 0.0f) || sampling.top_k < 0 || !(sampling.top_p > 0.0f) ||
      !(sampling.top_p <= 1.0f) || !(sampling.min_p >= 0.0f && sampling.min_p <= 1.0f)) {
    return invalid("temperature ", sampling.temperature, ", top_k ", sampling.top_k, ", top_p ",
                   sampling.top_p, ", min_p ", sampling.min_p, " are out of range");
  }
  if (!(sampling.repetition_penalty >= kMinRepetitionPenalty &&
        sampling.repetition_penalty <= kMaxRepetitionPenalty) ||
      !(std::abs(sampling.frequency_penalty) <= kMaxPenalty) ||
      !(std::abs(sampling.presence_penalty) <= kMaxPenalty)) {
    return invalid("penalties ", sampling.repetition_penalty, ", ", sampling.frequency_penalty,
                   " and ", sampling.presence_penalty, " are out of range");
  }
  if (spec.top_logprobs < 0 || spec.top_logprobs > kMaxTopLogProbs) {
    return invalid("top_logprobs is ", spec.top_logprobs, ", not in [0, ", kMaxTopLogProbs, "]");
  }
  for (const int32_t id : sampling.end_ids) {
    if (!is_id(id)) return invalid("end id ", id, " is not in [0, ", limits.vocab_size, ")");
  }
  for (const auto& [id, bias] : sampling.logit_bias) {
    if (!is_id(id) || !(std::abs(bias) <= kMaxLogitBias)) {
      return invalid("the bias ", bias, " of token id ", id, " is out of range");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateStep(const Step& step, const SessionState& state, const StepLimits& limits) {
  return StepValidator(step, state, limits).Validate();
}

}  // namespace tandem
