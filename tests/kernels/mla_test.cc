#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/mla_oracle.h"
#include "tests/kernels/targets.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnitF32 = 0x1p-24;
constexpr double kUnitBF16 = 0x1p-8;

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

MlaShape Shape(int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r) {
  return {heads, dn, dr, dv, r, static_cast<float>(1.6 / std::sqrt(dn + dr))};
}

const std::vector<MlaShape>& RaggedShapes() {
  static const auto* shapes = new std::vector<MlaShape>{
      Shape(1, 8, 8, 8, 8),     Shape(2, 16, 8, 24, 24),   Shape(3, 40, 16, 8, 40),
      Shape(4, 32, 16, 32, 64), Shape(5, 48, 24, 56, 104), Shape(9, 24, 40, 16, 16)};
  return *shapes;
}

// What roundings may do to an attention's result. A sum of n terms whose root of squares is s
// wanders by about unit * sqrt(n) * s; six standard deviations are allowed. An error e of the
// scores changes the result by at most 2 e |v|; so do the roundings of weights, of sums over a
// page (8 = sqrt(64)) and of one step per page. With bf16, keys and values are rounded once more.
double AttentionTolerance(const OracleHead& head, const MlaShape& s, int64_t num_keys,
                          bool rounds_keys) {
  const double num_terms = static_cast<double>(s.dn + s.dr + s.r);
  const double num_pages = std::ceil(static_cast<double>(num_keys) / kPageTokens);
  double relative =
      6 * kUnitF32 * (2 * std::sqrt(num_terms) * head.score_size + 8 + std::sqrt(num_pages) + 2);
  if (rounds_keys) relative += kUnitBF16 * (6 * 2 * head.score_size + 1);
  return relative * head.value_size;
}

// The larger relative distance of two tensors, of all elements together.
double RelativeDistance(const Tensor& a, const Tensor& b) {
  double difference = 0;
  double size = 0;
  for (int64_t i = 0; i < a.size(); ++i) {
    difference += std::pow(a.at(i) - b.at(i), 2);
    size += std::pow(b.at(i), 2);
  }
  return std::sqrt(difference / size);
}

// Rows at page borders and a few others.
std::vector<int64_t> SampleRows(int64_t length) {
  std::vector<int64_t> result;
  for (int64_t i : {0, 1, 62, 63, 64, 65, 127, 128, 200, 255, 256, 299}) {
    if (i < length) result.push_back(i);
  }
  return result;
}

struct Numbers {
  Dtype act;
  Dtype weight;
  WeightFormat format;
};
std::string NameOf(const testing::TestParamInfo<Numbers>& info) {
  std::string name = std::string(DtypeName(info.param.act)) + "_" + DtypeName(info.param.weight);
  if (IsInteger(info.param.format)) name += std::string("_") + WeightFormatName(info.param.format);
  return name;
}
class MlaTest : public testing::TestWithParam<Numbers> {
 protected:
  double unit() const { return GetParam().act == Dtype::kF32 ? kUnitF32 : kUnitBF16; }
  Sequence Make(const MlaShape& shape, int64_t length, int seed = 1) const {
    return Sequence(shape, GetParam().act, GetParam().weight, GetParam().format, length, seed);
  }
};
// With weights that are known to a rounding.
class MlaFloatTest : public MlaTest {};
constexpr Numbers kFloats[] = {{Dtype::kF32, Dtype::kF32, WeightFormat::kF32},
                               {Dtype::kF32, Dtype::kBF16, WeightFormat::kBF16},
                               {Dtype::kBF16, Dtype::kBF16, WeightFormat::kBF16}};
constexpr Numbers kIntegers[] = {{Dtype::kF32, Dtype::kBF16, WeightFormat::kInt8},
                                 {Dtype::kBF16, Dtype::kF32, WeightFormat::kInt8}};
