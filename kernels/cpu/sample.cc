#include "kernels/ops/sample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/row_ops.h"

namespace tandem::kernels::cpu {
namespace {

constexpr double kWeightOne = 1099511627776.0;  // 2^40, the weight of the best candidate

// Logits of one row and which of them are candidates.
struct LogitRow {
  absl::Span<const float> logits;
  absl::Span<const uint8_t> allowed;  // empty: all

  bool IsCandidate(size_t id) const { return allowed.empty() || allowed[id] != 0; }
};

// The first candidate of a row, or -1 where the row is in error or no logit is above -inf.
int32_t FindBest(const LogitRow& row) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int32_t best = -1;
  float max = -kInfinity;
  for (size_t id = 0; id < row.logits.size(); ++id) {
    if (!row.IsCandidate(id)) continue;
    const float logit = row.logits[id];
    if (!(logit < kInfinity)) return -1;
    if (logit > max) {
      max = logit;
      best = static_cast<int32_t>(id);
    }
  }
  return best;
}

// weights[id] = round(2^40 exp((logit - max) / temperature)), 0 for what is no candidate; returns
// the exact sum. Each weight is an integer of at most 24 significant bits: a float holds it.
uint64_t Weigh(const LogitRow& row, float max, float temperature, std::vector<float>& weights) {
  const auto vocab = static_cast<int64_t>(row.logits.size());
  weights.resize(row.logits.size());
  FixedPointExpRow(row.logits.data(), max, temperature, vocab, weights.data());
  uint64_t total = 0;
  for (size_t id = 0; id < weights.size(); ++id) {
    if (!row.IsCandidate(id)) weights[id] = 0.0f;
    total += static_cast<uint64_t>(static_cast<int64_t>(weights[id]));
  }
  return total;
}

float LogProbOf(float logit, float max, uint64_t total) {
  const double log_total = std::log(static_cast<double>(total) / kWeightOne);
  return static_cast<float>((static_cast<double>(logit) - static_cast<double>(max)) - log_total);
}

// Sorts as (logit descending, id ascending); -0 equals +0.
uint64_t OrderKey(float logit, uint32_t id) {
  const float canonical = logit + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &canonical, sizeof(bits));
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(~ascending) << 32) | id;
}

// Candidates in their order, sorted no further than they are looked at: most draws end among the
// first few of 100,000.
class OrderedCandidates {
 public:
  explicit OrderedCandidates(std::vector<uint64_t>& keys) : keys_(keys) {}

  size_t size() const { return keys_.size(); }

  // Keeps the first `count`; nothing may have been looked at.
  void Truncate(size_t count) {
    if (count >= keys_.size()) return;
    std::nth_element(keys_.begin(), keys_.begin() + count, keys_.end());
    keys_.resize(count);
  }

  uint32_t Unordered(size_t i) const { return static_cast<uint32_t>(keys_[i]); }

  // The id of the i-th candidate.
  uint32_t operator[](size_t i) {
    while (i >= sorted_) SortMore();
    return static_cast<uint32_t>(keys_[i]);
  }

 private:
  void SortMore() {
    const size_t count = std::min(std::max<size_t>(128, 7 * sorted_), keys_.size() - sorted_);
    const auto begin = keys_.begin() + sorted_;
    if (begin + count != keys_.end()) std::nth_element(begin, begin + count, keys_.end());
    std::sort(begin, begin + count);
    sorted_ += count;
  }

  std::vector<uint64_t>& keys_;
  size_t sorted_ = 0;
};

// floor(bits / 2^64 * total): in [0, total), every value equally often but for 2^-64.
uint64_t ScaleRandom(uint64_t bits, uint64_t total) {
  __extension__ typedef unsigned __int128 Uint128;
  return static_cast<uint64_t>((static_cast<Uint128>(bits) * total) >> 64);
}

// The weight that the prefix for top_p must reach.
uint64_t TopPThreshold(float top_p, uint64_t total) {
  const double share = std::ceil(static_cast<double>(top_p) * static_cast<double>(total));
  return std::min(std::max<uint64_t>(1, static_cast<uint64_t>(share)), total);
}

// The least weight that min_p leaves; 0: of any.
uint64_t MinPThreshold(float min_p) {
  return static_cast<uint64_t>(std::ceil(static_cast<double>(min_p) * kWeightOne));
}

// Draws an id; `weights` and `total` are those of Weigh at the row's temperature.
int32_t Draw(const LogitRow& row, const SampleRow& sample, const std::vector<float>& weights,
             uint64_t total) {
  thread_local std::vector<uint64_t> keys;
  keys.clear();
  const auto weight_of = [&](size_t id) {
    return static_cast<uint64_t>(static_cast<int64_t>(weights[id]));
  };
  if (sample.min_p > 0.0f) {
    const uint64_t threshold = MinPThreshold(sample.min_p);
    total = 0;
    for (size_t id = 0; id < weights.size(); ++id) {
      if (weight_of(id) < threshold) continue;
      keys.push_back(OrderKey(row.logits[id], static_cast<uint32_t>(id)));
      total += weight_of(id);
    }
  } else {
    for (size_t id = 0; id < weights.size(); ++id) {
      // A weight of 0 is never drawn, but counts among the first top_k.
      const bool counts = sample.top_k == 0 ? weights[id] > 0.0f : row.IsCandidate(id);
      if (counts) keys.push_back(OrderKey(row.logits[id], static_cast<uint32_t>(id)));
    }
  }
  OrderedCandidates candidates(keys);
  if (sample.top_k > 0 && static_cast<size_t>(sample.top_k) < candidates.size()) {
    candidates.Truncate(static_cast<size_t>(sample.top_k));
    total = 0;
    for (size_t i = 0; i < candidates.size(); ++i) total += weight_of(candidates.Unordered(i));
  }
  if (sample.top_p < 1.0f) {
    const uint64_t threshold = TopPThreshold(sample.top_p, total);
    total = 0;
    for (size_t i = 0; total < threshold; ++i) total += weight_of(candidates[i]);
  }
  const uint64_t target = ScaleRandom(sample.random, total);
  uint64_t cumulative = 0;
  for (size_t i = 0;; ++i) {
    const uint32_t id = candidates[i];
    cumulative += weight_of(id);
    if (cumulative > target) return static_cast<int32_t>(id);
  }
}

