#include "kernels/cuda/sample.h"

#include <cstdint>

#include "kernels/cuda/exp.h"
#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr uint64_t kWeightOne = uint64_t{1} << 40;  // the weight of the best candidate

constexpr uint64_t kErrorKey = 0;                            // of a NaN or +inf: before all others
constexpr uint64_t kLowestKey = uint64_t{0xFF800000} << 32;  // of -inf and id 0
constexpr uint64_t kNoKey = ~uint64_t{0};                    // behind all others

// What a block keeps in shared memory.
struct Workplace {
  uint64_t of_thread[kThreads];
  // Of the candidates that have a digit: how many, and the sum of their weights in two parts, since
  // shared memory adds 32 bits in one step but 64 in a loop of attempts.
  uint32_t counts[kDigits], lower_weights[kDigits], upper_weights[kDigits];
  int32_t found;
};

// One row's logits and which of them are candidates.
struct LogitRow {
  const float* logits;
  const uint8_t* allowed;  // null: all
  int vocab;

  __device__ bool IsCandidate(int id) const { return allowed == nullptr || allowed[id] != 0; }
};

// round(2^40 exp((logit - max) / temperature)).
struct Weights {
  float max;
  float temperature;

  __device__ uint64_t operator()(float logit) const {
    const float e = PortableExp(Divide(logit - max, temperature));
    return static_cast<uint64_t>(RoundToInteger(e * static_cast<float>(kWeightOne)));
  }
};

// Sorts as (logit descending, id ascending); -0 equals +0.
__device__ inline uint64_t OrderKey(float logit, int id) {
  const uint32_t bits = BitsOf(logit + 0.0f);
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint32_t>(id);
}
__device__ inline int IdOf(uint64_t key) { return static_cast<int>(key & 0x7FFFFFFFu); }

__device__ inline uint64_t Smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

// combine() of the values of all threads, to all of them.
template <typename Combine>
__device__ uint64_t OfBlock(uint64_t value, const Combine& combine, Workplace* workplace) {
  workplace->of_thread[threadIdx.x] = value;
  TANDEM_SYNC_THREADS();
  uint64_t all = workplace->of_thread[0];
  for (int i = 1; i < kThreads; ++i) all = combine(all, workplace->of_thread[i]);
  TANDEM_SYNC_THREADS();
  return all;
}

__device__ inline uint64_t SumOfBlock(uint64_t value, Workplace* workplace) {
  return OfBlock(
      value, [](uint64_t a, uint64_t b) { return a + b; }, workplace);
}

// Calls visit(id) for this thread's candidates.
template <typename Visit>
__device__ void ForCandidates(const LogitRow& row, const Visit& visit) {
  for (int id = static_cast<int>(threadIdx.x); id < row.vocab; id += kThreads) {
    if (row.IsCandidate(id)) visit(id);
  }
}

// The key of the first candidate, or of the first behind `before`; kNoKey where the row is in error
// or none is above -inf.
__device__ inline uint64_t FindBest(const LogitRow& row, Workplace* workplace,
                                    uint64_t before = kErrorKey) {
  uint64_t best = kNoKey;
  ForCandidates(row, [&](int id) {
    const float logit = row.logits[id];
    const uint64_t key = logit < Infinity() ? OrderKey(logit, id) : kErrorKey;
    if (key < best && (key > before || before == kErrorKey)) best = key;
  });
  best = OfBlock(
      best, [](uint64_t a, uint64_t b) { return Smaller(a, b); }, workplace);
  return best == kErrorKey || best >= kLowestKey ? kNoKey : best;
}

__device__ inline uint64_t CountCandidates(const LogitRow& row, Workplace* workplace) {
  uint64_t count = 0;
  ForCandidates(row, [&](int) { ++count; });
  return SumOfBlock(count, workplace);
}

// Of the weights that are at least `least`.
__device__ inline uint64_t TotalWeight(const LogitRow& row, const Weights& weigh,
                                       Workplace* workplace, uint64_t least = 0) {
  uint64_t total = 0;
  ForCandidates(row, [&](int id) {
    const uint64_t weight = weigh(row.logits[id]);
    if (weight >= least) total += weight;
  });
  return SumOfBlock(total, workplace);
}

