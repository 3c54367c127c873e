// Attention with weights of integers, which not every backend has.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/mla_oracle.h"
#include "tests/kernels/mla_sequence.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

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

}  // namespace
}  // namespace tandem::kernels