INSTANTIATE_TEST_SUITE_P(Floats, MlaFloatTest, testing::ValuesIn(kFloats), NameOf);
INSTANTIATE_TEST_SUITE_P(Floats, MlaTest, testing::ValuesIn(kFloats), NameOf);
INSTANTIATE_TEST_SUITE_P(Integers, MlaTest, testing::ValuesIn(kIntegers), NameOf);

TEST(RopeTableTest, RoundsOnceFromTheF32Angle) {
  const std::vector<int32_t> positions = {0, 1, 63, 4095, 16383, 163839};
  const std::vector<float> frequencies = {1.0f, 0.7498942f, 3.9e-2f, 3.3338e-6f};
  Tensor table(Dtype::kF32, {6, 8});
  auto backend = *CreateCpuBackend(2);
  backend->RopeTable({DeviceVector(positions), DeviceVector(frequencies), 1.0f, table.device()});
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t f = 0; f < 4; ++f) {
      const double angle = static_cast<float>(positions[i]) * frequencies[f];
      EXPECT_EQ(table.at(i * 8 + f), static_cast<float>(std::cos(angle)));
      EXPECT_EQ(table.at(i * 8 + 4 + f), static_cast<float>(std::sin(angle)));
    }
  }
  Tensor scaled(Dtype::kF32, {6, 8});
  backend->RopeTable({DeviceVector(positions), DeviceVector(frequencies), 1.25f, scaled.device()});
  for (int64_t i = 0; i < table.size(); ++i) {
    EXPECT_EQ(scaled.at(i), 1.25f * static_cast<float>(table.at(i)));
  }
}

TEST_P(MlaFloatTest, RopeRotatesOnlyTheLastValuesOfEachHead) {
  constexpr int64_t kRows = 19;
  constexpr int64_t kHeads = 3;
  constexpr int64_t kWidth = 40;
  constexpr int64_t kRope = 16;
  std::mt19937 random(2);
  Tensor x(GetParam().act, {kRows, kHeads, kWidth});
  x.Fill(random());
  const Doubles before = x.doubles();
  std::vector<int32_t> positions(kRows);
  for (int64_t i = 0; i < kRows; ++i) positions[i] = static_cast<int32_t>(i * 911);
  const std::vector<float> frequencies = {1.0f, 0.5f, 0.1f, 0.03f, 0.01f, 1e-3f, 1e-4f, 1e-5f};
  Tensor table(Dtype::kF32, {kRows, kRope});
  auto backend = *CreateCpuBackend(2);
  backend->RopeTable({DeviceVector(positions), DeviceVector(frequencies), 1.0f, table.device()});
  backend->Rope({x.device(), table.device()});
  for (int64_t row = 0; row < kRows * kHeads; ++row) {
    Doubles expected(&before[row * kWidth], &before[row * kWidth] + kWidth);
    OracleRope(&expected[kWidth - kRope], kRope, positions[row / kHeads], frequencies.data(), 1.0);
    for (int64_t i = 0; i < kWidth; ++i) {
      const double got = x.at(row * kWidth + i);
      if (i < kWidth - kRope) {
        EXPECT_EQ(got, expected[i]);
      } else {
        // Table, two products and a sum of values below 5, then one rounding to act.
        EXPECT_NEAR(got, expected[i], 4 * kUnitF32 * 5 + unit() * std::abs(expected[i]));
      }
    }
  }
}