__device__ inline float LogProbOf(float logit, float max, uint64_t total) {
  const double log_total = Logarithm(static_cast<double>(total) / static_cast<double>(kWeightOne));
  return static_cast<float>((static_cast<double>(logit) - static_cast<double>(max)) - log_total);
}

// What a search sums up, candidate by candidate in their order.
enum class Unit { kCandidate, kWeight };

// A candidate by the upper bits of its key: no other that counts has them.
struct Place {
  uint64_t key;     // those bits, then zeros
  uint64_t known;   // which they are
  uint64_t weight;  // of all candidates up to it, itself included
};
constexpr uint64_t kWhole = ~uint64_t{0};  // all of a key is known

// Searches the order of a row's candidates.
class Search {
 public:
  __device__ Search(const LogitRow& row, const Weights& weigh, uint64_t best, Workplace* workplace)
      : row_(row), weigh_(weigh), best_(best), workplace_(workplace) {}

  // The first candidate at which the running sum of `unit` reaches `goal`, which is at least 1 and
  // at most the sum of all: from the keys' upper digit to their lowest, by the sums of each digit,
  // until one candidate is left.
  __device__ Place Reach(Unit unit, uint64_t goal) const {
    if (goal <= (unit == Unit::kCandidate ? 1 : kWeightOne)) return {best_, kWhole, kWeightOne};
    Place place = {0, 0, 0};
    uint64_t sum = 0;  // as place.weight, in the unit
    for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
      SumDigits(unit, place, shift);
      int digit = 0;
      for (; digit < kDigits - 1; ++digit) {
        const uint64_t here = unit == Unit::kCandidate ? CountOf(digit) : WeightOf(digit);
        if (sum + here >= goal) break;
        sum += here;
        place.weight += WeightOf(digit);
      }
      place.key |= static_cast<uint64_t>(digit) << shift;
      place.known |= static_cast<uint64_t>(kDigits - 1) << shift;
      const bool is_alone = CountOf(digit) == 1;
      const uint64_t weight = WeightOf(digit);
      TANDEM_SYNC_THREADS();  // the digits' sums have been read
      if (!is_alone) continue;
      place.weight += weight;
      break;
    }
    return place;
  }

  __device__ int IdAt(const Place& place) const {
    if (place.known == kWhole) return IdOf(place.key);
    ForCandidatesAt(Unit::kWeight, place,
                    [&](uint64_t key, uint64_t) { workplace_->found = IdOf(key); });
    TANDEM_SYNC_THREADS();
    return workplace_->found;
  }

 private:
  __device__ uint64_t CountOf(int digit) const { return workplace_->counts[digit]; }
  __device__ uint64_t WeightOf(int digit) const {
    return (static_cast<uint64_t>(workplace_->upper_weights[digit]) << 32) +
           workplace_->lower_weights[digit];
  }

  // Calls visit(key, weight) for this thread's candidates whose keys have the place's known bits. A
  // weight of 0 is never drawn, but counts among the first top_k.
  template <typename Visit>
  __device__ void ForCandidatesAt(Unit unit, const Place& place, const Visit& visit) const {
    ForCandidates(row_, [&](int id) {
      const float logit = row_.logits[id];
      const uint64_t key = OrderKey(logit, id);
      if ((key & place.known) != place.key) return;
      const uint64_t weight = weigh_(logit);
      if (unit == Unit::kCandidate || weight > 0) visit(key, weight);
    });
  }

  // Counts and weighs the candidates at `place` by the digit of their keys at `shift`.
  __device__ void SumDigits(Unit unit, const Place& place, int shift) const {
    Workplace& workplace = *workplace_;
    for (int digit = static_cast<int>(threadIdx.x); digit < kDigits; digit += kThreads) {
      workplace.counts[digit] = 0;
      workplace.lower_weights[digit] = workplace.upper_weights[digit] = 0;
    }
    TANDEM_SYNC_THREADS();
    ForCandidatesAt(unit, place, [&](uint64_t key, uint64_t weight) {
      const auto digit = static_cast<int>(key >> shift & (kDigits - 1));
      const auto lower = static_cast<uint32_t>(weight);
      AtomicAdd(&workplace.counts[digit], 1);
      const uint32_t before = AtomicAdd(&workplace.lower_weights[digit], lower);
      const uint32_t carry = before + lower < lower ? 1 : 0;
      AtomicAdd(&workplace.upper_weights[digit], static_cast<uint32_t>(weight >> 32) + carry);
    });
    TANDEM_SYNC_THREADS();
  }

  const LogitRow& row_;
  const Weights& weigh_;
  const uint64_t best_;
  Workplace* const workplace_;
};

