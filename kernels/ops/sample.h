// Contracts of what is done with logits: adjusting, sampling and log-probabilities.
//
// Candidates are ordered by (logit descending, id ascending); -0 equals +0; a NaN or +inf among the
// candidates is an error of the row, not of the process. Probabilities are fixed-point weights:
// w_i = round(2^40 * exp((l_i - max) / temperature)), exp in f32, so that their sums are exact
// integers and depend neither on order nor on vector width. "Rounded" means to the nearest integer,
// ties to even; a candidate at -inf has weight 0 and does not make a row drawable by itself.
//
// The draw, in integers: from random bits R, which the host makes, the token is the first candidate
// at which the running sum of weights exceeds floor(R * total / 2^64), total being the weight of
// the candidates that are left.
#ifndef TANDEM_KERNELS_OPS_SAMPLE_H_
#define TANDEM_KERNELS_OPS_SAMPLE_H_

#include <cstdint>

#include "common/sampling_params.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels {

// What a request does to one logit l before a token is drawn, in f32, each step rounded (as vLLM
// does it, but that it takes away the two penalties one after the other):
//   l1 = l + bias                        -inf: the id is not drawn
//   l2 = l1 > 0 ? l1 / repetition : l1 * repetition
//   l3 = l2 - penalty
struct LogitAdjustment {
  int32_t row;  // of the logits
  int32_t id;
  float bias;
  float repetition;  // above 0, finite
  float penalty;     // finite
};

// Replaces each adjustment's logit by its l3.
struct AdjustLogitsArgs {
  DeviceTensor logits;       // [rows, vocab] f32
  DeviceTensor adjustments;  // [n, sizeof(LogitAdjustment)] u8: in range, no logit named twice
};

// What a device needs to draw a token. Requires temperature >= 0, top_k >= 0, 0 < top_p <= 1 and
// 0 <= min_p <= 1.
struct SampleRow {
  float temperature;
  int32_t top_k;
  float top_p;
  uint64_t random;  // R
  float min_p = 0.0f;
};

// For the token at `position`, whose random bits are a function of (seed, choice, position):
//   R = XXH3_64bits_withSeed(choice as 4 bytes, position as 8 bytes, little-endian; seed)
SampleRow MakeSampleRow(const SamplingParams& params, int32_t position);

struct SampledToken {
  int32_t id = -1;        // -1: the row's logits held a NaN or +inf, or no candidate
  float log_prob = 0.0f;  // of `id` under softmax of the candidates' raw logits at temperature 1
};

// Draws one token per row. temperature 0 takes the first candidate (greedy). Otherwise the
// candidates are cut to those whose weight is at least min_p * 2^40, then to the first top_k (0:
// all), then to the shortest prefix whose weight reaches ceil(top_p * remaining total) (a product
// of doubles; no cut at 1), and one is drawn in proportion to its weight. log_prob is (l_id - max)
// - log(sum of the weights at temperature 1 / 2^40) in double, rounded once, all of raw.
struct SampleArgs {
  DeviceTensor logits;    // [rows, vocab] f32
  DeviceTensor rows;      // [rows, sizeof(SampleRow)] u8: SampleRow, as it lies in memory
  DeviceTensor allowed;   // [vocab] u8, 0: never a candidate; empty: all are
  DeviceTensor out;       // [rows, sizeof(SampledToken)] u8: SampledToken
  DeviceTensor raw = {};  // as logits, before they were adjusted; empty: they were not
};

// Of each row the first candidates in their order that are above -inf, with log_prob as
// SampledToken has it. Where there are fewer than `count`, or the row is in error: id -1 and 0 for
// the rest.
struct TopLogProbsArgs {
  DeviceTensor logits;     // [rows, vocab] f32
  DeviceTensor allowed;    // as in SampleArgs
  DeviceTensor ids;        // [rows, count] i32
  DeviceTensor log_probs;  // [rows, count] f32
};

// out[i] = log softmax(logits[i])[targets[i]] over the whole vocabulary, computed as SampledToken's
// log_prob; NaN for a row with NaN or +inf among its logits, or with none above -inf.
struct LogProbArgs {
  DeviceTensor logits;   // [rows, vocab] f32
  DeviceTensor targets;  // [rows] i32, each in [0, vocab)
  DeviceTensor out;      // [rows] f32
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_OPS_SAMPLE_H_
