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
#include "tests/kernels/mla_sequence.h"
#include "tests/kernels/targets.h"
#include "tests/kernels/test_backend.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

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
auto IntegersOfBackend() {
  std::vector<Numbers> numbers;
  if (HasIntegerWeights()) numbers.assign(std::begin(kIntegers), std::end(kIntegers));
  return testing::ValuesIn(numbers);
}
INSTANTIATE_TEST_SUITE_P(Floats, MlaFloatTest, testing::ValuesIn(kFloats), NameOf);
INSTANTIATE_TEST_SUITE_P(Floats, MlaTest, testing::ValuesIn(kFloats), NameOf);
INSTANTIATE_TEST_SUITE_P(Integers, MlaTest, IntegersOfBackend(), NameOf);

TEST(RopeTableTest, RoundsOnceFromTheF32Angle) {
  const std::vector<int32_t> positions = {0, 1, 63, 4095, 16383, 163839};
  const std::vector<float> frequencies = {1.0f, 0.7498942f, 3.9e-2f, 3.3338e-6f};
  Tensor table(Dtype::kF32, {6, 8});
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
  std::vector<MlaShape> shapes = RaggedShapes();
  shapes.push_back(Shape(2, 128, 64, 128, 512));
  for (const MlaShape& s : shapes) {
    Sequence sequence(s, Dtype::kF32, Dtype::kBF16, 300);
    EXPECT_LE(RelativeDistance(sequence.Absorbed(*backend), sequence.Expanded(*backend)), 2e-6)
        << "r " << s.r;
  }
}

TEST(MlaFormsTest, AgreeInF32AfterManyPages) {
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
  auto backend = MakeTestBackend(2);
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
    auto one = MakeTestBackend(1);
    const Tensor expanded = sequence.Expanded(*one);
    const Tensor absorbed = sequence.Absorbed(*one);
    for (int64_t target : TargetsOfBackend()) {
      SCOPED_TRACE(testing::Message() << "r " << s.r << " " << hwy::TargetName(target));
      ScopedTarget scoped(target);
      for (int num_threads : {1, 2, 3}) {
        auto backend = MakeTestBackend(num_threads);
        EXPECT_TRUE(sequence.Expanded(*backend) == expanded);
        EXPECT_TRUE(sequence.Absorbed(*backend) == absorbed);
      }
    }
  }
}

TEST_P(MlaTest, LargeScoresNeitherOverflowNorLoseTheLargest) {
  // Scores in the thousands: the weights are those of an argmax, and the maximum moves often.
  auto backend = MakeTestBackend(2);
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
