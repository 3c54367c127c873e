// The attention seam: one attention worker as its gateway sees it. Layers are the unit of
// scheduling: a step names new batches of rows and, for each batch, how far through the layers it
// goes now.
#ifndef TANDEM_COMMON_TRANSPORT_ATTENTION_LINK_H_
#define TANDEM_COMMON_TRANSPORT_ATTENTION_LINK_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "common/counters.h"
#include "common/pages.h"
#include "common/request_tag.h"
#include "common/sampling_params.h"

namespace tandem {

using SequenceId = uint64_t;  // grows within a link's life, never reused
using BatchId = uint64_t;     // likewise
using StepId = uint64_t;      // 1, 2, 3, ... within a link's life

inline constexpr int kMaxTopLogProbs = 20;

// A sequence as an attention worker knows it. Token ids travel once, here; rows name positions.
struct SequenceSpec {
  SequenceId sequence = 0;
  // All tokens known when it is opened: the prompt, then what was generated before an interruption.
  std::vector<int32_t> token_ids;
  int32_t num_prompt_tokens = 0;  // of them; what sampling makes of a token depends on it
  // One form per position: positions below this are computed in the expanded form, all others in
  // the absorbed form, always (docs/architecture.md). ExpandedLength(prompt) for requests.
  int32_t expanded_length = 0;
  // Those of the pages below it that are in the absorbed form as well: ascending, none touches the
  // next.
  std::vector<PageRange> absorbed_pages;
  // Full pages that hold its first rows already, left by other sequences with the same tokens in
  // the same forms: its own rows begin behind them, and there is at least one.
  std::vector<int32_t> pages;
  SamplingParams sampling;
  bool mask_ids_without_token = true;  // draw only ids for which the tokenizer has a token
  RequestTag tag;                      // for logs
  int32_t top_logprobs = 0;  // RowResult::top of each draw has so many, at most kMaxTopLogProbs