// The weight that the prefix for top_p must reach.
__device__ inline uint64_t TopPThreshold(float top_p, uint64_t total) {
  const double share = Ceiling(static_cast<double>(top_p) * static_cast<double>(total));
  const auto threshold = static_cast<uint64_t>(share);
  if (threshold < 1) return 1;
  return threshold < total ? threshold : total;
}

// The least weight that min_p leaves.
__device__ inline uint64_t MinPThreshold(float min_p) {
  return static_cast<uint64_t>(
      Ceiling(static_cast<double>(min_p) * static_cast<double>(kWeightOne)));
}

// Draws an id; `total` is of the weights at the row's temperature. A cut only makes the total
// smaller: what the rest would add lies behind all that can be drawn.
__device__ inline int Draw(const LogitRow& row, const SampleRow& sample, const Weights& weigh,
                           uint64_t total, uint64_t best, Workplace* workplace) {
  const Search search(row, weigh, best, workplace);
  if (sample.min_p > 0.0f) {
    total = TotalWeight(row, weigh, workplace, MinPThreshold(sample.min_p));
  }
  if (sample.top_k > 0) {
    const auto top_k = static_cast<uint64_t>(sample.top_k);
    if (top_k < CountCandidates(row, workplace)) {
      total = Smaller(total, search.Reach(Unit::kCandidate, top_k).weight);
    }
  }
  if (sample.top_p < 1.0f) {
    total = search.Reach(Unit::kWeight, TopPThreshold(sample.top_p, total)).weight;
  }
  const uint64_t target = HighOfProduct(sample.random, total);
  return search.IdAt(search.Reach(Unit::kWeight, target + 1));
}

struct AdjustLogitsOp {
  Rows<const uint8_t> adjustments;
  Rows<float> logits;

  __device__ void operator()(int64_t i, int64_t) const {
    const auto& adjust = *reinterpret_cast<const LogitAdjustment*>(adjustments[i]);
    float& logit = logits[adjust.row][adjust.id];
    const float biased = logit + adjust.bias;
    const float repeated =
        biased > 0.0f ? Divide(biased, adjust.repetition) : biased * adjust.repetition;
    logit = repeated - adjust.penalty;
  }
};

// `raws`: the logits before they were adjusted; the same where they were not.
__global__ void SampleKernel(int vocab, Rows<const float> logits, Rows<const float> raws,
                             const uint8_t* allowed, Rows<const uint8_t> samples,
                             Rows<uint8_t> out) {
  auto* const workplace = reinterpret_cast<Workplace*>(SharedMemory());
  const LogitRow row = {logits[blockIdx.x], allowed, vocab};
  const LogitRow raw = {raws[blockIdx.x], allowed, vocab};
  const bool adjusted = row.logits != raw.logits;
  const SampleRow sample = *reinterpret_cast<const SampleRow*>(samples[blockIdx.x]);
  SampledToken token;
  const uint64_t best = FindBest(row, workplace);
  const uint64_t best_raw = adjusted ? FindBest(raw, workplace) : best;
  if (best != kNoKey && best_raw != kNoKey) {
    const float max_raw = raw.logits[IdOf(best_raw)];
    const uint64_t total = TotalWeight(raw, {max_raw, 1.0f}, workplace);
    token.id = IdOf(best);
    if (sample.temperature > 0.0f) {
      const Weights weigh = {row.logits[IdOf(best)], sample.temperature};
      const bool weighed = sample.temperature == 1.0f && !adjusted;
      const uint64_t drawn_total = weighed ? total : TotalWeight(row, weigh, workplace);
      token.id = Draw(row, sample, weigh, drawn_total, best, workplace);
    }
    token.log_prob = LogProbOf(raw.logits[token.id], max_raw, total);
  }
  if (threadIdx.x == 0) *reinterpret_cast<SampledToken*>(out[blockIdx.x]) = token;
}