// `raw`: the row before it was adjusted; itself if it was not.
SampledToken SampleOne(const LogitRow& row, const LogitRow& raw, const SampleRow& sample) {
  thread_local std::vector<float> weights;
  SampledToken token;
  const bool adjusted = row.logits.data() != raw.logits.data();
  const int32_t best = FindBest(row);
  const int32_t best_raw = adjusted ? FindBest(raw) : best;
  if (best < 0 || best_raw < 0) return token;
  const float max_raw = raw.logits[best_raw];
  const uint64_t total = Weigh(raw, max_raw, 1.0f, weights);
  token.id = best;
  const float temperature = sample.temperature;
  if (temperature > 0.0f) {
    const bool weighed = temperature == 1.0f && !adjusted;
    const uint64_t drawn_total =
        weighed ? total : Weigh(row, row.logits[best], temperature, weights);
    token.id = Draw(row, sample, weights, drawn_total);
  }
  token.log_prob = LogProbOf(raw.logits[token.id], max_raw, total);
  return token;
}

absl::Span<const uint8_t> Allowed(const DeviceTensor& allowed) {
  return {Data<const uint8_t>(allowed), allowed.empty() ? 0 : static_cast<size_t>(allowed.width())};
}

LogitRow RowOf(const DeviceTensor& logits, int64_t i, absl::Span<const uint8_t> allowed) {
  const auto* data = reinterpret_cast<const float*>(Row(logits, i));
  return LogitRow{{data, static_cast<size_t>(logits.width())}, allowed};
}

}  // namespace

void AdjustLogits(const AdjustLogitsArgs& args, ThreadPool& pool) {
  pool.ParallelFor(args.adjustments.rows(), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      LogitAdjustment adjust;
      std::memcpy(&adjust, Row(args.adjustments, i), sizeof(adjust));
      float& logit = reinterpret_cast<float*>(Row(args.logits, adjust.row))[adjust.id];
      logit += adjust.bias;
      logit = logit > 0.0f ? logit / adjust.repetition : logit * adjust.repetition;
      logit -= adjust.penalty;
    }
  });
}

void Sample(const SampleArgs& args, ThreadPool& pool) {
  const absl::Span<const uint8_t> allowed = Allowed(args.allowed);
  const DeviceTensor& raw = args.raw.empty() ? args.logits : args.raw;
  pool.ParallelFor(args.logits.rows(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      SampleRow row;
      std::memcpy(&row, Row(args.rows, i), sizeof(row));
      const SampledToken token =
          SampleOne(RowOf(args.logits, i, allowed), RowOf(raw, i, allowed), row);
      std::memcpy(Row(args.out, i), &token, sizeof(token));
    }
  });
}

void TopLogProbs(const TopLogProbsArgs& args, ThreadPool& pool) {
  const absl::Span<const uint8_t> allowed = Allowed(args.allowed);
  const int64_t count = args.ids.width();
  pool.ParallelFor(args.logits.rows(), 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> weights;
    thread_local std::vector<uint64_t> keys;
    for (int64_t i = begin; i < end; ++i) {
      auto* const ids = reinterpret_cast<int32_t*>(Row(args.ids, i));
      auto* const log_probs = reinterpret_cast<float*>(Row(args.log_probs, i));
      std::fill_n(ids, count, -1);
      std::fill_n(log_probs, count, 0.0f);
      const LogitRow row = RowOf(args.logits, i, allowed);
      const int32_t best = FindBest(row);
      if (best < 0) continue;
      const float max = row.logits[best];
      const uint64_t total = Weigh(row, max, 1.0f, weights);
      keys.clear();
      for (size_t id = 0; id < row.logits.size(); ++id) {
        if (!row.IsCandidate(id) || std::isinf(row.logits[id])) continue;
        keys.push_back(OrderKey(row.logits[id], static_cast<uint32_t>(id)));
      }
      OrderedCandidates candidates(keys);
      candidates.Truncate(static_cast<size_t>(count));
      for (size_t k = 0; k < candidates.size(); ++k) {
        ids[k] = static_cast<int32_t>(candidates[k]);
        log_probs[k] = LogProbOf(row.logits[ids[k]], max, total);
      }
    }
  });
}

void LogProb(const LogProbArgs& args, ThreadPool& pool) {
  const absl::Span<const int32_t> targets = Ints(args.targets);
  auto* const out = Data<float>(args.out);
  pool.ParallelFor(args.logits.rows(), 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> weights;
    for (int64_t i = begin; i < end; ++i) {
      const LogitRow row = RowOf(args.logits, i, {});
      const int32_t best = FindBest(row);
      if (best < 0) {
        out[i] = std::numeric_limits<float>::quiet_NaN();
        continue;
      }
      const float max = row.logits[best];
      const uint64_t total = Weigh(row, max, 1.0f, weights);
      out[i] = LogProbOf(row.logits[targets[i]], max, total);
    }
  });
}

}  // namespace tandem::kernels::cpu