TEST_P(MlaFloatTest, LatentAppendWritesItsRowsAndNothingElse) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kLatent = 40;
  constexpr int64_t kRope = 8;
  constexpr int64_t kWidth = kLatent + kRope;
  std::mt19937 random(3);
  Tensor kv_a(GetParam().act, {kRows, kWidth});
  Tensor weight(GetParam().weight, {kLatent}, 2);
  Tensor pages(GetParam().act, {4, kPageTokens, kWidth});
  kv_a.Fill(random());
  weight.Fill(random());
  pages.FillWith(kNan);
  const std::vector<int32_t> page_ids = {3, 3, 0, 1, 0};
  const std::vector<int32_t> slots = {62, 63, 0, 17, 1};
  const std::vector<int32_t> positions = {126, 127, 128, 17, 129};
  const std::vector<float> frequencies = {1.0f, 0.25f, 1e-2f, 1e-3f};
  Tensor table(Dtype::kF32, {kRows, kRope});
  auto backend = *CreateCpuBackend(2);
  backend->RopeTable({DeviceVector(positions), DeviceVector(frequencies), 1.0f, table.device()});
  backend->LatentAppend({kv_a.device(), *PrepareNorm(*backend, weight), table.device(),
                         pages.device(), DeviceVector(page_ids), DeviceVector(slots), 1e-6f});
  const Doubles input = kv_a.doubles();
  for (int64_t i = 0; i < kRows; ++i) {
    const Doubles expected =
        OracleLatentRow(Doubles(&input[i * kWidth], &input[i * kWidth] + kWidth), weight.doubles(),
                        1e-6, positions[i], frequencies, 1.0);
    const int64_t at = (page_ids[i] * kPageTokens + slots[i]) * kWidth;
    for (int64_t d = 0; d < kWidth; ++d) {
      // Two roundings to act, and about ten of f32 before them.
      const double tolerance = 2.1 * unit() * std::abs(expected[d]) +
                               10 * kUnitF32 * std::max(5.0, std::abs(expected[d]));
      EXPECT_NEAR(pages.at(at + d), expected[d], tolerance);
      pages.set(at + d, kNan);
    }
  }
  for (int64_t i = 0; i < pages.size(); ++i) EXPECT_TRUE(std::isnan(pages.at(i)));
}

TEST_P(MlaFloatTest, AbsorbedStepsMatchTheOracle) {
  auto backend = *CreateCpuBackend(2);
  for (const MlaShape& s : RaggedShapes()) {
    for (int64_t length : {1, 63, 64, 65, 300}) {
      SCOPED_TRACE(testing::Message() << "r " << s.r << " length " << length);
      Sequence sequence = Make(s, length);
      Tensor q_latent(Dtype::kF32, {length, s.heads, s.r});
      Tensor latent(Dtype::kF32, {length, s.heads, s.r});
      Tensor out(GetParam().act, {length, s.heads * s.dv});
      sequence.Absorb(*backend, 0, length, q_latent);
      sequence.Attend(*backend, 0, length, q_latent, latent);
      sequence.Project(*backend, 0, length, latent, out);
      const Doubles rows = sequence.rows.doubles();
      const Doubles kv_b = sequence.kv_b.doubles();
      for (int64_t i : SampleRows(length)) {
        for (int64_t h = 0; h < s.heads; ++h) {
          const int64_t at = (i * s.heads + h) * s.r;
          const int64_t q_at = (i * s.heads + h) * (s.dn + s.dr);
          for (int64_t c = 0; c < s.r; ++c) {
            double sum = 0;
            double squares = 0;
            for (int64_t d = 0; d < s.dn; ++d) {
              const double term = sequence.q.at(q_at + d) * kv_b[(h * (s.dn + s.dv) + d) * s.r + c];
              sum += term;
              squares += term * term;
            }
            const double tolerance = 6 * kUnitF32 * std::sqrt(s.dn * squares);
            ASSERT_NEAR(q_latent.at(at + c), sum, tolerance);
          }
          Doubles query(s.r + s.dr);
          for (int64_t c = 0; c < s.r; ++c) query[c] = q_latent.at(at + c);
          for (int64_t d = 0; d < s.dr; ++d) query[s.r + d] = sequence.q.at(q_at + s.dn + d);
          const OracleHead head = OracleAbsorbed(s, query, rows, i + 1);
          const double tolerance = AttentionTolerance(head, s, i + 1, false);
          Doubles latents(s.r);
          for (int64_t c = 0; c < s.r; ++c) {
            latents[c] = latent.at(at + c);
            ASSERT_NEAR(latents[c], head.out[c], tolerance) << "row " << i << " head " << h;
          }
          OracleOperand value = {Doubles(s.dv), Doubles(s.dv)};
          OracleLinear(kv_b, h * (s.dn + s.dv) + s.dn, s.dv, latents.data(), s.r, value, 0);
          for (int64_t v = 0; v < s.dv; ++v) {
            ASSERT_NEAR(out.at((i * s.heads + h) * s.dv + v), value.x[v],
                        6 * kUnitF32 * std::sqrt(s.r) * value.size[v] +
                            1.01 * unit() * std::abs(value.x[v]));
          }
        }
      }
    }
  }
}

