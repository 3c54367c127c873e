// The ops of kernels/ops/{dense,moe,sample}.h in float64, naively and without roundings: what the
// kernels are tested against. One value per element, rows one after another.
#ifndef TANDEM_TESTS_KERNELS_ORACLE_H_
#define TANDEM_TESTS_KERNELS_ORACLE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "common/sampling_params.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels::oracle {

// Relative error of one rounding to `dtype`.
inline double Epsilon(Dtype dtype) {
  return dtype == Dtype::kF32 ? std::ldexp(1.0, -24) : std::ldexp(1.0, -8);
}

struct Sums {
  std::vector<double> value;
  std::vector<double> magnitude;  // sum of the absolute values: what errors are relative to
};

// out[i, n] = sum_k x[i, k] w[n, k].
inline Sums Linear(const TestTensor& x, const TestTensor& w) {
  Sums sums;
  for (int64_t i = 0; i < x.view().rows(); ++i) {
    for (int64_t n = 0; n < w.view().rows(); ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < x.view().width(); ++k) {
        sum += x.at(i, k) * w.at(n, k);
        magnitude += std::abs(x.at(i, k) * w.at(n, k));
      }
      sums.value.push_back(sum);
      sums.magnitude.push_back(magnitude);
    }
  }
  return sums;
}

// The most that a sum in lane order can be off, in units of its magnitude: k / 16 fused additions
// and 4 of the fold, each off by half a unit in the last place of f32.
inline double LaneOrderError(int64_t k) {
  return static_cast<double>((k + 15) / 16 + 4) * std::ldexp(1.0, -24);
}

// The same for block and for pair order: a block's 32 fused additions at most, and those of blocks.
inline double BlockOrderError(int64_t k) {
  return static_cast<double>(34 + (k + 31) / 32) * std::ldexp(1.0, -24);
}

// The same for tensor order: in each step of 16 a tensor core may cut what lies below the largest
// term instead of rounding, of 17 terms most of which are far smaller than what the sum has of
// magnitude.
inline double TensorOrderError(int64_t k) {
  return static_cast<double>(34 + 8 * ((k + 15) / 16)) * std::ldexp(1.0, -24);
}

inline std::vector<double> RmsNorm(const TestTensor& x, const TestTensor& weight, double eps) {
  std::vector<double> out;
  for (int64_t i = 0; i < x.view().rows(); ++i) {
    double squares = 0;
    for (int64_t k = 0; k < x.view().width(); ++k) squares += x.at(i, k) * x.at(i, k);
    const double root = std::sqrt(squares / static_cast<double>(x.view().width()) + eps);
    for (int64_t k = 0; k < x.view().width(); ++k) {
      out.push_back(weight.at(0, k) * (x.at(i, k) / root));
    }
  }
  return out;
}

inline double SiluMul(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }

inline std::vector<double> Softmax(const std::vector<double>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (double l : logits) p.push_back(std::exp(l - max));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= sum;
  return p;
}

// Indices by (score descending, index ascending).
inline std::vector<int> Ranking(const std::vector<double>& scores) {
  std::vector<int> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  return order;
}

// What a request makes of the logits of the token behind prompt and answer, as vLLM defines its
// parameters: ids that are held back, bias, repetition, frequency and presence.
inline std::vector<double> Adjusted(std::vector<double> logits, const std::vector<int32_t>& prompt,
                                    const std::vector<int32_t>& answer,
                                    const SamplingParams& params) {
  const auto count = [](const std::vector<int32_t>& ids, size_t id) {
    return static_cast<double>(std::count(ids.begin(), ids.end(), static_cast<int32_t>(id)));
  };
  for (size_t id = 0; id < logits.size(); ++id) {
    double& logit = logits[id];
    if (count(params.end_ids, id) > 0 && static_cast<int>(answer.size()) < params.min_tokens) {
      logit = -INFINITY;
    }
    for (const LogitBias& bias : params.logit_bias) {
      if (static_cast<size_t>(bias.id) == id) logit += bias.bias;
    }
    if (count(prompt, id) + count(answer, id) > 0) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    logit -= params.frequency_penalty * count(answer, id);
    logit -= count(answer, id) > 0 ? params.presence_penalty : 0;
  }
  return logits;
}

// Probabilities of the ids under the rules of SampleArgs; `allowed` empty: all.
inline std::vector<double> SamplingDistribution(const std::vector<double>& logits,
                                                const std::vector<uint8_t>& allowed,
                                                double temperature, int top_k, double top_p,
                                                double min_p = 0) {
  std::vector<double> scaled;
  for (size_t i = 0; i < logits.size(); ++i) {
    const bool is_candidate = allowed.empty() || allowed[i] != 0;
    scaled.push_back(is_candidate ? logits[i] / temperature : -INFINITY);
  }
  std::vector<double> p = Softmax(scaled);
  const double least = min_p * *std::max_element(p.begin(), p.end());
  for (double& v : p) v = v < least ? 0 : v;
  const std::vector<int> order = Ranking(p);
  if (top_k > 0) {
    for (size_t i = top_k; i < order.size(); ++i) p[order[i]] = 0;
  }
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  double prefix = 0;
  for (int id : order) {
    if (prefix >= top_p * total) p[id] = 0;
    prefix += p[id];
  }
  total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= total;
  return p;
}

}  // namespace tandem::kernels::oracle

#endif  // TANDEM_TESTS_KERNELS_ORACLE_H_
