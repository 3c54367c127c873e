// How long a step takes on one attention worker, learned from the steps that it has run.
#ifndef TANDEM_GATEWAY_STEP_COSTS_H_
#define TANDEM_GATEWAY_STEP_COSTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tandem {

// Rows of one step that are in the same part of their life.
struct DecodeShape {
  int64_t rows = 0;
  int64_t context = 0;  // keys that all of them see, together
};
struct PrefillShape {
  int64_t rows = 0;
  int64_t context = 0;  // keys that the last row of each sequence sees
  int64_t pairs = 0;    // of row and key
  // Rows [first, first + count) of a sequence.
  void Add(int64_t first, int64_t count) {
    rows += count;
    context += first + count;
    pairs += count * first + count * (count + 1) / 2;
  }
};
struct StepShape {
  struct Prefill {
    PrefillShape shape;
    int32_t layers = 0;
  };
  DecodeShape decode;
  std::vector<Prefill> prefill;
};

// Decode rows pass all layers:
//   DecodeUs = d0 + d1 rows + d2 context
// A prefill batch passes some, of which each costs, beside the decode rows,
//   LayerUs  = p0 + p1 rows + p2 context + p3 pairs
// where p0 is mostly the reading of weights, p1 the products, p2 the keys and values that are
// expanded from latents, and p3 attention itself. All are positive. Their ratios are at first those
// of V2-Lite's arithmetic; the first step that is measured gives their unit. Each later one moves
// those of its kind, each by its share of what was expected, so that all of the error is gone after
// the first of the kind, half of it after the second and, of prefill, a quarter from the fourth on.
// A step of both kinds says something of prefill only.
//
// Knows no clock; what it is told is not trusted. Not thread-safe.
class StepCosts {
 public:
  // A step took that long.
  void Learn(const StepShape& step, int64_t busy_us);

  // Whether a step of decode rows alone has been measured.
  bool knows_decode() const { return decode_steps_ > 0; }
  double DecodeUs(const DecodeShape& decode) const;
  double LayerUs(const PrefillShape& prefill) const;

  // The most rows from position `first` on, in [0, limit], of which a layer costs at most
  // `budget_us`.
  int64_t RowsWithin(double budget_us, int64_t first, int64_t limit) const;

 private:
  template <std::size_t n>
  using Terms = std::array<double, n>;
  static Terms<3> TermsOf(const DecodeShape& decode);
  static Terms<4> TermsOf(const PrefillShape& prefill);

  // In the time that one row takes for a layer.
  Terms<3> decode_ = {27 * 64.0, 27.0, 27 * 2e-4};
  Terms<4> prefill_ = {64.0, 1.0, 0.025, 6e-5};
  int decode_steps_ = 0;  // that were measured, both up to where they make no difference
  int prefill_steps_ = 0;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_STEP_COSTS_H_