TEST_P(MlaFloatTest, ExpandedMatchesTheOracle) {
  auto backend = *CreateCpuBackend(2);
  const bool bf16 = GetParam().act == Dtype::kBF16;
  for (const MlaShape& s : RaggedShapes()) {
    for (int64_t length : {1, 63, 64, 65, 300}) {
      SCOPED_TRACE(testing::Message() << "r " << s.r << " length " << length);
      Sequence sequence = Make(s, length);
      const Tensor out = sequence.Expanded(*backend);
      const Doubles rows = sequence.rows.doubles();
      const Doubles kv_b = sequence.kv_b.doubles();
      const Doubles q = sequence.q.doubles();
      for (int64_t i : SampleRows(length)) {
        for (int64_t h = 0; h < s.heads; ++h) {
          const OracleHead head =
              OracleExpanded(s, h, &q[(i * s.heads + h) * (s.dn + s.dr)], kv_b, rows, i + 1);
          const double tolerance = AttentionTolerance(head, s, i + 1, bf16);
          for (int64_t v = 0; v < s.dv; ++v) {
            ASSERT_NEAR(out.at((i * s.heads + h) * s.dv + v), head.out[v],
                        tolerance + 1.01 * unit() * std::abs(head.out[v]))
                << "row " << i << " head " << h;
          }
        }
      }
    }
  }
}

TEST(MlaFormsTest, AgreeInF32) {
  auto backend = *CreateCpuBackend(2);
  std::vector<MlaShape> shapes = RaggedShapes();
  shapes.push_back(Shape(2, 128, 64, 128, 512));
  for (const MlaShape& s : shapes) {
    Sequence sequence(s, Dtype::kF32, Dtype::kBF16, 300);
    EXPECT_LE(RelativeDistance(sequence.Absorbed(*backend), sequence.Expanded(*backend)), 2e-6)
        << "r " << s.r;
  }
}

TEST(MlaFormsTest, AgreeInF32AfterManyPages) {
  auto backend = *CreateCpuBackend(2);
  const MlaShape s = Shape(2, 32, 16, 32, 64);
  constexpr int64_t kLength = 8000;
  Sequence sequence(s, Dtype::kF32, Dtype::kF32, kLength);
  Tensor expanded(Dtype::kF32, {kLength, s.heads * s.dv});
  Tensor absorbed(Dtype::kF32, {kLength, s.heads * s.dv});
  sequence.Expanded(*backend, kLength - 100, kLength, expanded);
  sequence.Absorbed(*backend, kLength - 100, kLength, absorbed);
  EXPECT_LE(RelativeDistance(absorbed, expanded), 2e-6);
}

TEST_P(MlaTest, AbsorbedRowsInOneCallEqualSingleRows) {
  auto backend = *CreateCpuBackend(2);
  for (const MlaShape& s : RaggedShapes()) {
    Sequence sequence = Make(s, 150);
    const Tensor together = sequence.Absorbed(*backend);
    Tensor alone(GetParam().act, {150, s.heads * s.dv});
    for (int64_t i = 0; i < 150; ++i) sequence.Absorbed(*backend, i, i + 1, alone);
    EXPECT_TRUE(together == alone) << "r " << s.r;
  }
}

