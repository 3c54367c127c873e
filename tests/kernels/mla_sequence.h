// What tests of both forms of attention share: a sequence with its latents in pages, shapes, and
// tolerances derived from roundings.
#ifndef TANDEM_TESTS_KERNELS_MLA_SEQUENCE_H_
#define TANDEM_TESTS_KERNELS_MLA_SEQUENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/mla_oracle.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr double kUnitF32 = 0x1p-24;
inline constexpr double kUnitBF16 = 0x1p-8;

// Without gaps between its rows, so that elements can be counted through.
class Tensor : public TestTensor {
 public:
  Tensor(Dtype dtype, std::initializer_list<int64_t> dims, size_t misalignment = 0)
      : TestTensor(dtype, dims, 0, misalignment) {}
  double at(int64_t i) const { return TestTensor::at(0, i); }
  void set(int64_t i, float x) { TestTensor::set(0, i, x); }
  int64_t size() const { return view().elements(); }
  void FillWith(float x) {
    for (int64_t i = 0; i < size(); ++i) set(i, x);
  }
  Doubles doubles() const {
    Doubles result(size());
    for (int64_t i = 0; i < size(); ++i) result[i] = at(i);
    return result;
  }
  // Entries [begin, end) of the first dimension, of as many dimensions as this has.
  DeviceTensor Rows(int64_t begin, int64_t end) const {
    const int64_t rows_each = view().rows() / view().dim(0);
    const DeviceTensor rows = device().slice_rows(begin * rows_each, (end - begin) * rows_each);
    return view().rank == 2 ? rows : rows.reshaped({end - begin, view().dim(1), view().dim(2)});
  }
  bool operator==(const Tensor& other) const { return Bytes() == other.Bytes(); }
};

// One sequence of `length` tokens whose queries, weights and cache rows are random. Its pages lie
// scattered among others, and all memory that it does not own is NaN.
struct Sequence {
  Sequence(MlaShape shape, Dtype act, Dtype weight, int64_t length, int seed = 1)
      : Sequence(shape, act, weight, DefaultWeightFormat(weight), length, seed) {}
  Sequence(MlaShape shape, Dtype act, Dtype weight, WeightFormat format, int64_t length,
           int seed = 1)
      : s(shape),
        act(act),
        format(format),
        length(length),
        num_pages(PagesFor(length)),
        q(act, {length, s.heads, s.dn + s.dr}),
        kv_b(weight, {s.heads * (s.dn + s.dv), s.r}, 2),
        rows(act, {length, s.r + s.dr}),
        pages(act, {num_pages + 3, kPageTokens, s.r + s.dr}),
        page_table(num_pages + 3) {
    std::mt19937 random(seed);
    q.Fill(random(), 1.5f);
    kv_b.Fill(random(), 1.0f / std::sqrt(static_cast<float>(s.r)));
    rows.Fill(random());
    std::iota(page_table.begin(), page_table.end(), 0);
    std::shuffle(page_table.begin(), page_table.end(), random);
    page_table.resize(num_pages);
    pages.FillWith(kNan);
    Store(0, length);
  }