  // b = 64 * floor((P - 1) / 64): all but the last page of a prompt of P >= 1 tokens.
  static int32_t ExpandedLength(int64_t prompt_tokens) {
    return static_cast<int32_t>(kPageTokens * ((prompt_tokens - 1) / kPageTokens));
  }
  bool IsExpanded(int32_t position) const {
    return IsInExpandedForm(position, expanded_length, absorbed_pages);
  }
};

// A run of consecutive rows of one sequence within a batch. Position p's token is known from the
// spec, or, with `last_sampled`, is what the worker itself drew last for the sequence (count 1).
struct RowRun {
  SequenceId sequence = 0;
  int32_t first_position = 0;
  int32_t count = 0;
  bool last_sampled = false;
};

// What is wanted of a row after the last layer.
enum class RowOutputKind : uint8_t {
  kSample = 1,   // draw the token of the next position; it becomes the sequence's last sampled
  kLogProb = 2,  // log-probability of `target` as the next token, unmasked
  kLogits = 3,   // the whole row of logits, unmasked
};
struct RowOutput {
  int32_t row = 0;  // index within the batch
  RowOutputKind kind = RowOutputKind::kSample;
  int32_t target = 0;  // kLogProb only
};

// A set of token rows that travels the layers together. Rows never move within a batch; those of a
// cancelled sequence are dead.
struct NewBatch {
  BatchId batch = 0;
  std::vector<RowRun> runs;
  // The pages that the runs are the first to put rows into, run by run, in order: of a run
  // [first, end) that is PagesFor(end) - PagesFor(first).
  std::vector<int32_t> pages;
  std::vector<RowOutput> outputs;  // ascending by row
};

// Layers [first_layer, end_layer). Embedding happens at 0, outputs after the last layer.
struct Advance {
  BatchId batch = 0;
  int32_t first_layer = 0;
  int32_t end_layer = 0;
};

struct Step {
  StepId step = 0;
  std::vector<NewBatch> new_batches;  // each is also named in `advance`, or waits at layer 0
  std::vector<Advance> advance;
};

struct TokenLogProb {
  int32_t token = 0;
  float log_prob = 0.0f;
  bool operator==(const TokenLogProb&) const = default;
};

struct RowResult {
  SequenceId sequence = 0;
  int32_t position = 0;  // of the row
  RowOutputKind kind = RowOutputKind::kSample;
  // kSample: the drawn id, or -1 if the logits held a NaN, which ends the sequence; kLogProb: the
  // target.
  int32_t token = 0;
  float log_prob = 0.0f;          // kSample, kLogProb
  std::vector<float> logits;      // kLogits: [vocab]
  std::vector<TokenLogProb> top;  // kSample, if asked for: of the same distribution as log_prob,
                                  // the most probable first, of equal ones the lower id
};

struct BatchProgress {
  BatchId batch = 0;
  int32_t next_layer = 0;  // num_layers: finished and forgotten
};

struct StepResult {
  StepId step = 0;
  absl::Status status;  // not OK: the step was refused or failed, see AttentionLink::Run
  std::vector<RowResult> rows;
  std::vector<BatchProgress> batches;  // every batch that the step advanced
  // Time of the worker's engine from the end of the step before, or from where this one's layers
  // began if that is later, to this one's last output: what consecutive steps took adds up. wait_us
  // is the part of it in which the engine had nothing to do but wait for expert workers.
  int64_t busy_us = 0;
  int64_t wait_us = 0;
};

struct AttentionWorkerInfo {
  int32_t num_layers = 0;
  int32_t total_pages = 0;  // of 64 tokens, over all layers
  int32_t vocab_size = 0;
};

// One session of a gateway with one attention worker. The gateway deals out the worker's pages: it
// alone says which page a sequence's rows go to, by numbers 0 to total_pages - 1 of its session. A
// page is taken for rows while no live sequence holds it; it is held until all sequences that have
// it have ended, and what is in it stays until it is taken again, so that other sequences may be
// opened with it.
//
// Thread-safe; calls never block on the worker's arithmetic. Destroying the link cancels everything
// it opened and frees its pages. Callbacks come from the worker's side, one at a time, must not
// block and must not destroy the link; none comes after the destructor has returned.
class AttentionLink {
 public:
  class Observer {
   public:
    virtual ~Observer() = default;
    // Results come in the order of the steps.
    virtual void OnStepResult(StepResult result) = 0;
    // The worker has said nothing for so long that it may be gone, though it is asked to; or it
    // says something again. Nothing is lost: its results may still come. In turns, `true` first.
    virtual void OnSilent(bool silent) { static_cast<void>(silent); }
    // The worker is gone; at most once, and nothing follows. Every outstanding step is lost.
    virtual void OnDown(absl::Status status) = 0;
  };
  static constexpr int kMaxOutstandingSteps = 2;

  virtual ~AttentionLink() = default;
  virtual AttentionWorkerInfo info() const = 0;

  // Makes a sequence known. In order with Run.
  virtual void OpenSequence(SequenceSpec spec) = 0;

  // Queues a step; exactly one OnStepResult answers it, unless OnDown comes first. Two outstanding
  // steps that share no sequence may run at once; others run one after the other. Status:
  //   FAILED_PRECONDITION  a batch does not stand at first_layer, a token that a row needs was not
  //                        drawn, a sequence was never opened, more than kMaxOutstandingSteps
  //                        are outstanding; a page is held already, or shared and not full
  //   INVALID_ARGUMENT     rows, layers, outputs or pages out of range
  //   RESOURCE_EXHAUSTED   sequences of other sessions have held the memory of the pages for 15 s
  //   UNAVAILABLE          no expert worker answered for a layer within the limit: the new batches
  //                        exist and all stand where `batches` says; a later step goes on there
  // A refused step (all but UNAVAILABLE) changed nothing: its new batches are unknown and may be
  // sent again. A step_id that was already run is answered again, not run again. Rows of sequences
  // that were released or cancelled meanwhile are dead: they are neither computed nor answered.
  virtual void Run(Step step) = 0;

  // Ends a sequence now: overtakes queued steps, is looked at on every layer boundary. Its rows are
  // dead in every batch and its pages are freed. Unknown or ended sequences are ignored.
  virtual void Cancel(SequenceId sequence) = 0;

  // Ends a sequence after the steps sent so far.
  virtual void Release(SequenceId sequence) = 0;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_ATTENTION_LINK_H_