TEST_P(MlaTest, AbsorbedRowsKeepSequencesApart) {
  // Two sequences in one pool of pages, their rows interleaved in one call.
  auto backend = *CreateCpuBackend(2);
  const MlaShape s = Shape(6, 24, 8, 16, 40);
  const int64_t width = s.r + s.dr;
  Sequence sequences[2] = {Make(s, 130, 1), Make(s, 70, 2)};
  const int64_t page_counts[2] = {sequences[0].pages.size() / (kPageTokens * width),
                                  sequences[1].pages.size() / (kPageTokens * width)};
  Tensor pages(GetParam().act, {page_counts[0] + page_counts[1], kPageTokens, width});
  for (int64_t i = 0; i < pages.size(); ++i) {
    const int64_t first_size = sequences[0].pages.size();
    pages.set(i, static_cast<float>(i < first_size ? sequences[0].pages.at(i)
                                                   : sequences[1].pages.at(i - first_size)));
  }
  constexpr int64_t kMaxPages = 4;
  std::vector<int32_t> tables(2 * kMaxPages,
                              -1);  // nothing but a sequence's own pages is looked up
  for (int i = 0; i < 2; ++i) {
    for (int64_t page = 0; page < sequences[i].num_pages; ++page) {
      tables[i * kMaxPages + page] =
          sequences[i].page_table[page] + static_cast<int32_t>(i * page_counts[0]);
    }
  }
  const std::vector<int32_t> table_of_row = {0, 1, 0};
  const std::vector<int32_t> lengths = {130, 70, 64};
  Tensor q_latent(Dtype::kF32, {3, s.heads, s.r});
  Tensor q(GetParam().act, {3, s.heads, s.dn + s.dr});
  std::mt19937 random(5);
  q_latent.Fill(random());
  q.Fill(random());
  const auto attend = [&](int64_t begin, int64_t end, Tensor& out) {
    const int64_t count = end - begin;
    backend->MlaAbsorbed({q_latent.Rows(begin, end), q.Rows(begin, end), pages.device(),
                          DeviceVector(tables).reshaped({2, kMaxPages}),
                          DeviceVector(table_of_row).slice(begin, count),
                          DeviceVector(lengths).slice(begin, count), out.Rows(begin, end), 0.25f});
  };
  Tensor together(Dtype::kF32, {3, s.heads, s.r});
  Tensor alone(Dtype::kF32, {3, s.heads, s.r});
  attend(0, 3, together);
  for (int64_t i = 0; i < 3; ++i) attend(i, i + 1, alone);
  EXPECT_TRUE(together == alone);
  for (double x : together.doubles()) EXPECT_TRUE(std::isfinite(x));
}

TEST_P(MlaTest, ExpandedIsTheSameHoweverThePromptIsCut) {
  auto backend = *CreateCpuBackend(2);
  std::mt19937 random(7);
  for (const MlaShape& s : RaggedShapes()) {
    constexpr int64_t kLength = 420;
    Sequence sequence = Make(s, kLength);
    const Tensor whole = sequence.Expanded(*backend);
    for (int trial = 0; trial < 4; ++trial) {
      Tensor chunks(GetParam().act, {kLength, s.heads * s.dv});
      sequence.pages.FillWith(
          kNan);  // a chunk finds in the cache only what came before, and itself
      for (int64_t begin = 0; begin < kLength;) {
        const int64_t end = std::min<int64_t>(kLength, begin + 1 + random() % 150);
        sequence.Store(begin, end);
        sequence.Expanded(*backend, begin, end, chunks);
        begin = end;
      }
      EXPECT_TRUE(whole == chunks) << "r " << s.r;
    }
  }
}

TEST_P(MlaTest, UnusedMemoryDoesNotMatter) {
  auto backend = *CreateCpuBackend(2);
  for (const MlaShape& s : RaggedShapes()) {
    Sequence sequence = Make(s, 200);
    const Tensor expanded = sequence.Expanded(*backend);
    const Tensor absorbed = sequence.Absorbed(*backend);
    for (double x : expanded.doubles()) ASSERT_TRUE(std::isfinite(x));
    sequence.pages.FillWith(-3e38f);
    sequence.Store(0, 200);
    EXPECT_TRUE(sequence.Expanded(*backend) == expanded) << "r " << s.r;
    EXPECT_TRUE(sequence.Absorbed(*backend) == absorbed) << "r " << s.r;
  }
}