  // Copies rows [begin, end) to their pages.
  void Store(int64_t begin, int64_t end) {
    const int64_t width = s.r + s.dr;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slot = page_table[i / kPageTokens] * kPageTokens + i % kPageTokens;
      for (int64_t d = 0; d < width; ++d) {
        pages.set(slot * width + d, static_cast<float>(rows.at(i * width + d)));
      }
    }
  }

  std::unique_ptr<KvUpWeight> KvUp(Backend& backend) const {
    return *backend.PrepareKvUp(kv_b.lent(), {s.heads, s.dn, s.dv, s.r}, format);
  }

  // Expanded attention of positions [begin, end), into those rows of `out`.
  void Expanded(Backend& backend, int64_t begin, int64_t end, Tensor& out) {
    std::vector<int32_t> positions(end - begin);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
    backend.MlaExpanded({q.Rows(begin, end), *KvUp(backend), pages.device(),
                         DeviceVector(page_table), DeviceVector(positions), end,
                         out.Rows(begin, end), static_cast<float>(s.scale)});
  }
  Tensor Expanded(Backend& backend) {
    Tensor out(act, {length, s.heads * s.dv});
    Expanded(backend, 0, length, out);
    return out;
  }

  void Absorb(Backend& backend, int64_t begin, int64_t end, Tensor& q_latent) {
    backend.MlaAbsorbQuery({q.Rows(begin, end), *KvUp(backend), q_latent.Rows(begin, end)});
  }
  void Attend(Backend& backend, int64_t begin, int64_t end, Tensor& q_latent, Tensor& latent) {
    const std::vector<int32_t> table_of_row(end - begin, 0);
    std::vector<int32_t> lengths(end - begin);
    std::iota(lengths.begin(), lengths.end(), static_cast<int32_t>(begin + 1));
    backend.MlaAbsorbed({q_latent.Rows(begin, end), q.Rows(begin, end), pages.device(),
                         DeviceVector(page_table).reshaped({1, num_pages}),
                         DeviceVector(table_of_row), DeviceVector(lengths), latent.Rows(begin, end),
                         static_cast<float>(s.scale)});
  }
  void Project(Backend& backend, int64_t begin, int64_t end, Tensor& latent, Tensor& out) {
    backend.MlaProjectValue({latent.Rows(begin, end), *KvUp(backend), out.Rows(begin, end)});
  }
  // Absorbed attention of positions [begin, end), into those rows of `out`.
  void Absorbed(Backend& backend, int64_t begin, int64_t end, Tensor& out) {
    Tensor q_latent(Dtype::kF32, {length, s.heads, s.r});
    Tensor latent(Dtype::kF32, {length, s.heads, s.r});
    Absorb(backend, begin, end, q_latent);
    Attend(backend, begin, end, q_latent, latent);
    Project(backend, begin, end, latent, out);
  }
  Tensor Absorbed(Backend& backend) {
    Tensor out(act, {length, s.heads * s.dv});
    Absorbed(backend, 0, length, out);
    return out;
  }

  MlaShape s;
  Dtype act;
  WeightFormat format;
  int64_t length;
  int64_t num_pages;
  Tensor q;
  Tensor kv_b;
  Tensor rows;
  Tensor pages;
  std::vector<int32_t> page_table;
};

inline MlaShape Shape(int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r) {
  return {heads, dn, dr, dv, r, static_cast<float>(1.6 / std::sqrt(dn + dr))};
}

inline const std::vector<MlaShape>& RaggedShapes() {
  static const auto* shapes = new std::vector<MlaShape>{
      Shape(1, 8, 8, 8, 8),     Shape(2, 16, 8, 24, 24),   Shape(3, 40, 16, 8, 40),
      Shape(4, 32, 16, 32, 64), Shape(5, 48, 24, 56, 104), Shape(9, 24, 40, 16, 16)};
  return *shapes;
}

// What roundings may do to an attention's result. A sum of n terms whose root of squares is s
// wanders by about unit * sqrt(n) * s; six standard deviations are allowed. An error e of the
// scores changes the result by at most 2 e |v|; so do the roundings of weights, of sums over a
// page (8 = sqrt(64)) and of one step per page. With bf16, keys and values are rounded once more.
inline double AttentionTolerance(const OracleHead& head, const MlaShape& s, int64_t num_keys,
                                 bool rounds_keys) {
  const double num_terms = static_cast<double>(s.dn + s.dr + s.r);
  const double num_pages = std::ceil(static_cast<double>(num_keys) / kPageTokens);
  double relative =
      6 * kUnitF32 * (2 * std::sqrt(num_terms) * head.score_size + 8 + std::sqrt(num_pages) + 2);
  if (rounds_keys) relative += kUnitBF16 * (6 * 2 * head.score_size + 1);
  return relative * head.value_size;
}

// The larger relative distance of two tensors, of all elements together.
inline double RelativeDistance(const Tensor& a, const Tensor& b) {
  double difference = 0;
  double size = 0;
  for (int64_t i = 0; i < a.size(); ++i) {
    difference += std::pow(a.at(i) - b.at(i), 2);
    size += std::pow(b.at(i), 2);
  }
  return std::sqrt(difference / size);
}

// Rows at page borders and a few others.
inline std::vector<int64_t> SampleRows(int64_t length) {
  std::vector<int64_t> result;
  for (int64_t i : {0, 1, 62, 63, 64, 65, 127, 128, 200, 255, 256, 299}) {
    if (i < length) result.push_back(i);
  }
  return result;
}

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_MLA_SEQUENCE_H_