__global__ void TopLogProbsKernel(int vocab, int count, Rows<const float> logits,
                                  const uint8_t* allowed, Rows<int32_t> ids,
                                  Rows<float> log_probs) {
  auto* const workplace = reinterpret_cast<Workplace*>(SharedMemory());
  const LogitRow row = {logits[blockIdx.x], allowed, vocab};
  uint64_t key = FindBest(row, workplace);
  const float max = key == kNoKey ? 0.0f : row.logits[IdOf(key)];
  const uint64_t total = key == kNoKey ? 1 : TotalWeight(row, {max, 1.0f}, workplace);
  for (int i = 0; i < count; ++i) {
    const bool found = key != kNoKey;
    if (threadIdx.x == 0) {
      ids[blockIdx.x][i] = found ? IdOf(key) : -1;
      log_probs[blockIdx.x][i] = found ? LogProbOf(row.logits[IdOf(key)], max, total) : 0.0f;
    }
    if (found && i + 1 < count) key = FindBest(row, workplace, key);
  }
}

__global__ void LogProbKernel(int vocab, Rows<const float> logits, const int32_t* targets,
                              float* out) {
  auto* const workplace = reinterpret_cast<Workplace*>(SharedMemory());
  const LogitRow row = {logits[blockIdx.x], nullptr, vocab};
  float log_prob = FloatOf(0x7FC00000u);  // a NaN
  const uint64_t best = FindBest(row, workplace);
  if (best != kNoKey) {
    const float max = row.logits[IdOf(best)];
    const uint64_t total = TotalWeight(row, {max, 1.0f}, workplace);
    log_prob = LogProbOf(row.logits[targets[blockIdx.x]], max, total);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = log_prob;
}

}  // namespace

void AdjustLogits(Stream stream, const AdjustLogitsArgs& args) {
  LaunchForElements(
      stream, args.adjustments.rows(), 1,
      AdjustLogitsOp{RowsOf<const uint8_t>(args.adjustments), RowsOf<float>(args.logits)});
}

void Sample(Stream stream, const SampleArgs& args) {
  if (args.logits.rows() == 0) return;
  Launch(stream, SampleKernel, args.logits.rows(), kThreads, sizeof(Workplace),
         static_cast<int>(args.logits.width()), RowsOf<const float>(args.logits),
         RowsOf<const float>(args.raw.empty() ? args.logits : args.raw),
         DataOf<const uint8_t>(args.allowed), RowsOf<const uint8_t>(args.rows),
         RowsOf<uint8_t>(args.out));
}

void TopLogProbs(Stream stream, const TopLogProbsArgs& args) {
  if (args.logits.rows() == 0) return;
  Launch(stream, TopLogProbsKernel, args.logits.rows(), kThreads, sizeof(Workplace),
         static_cast<int>(args.logits.width()), static_cast<int>(args.ids.width()),
         RowsOf<const float>(args.logits), DataOf<const uint8_t>(args.allowed),
         RowsOf<int32_t>(args.ids), RowsOf<float>(args.log_probs));
}

void LogProb(Stream stream, const LogProbArgs& args) {
  if (args.logits.rows() == 0) return;
  Launch(stream, LogProbKernel, args.logits.rows(), kThreads, sizeof(Workplace),
         static_cast<int>(args.logits.width()), RowsOf<const float>(args.logits),
         DataOf<const int32_t>(args.targets), DataOf<float>(args.out));
}

}  // namespace tandem::kernels::cuda