TEST_P(MlaTest, BitsDoNotDependOnThreadsOrInstructionSet) {
  for (const MlaShape& s : RaggedShapes()) {
    Sequence sequence = Make(s, 300);
    auto one = *CreateCpuBackend(1);
    const Tensor expanded = sequence.Expanded(*one);
    const Tensor absorbed = sequence.Absorbed(*one);
    for (int64_t target : AvailableTargets()) {
      SCOPED_TRACE(testing::Message() << "r " << s.r << " " << hwy::TargetName(target));
      ScopedTarget scoped(target);
      for (int num_threads : {1, 2, 3}) {
        auto backend = *CreateCpuBackend(num_threads);
        EXPECT_TRUE(sequence.Expanded(*backend) == expanded);
        EXPECT_TRUE(sequence.Absorbed(*backend) == absorbed);
      }
    }
  }
}

// A head's maps of integers are those that Linear has for its part of kv_b_proj.
TEST(MlaIntegerTest, EveryHeadIsALinearMapOfItsRows) {
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const MlaShape& s : RaggedShapes()) {
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " r " << s.r);
      constexpr int64_t kRows = 70;
      auto backend = *CreateCpuBackend(2);
      Sequence sequence(s, Dtype::kBF16, Dtype::kBF16, format, kRows);
      Tensor q_latent(Dtype::kF32, {kRows, s.heads, s.r});
      Tensor latent(Dtype::kF32, {kRows, s.heads, s.r});
      Tensor out(Dtype::kBF16, {kRows, s.heads * s.dv});
      std::mt19937 random(3);
      latent.Fill(random());
      sequence.Absorb(*backend, 0, kRows, q_latent);
      sequence.Project(*backend, 0, kRows, latent, out);
      for (int64_t h = 0; h < s.heads; ++h) {
        Tensor q(Dtype::kBF16, {kRows, s.dn});
        Tensor latent_of_head(Dtype::kF32, {kRows, s.r});
        Tensor key_turned(Dtype::kBF16, {s.r, s.dn});
        Tensor value(Dtype::kBF16, {s.dv, s.r});
        const auto copy = [](const Tensor& from, int64_t first, int64_t stride, Tensor& to) {
          for (int64_t i = 0; i < to.size(); ++i) {
            const int64_t width = to.view().width();
            to.set(i, static_cast<float>(from.at(first + i / width * stride + i % width)));
          }
        };
        const int64_t first = h * (s.dn + s.dv) * s.r;
        copy(sequence.q, h * (s.dn + s.dr), s.heads * (s.dn + s.dr), q);
        copy(latent, h * s.r, s.heads * s.r, latent_of_head);
        copy(sequence.kv_b, first + s.dn * s.r, s.r, value);
        for (int64_t i = 0; i < key_turned.size(); ++i) {
          const int64_t at = first + i % s.dn * s.r + i / s.dn;
          key_turned.set(i, static_cast<float>(sequence.kv_b.at(at)));
        }
        Tensor absorbed(Dtype::kF32, {kRows, s.r});
        Tensor projected(Dtype::kF32, {kRows, s.dv});
        Tensor rounded(Dtype::kBF16, {kRows, s.dv});
        backend->Linear(
            {q.device(), *PrepareLinear(*backend, key_turned, format), absorbed.device()});
        backend->Linear(
            {latent_of_head.device(), *PrepareLinear(*backend, value, format), projected.device()});
        for (int64_t i = 0; i < absorbed.size(); ++i) {
          ASSERT_EQ(q_latent.at((i / s.r * s.heads + h) * s.r + i % s.r), absorbed.at(i));
        }
        for (int64_t i = 0; i < projected.size(); ++i) {
          rounded.set(i, static_cast<float>(projected.at(i)));
          ASSERT_EQ(out.at((i / s.dv * s.heads + h) * s.dv + i % s.dv), rounded.at(i));
        }
      }
    }
  }
}

