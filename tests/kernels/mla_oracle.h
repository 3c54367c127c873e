// Multi-head latent attention of one sequence in float64, as naive as it gets: the reference for
// the kernels' tests. Source: DeepSeek-V2 (arXiv:2405.04434) section 2.1.
#ifndef TANDEM_TESTS_KERNELS_MLA_ORACLE_H_
#define TANDEM_TESTS_KERNELS_MLA_ORACLE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace tandem::kernels {

using Doubles = std::vector<double>;

struct MlaShape {
  int64_t heads;
  int64_t dn;  // nope, rope and value widths of a head
  int64_t dr;
  int64_t dv;
  int64_t r;  // kv_lora_rank
  double scale;
};

// Rotates dr interleaved values in place; the angle is the f32 product that the references use.
inline void OracleRope(double* x, int64_t dr, int32_t position, const float* frequencies,
                       double factor) {
  for (int64_t f = 0; f < dr / 2; ++f) {
    const double angle = static_cast<float>(position) * frequencies[f];
    const double cosine = factor * std::cos(angle);
    const double sine = factor * std::sin(angle);
    const double even = x[2 * f];
    const double odd = x[2 * f + 1];
    x[2 * f] = even * cosine - odd * sine;
    x[2 * f + 1] = odd * cosine + even * sine;
  }
}

// The row of the latent cache for kv_a = [latent, key]: the norm of one, the rotation of the other.
inline Doubles OracleLatentRow(const Doubles& kv_a, const Doubles& norm_weight, double eps,
                               int32_t position, const std::vector<float>& frequencies,
                               double factor) {
  const auto r = static_cast<int64_t>(norm_weight.size());
  double squares = 0;
  for (int64_t i = 0; i < r; ++i) squares += kv_a[i] * kv_a[i];
  Doubles row = kv_a;
  for (int64_t i = 0; i < r; ++i) {
    row[i] *= norm_weight[i] / std::sqrt(squares / static_cast<double>(r) + eps);
  }
  OracleRope(&row[r], static_cast<int64_t>(kv_a.size()) - r, position, frequencies.data(), factor);
  return row;
}

// What attention of one head gives, and the sizes from which error bounds are made.
struct OracleHead {
  Doubles out;            // [r] of the absorbed form, [dv] of the expanded one
  double score_size = 0;  // max_j scale * sqrt(sum_d (q_d k_jd)^2)
  double value_size = 0;  // max |v|
};

// Keys or values, and for each the root of the sum of squares of the terms that make it: the size
// that its rounding errors go with.
struct OracleOperand {
  Doubles x;
  Doubles size;
};

// softmax(scale * q . k_j) v_j over num_keys keys of widths q_width, v_width.
inline OracleHead OracleSoftmax(const double* q, const OracleOperand& keys,
                                const OracleOperand& values, int64_t num_keys, int64_t q_width,
                                int64_t v_width, double scale) {
  OracleHead head{Doubles(v_width), 0, 0};
  Doubles scores(num_keys);
  for (int64_t j = 0; j < num_keys; ++j) {
    double squares = 0;
    for (int64_t d = 0; d < q_width; ++d) {
      scores[j] += scale * q[d] * keys.x[j * q_width + d];
      squares += std::pow(scale * q[d] * keys.size[j * q_width + d], 2);
    }
    head.score_size = std::max(head.score_size, std::sqrt(squares));
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - largest);
  for (int64_t j = 0; j < num_keys; ++j) {
    for (int64_t v = 0; v < v_width; ++v) {
      head.out[v] += scores[j] / sum * values.x[j * v_width + v];
      head.value_size = std::max(head.value_size, std::abs(values.size[j * v_width + v]));
    }
  }
  return head;
}

// Absorbed form: `q` is [q_latent, q_rope] of one head, `rows` the cache rows of the sequence.
inline OracleHead OracleAbsorbed(const MlaShape& s, const Doubles& q, const Doubles& rows,
                                 int64_t num_keys) {
  Doubles latents(num_keys * s.r);
  for (int64_t j = 0; j < num_keys; ++j) {
    std::copy_n(&rows[j * (s.r + s.dr)], s.r, &latents[j * s.r]);
  }
  return OracleSoftmax(q.data(), {rows, rows}, {latents, latents}, num_keys, s.r + s.dr, s.r,
                       s.scale);
}

// y[n] = sum_k w[n, k] x[k] for rows [first, first + count) of w, written from y.x[at] on.
inline void OracleLinear(const Doubles& w, int64_t first, int64_t count, const double* x, int64_t k,
                         OracleOperand& y, int64_t at) {
  for (int64_t n = 0; n < count; ++n) {
    double sum = 0;
    double squares = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum += w[(first + n) * k + i] * x[i];
      squares += std::pow(w[(first + n) * k + i] * x[i], 2);
    }
    y.x[at + n] = sum;
    y.size[at + n] = std::sqrt(squares);
  }
}

// Expanded form: `q` is [q_nope, q_rope] of head `h`.
inline OracleHead OracleExpanded(const MlaShape& s, int64_t h, const double* q, const Doubles& kv_b,
                                 const Doubles& rows, int64_t num_keys) {
  const int64_t q_width = s.dn + s.dr;
  OracleOperand keys = {Doubles(num_keys * q_width), Doubles(num_keys * q_width)};
  OracleOperand values = {Doubles(num_keys * s.dv), Doubles(num_keys * s.dv)};
  for (int64_t j = 0; j < num_keys; ++j) {
    const double* row = &rows[j * (s.r + s.dr)];
    OracleLinear(kv_b, h * (s.dn + s.dv), s.dn, row, s.r, keys, j * q_width);
    std::copy_n(row + s.r, s.dr, &keys.x[j * q_width + s.dn]);
    std::copy_n(row + s.r, s.dr, &keys.size[j * q_width + s.dn]);
    OracleLinear(kv_b, h * (s.dn + s.dv) + s.dn, s.dv, row, s.r, values, j * s.dv);
  }
  return OracleSoftmax(q, keys, values, num_keys, q_width, s.dv, s.scale);
}

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_MLA_ORACLE_H_