// Keys and values of the expanded form are what Linear makes of the latents; attention to them is
// as exact as with floats.
TEST(MlaIntegerTest, ExpandedAttendsToTheLinearMapsOfLatents) {
  for (const MlaShape& s : RaggedShapes()) {
    SCOPED_TRACE(testing::Message() << "r " << s.r);
    constexpr int64_t kLength = 130;
    auto backend = *CreateCpuBackend(2);
    Sequence sequence(s, Dtype::kF32, Dtype::kF32, WeightFormat::kInt8, kLength);
    const Tensor out = sequence.Expanded(*backend);
    Tensor latents(Dtype::kF32, {kLength, s.r});
    for (int64_t i = 0; i < latents.size(); ++i) {
      const int64_t at = i / s.r * (s.r + s.dr) + i % s.r;
      latents.set(i, static_cast<float>(sequence.rows.at(at)));
    }
    const int64_t width = s.heads * (s.dn + s.dv);
    Tensor kv(Dtype::kF32, {kLength, width});
    backend->Linear({latents.device(), *PrepareLinear(*backend, sequence.kv_b, WeightFormat::kInt8),
                     kv.device()});
    for (int64_t h = 0; h < s.heads; ++h) {
      Doubles keys, values;
      for (int64_t j = 0; j < kLength; ++j) {
        const int64_t at = j * width + h * (s.dn + s.dv);
        for (int64_t d = 0; d < s.dn; ++d) keys.push_back(kv.at(at + d));
        for (int64_t d = 0; d < s.dr; ++d) {
          keys.push_back(sequence.rows.at(j * (s.r + s.dr) + s.r + d));
        }
        for (int64_t v = 0; v < s.dv; ++v) values.push_back(kv.at(at + s.dn + v));
      }
      for (int64_t i : SampleRows(kLength)) {
        Doubles q(s.dn + s.dr);
        for (size_t d = 0; d < q.size(); ++d) {
          q[d] = sequence.q.at((i * s.heads + h) * (s.dn + s.dr) + static_cast<int64_t>(d));
        }
        const OracleHead head = OracleSoftmax(q.data(), {keys, keys}, {values, values}, i + 1,
                                              s.dn + s.dr, s.dv, s.scale);
        const double tolerance = AttentionTolerance(head, s, i + 1, false);
        for (int64_t v = 0; v < s.dv; ++v) {
          ASSERT_NEAR(out.at((i * s.heads + h) * s.dv + v), head.out[v],
                      tolerance + 1.01 * kUnitF32 * std::abs(head.out[v]));
        }
      }
    }
  }
}

// The two forms differ by what quantizing activations at different places does.
TEST(MlaIntegerTest, FormsStayNear) {
  auto backend = *CreateCpuBackend(2);
  Sequence sequence(Shape(2, 128, 64, 128, 512), Dtype::kF32, Dtype::kBF16, WeightFormat::kInt8,
                    300);
  EXPECT_LE(RelativeDistance(sequence.Absorbed(*backend), sequence.Expanded(*backend)), 0.03);
}

TEST_P(MlaTest, LargeScoresNeitherOverflowNorLoseTheLargest) {
  // Scores in the thousands: the weights are those of an argmax, and the maximum moves often.
  auto backend = *CreateCpuBackend(2);
  MlaShape s = Shape(4, 32, 16, 32, 64);
  s.scale = 200;
  Sequence sequence = Make(s, 300);
  const Doubles expanded = sequence.Expanded(*backend).doubles();
  const Doubles absorbed = sequence.Absorbed(*backend).doubles();
  for (size_t i = 0; i < expanded.size(); ++i) {
    ASSERT_LE(std::abs(expanded[i]), 10);
    ASSERT_LE(std::abs(absorbed[i]), 10);
  }
}

}  // namespace
}  // namespace tandem::kernels
