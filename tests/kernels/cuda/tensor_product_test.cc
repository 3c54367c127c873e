// Products by tensor cores: on the emulation with the bits of its own order, which is stated, and
// everywhere near float64, with no bit of a row that depends on the others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/linear.h"
#include "tests/kernels/cuda/cuda_test.h"
#include "tests/kernels/oracle.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;
constexpr Dtype kBF16 = Dtype::kBF16;

TestTensor Random(std::initializer_list<int64_t> dims, uint64_t seed, int64_t row_gap = 0) {
  TestTensor tensor(kBF16, dims, row_gap);
  tensor.Fill(seed);
  return tensor;
}

TestTensor TensorLinear(const TestTensor& x, const TestTensor& w, Dtype dtype, uint64_t seed) {
  TestTensor out(dtype, {x.view().rows(), w.view().rows()}, 2);
  cuda::Linear(TestStream(seed), x.device(), w.device(), out.device(), cuda::SumOrder::kTensor);
  return out;
}

#if defined(TANDEM_CUDA_EMULATION)

// The emulation's order: steps of 16 k, in each of which the products are added in double.
float InOrder(const TestTensor& x, int64_t row, const TestTensor& w, int64_t output) {
  const int64_t width = x.view().width();
  float sum = 0.0f;
  for (int64_t begin = 0; begin < width; begin += 16) {
    double step = sum;
    for (int64_t k = begin; k < std::min(begin + 16, width); ++k)
      step += x.at(row, k) * w.at(output, k);
    sum = static_cast<float>(step);
  }
  return sum;
}

// Rows of one block and of several of 16, 64 and 128; outputs and inputs that end within a tile, a
// step and a stage; rows that lie where 16 bytes are copied at once, and that do not.
TEST(CudaTensorProductTest, EveryValueIsItsSumInTheEmulationsOrder) {
  for (const int64_t rows : {1, 8, 15, 16, 17, 64, 70}) {
    for (const int64_t n : {1, 16, 33, 130}) {
      for (const int64_t k : {8, 24, 64, 136, 600}) {
        if (rows * n * k > 1000000) continue;
        const TestTensor x = Random({rows, k}, 1, n % 2 == 0 ? 8 : 3), w = Random({n, k}, 2);
        TestTensor want(kF32, {rows, n}), rounded(kBF16, {rows, n});
        for (int64_t i = 0; i < rows * n; ++i) {
          want.set(i / n, i % n, InOrder(x, i / n, w, i % n));
          rounded.set(i / n, i % n, InOrder(x, i / n, w, i % n));
        }
        for (uint64_t seed = 0; seed < kSeeds; seed += k == 136 && n == 33 ? 1 : kSeeds) {
          ExpectSameBits(TensorLinear(x, w, kF32, seed), want, seed);
          ExpectSameBits(TensorLinear(x, w, kBF16, seed), rounded, seed);
        }
      }
    }
  }
}

#endif

TEST(CudaTensorProductTest, AgreesWithTheOracle) {
  for (const int64_t k : {8, 136, 2048}) {
    const TestTensor x = Random({5, k}, 3), w = Random({18, k}, 4);
    const TestTensor out = TensorLinear(x, w, kF32, 1);
    const oracle::Sums want = oracle::Linear(x, w);
    for (int64_t i = 0; i < 5 * 18; ++i) {
      ASSERT_NEAR(out.at(i / 18, i % 18), want.value[i],
                  oracle::TensorOrderError(k) * want.magnitude[i]);
    }
  }
}

// 200 rows by so many outputs are dealt out to blocks of 128 rows, fewer rows to blocks of 64
// or 16.
TEST(CudaTensorProductTest, ARowDoesNotDependOnHowManyThereAre) {
  constexpr int64_t kRows = 200, kOutputs = 54 * 128 - 3, kInputs = 40;
  const TestTensor x = Random({kRows, kInputs}, 5), w = Random({kOutputs, kInputs}, 6);
  const TestTensor all = TensorLinear(x, w, kBF16, 0);
  for (const int64_t rows : {1, 7, 16, 17, 64, 65}) {
    TestTensor out(kBF16, {rows, kOutputs});
    cuda::Linear(TestStream(rows), x.device().slice_rows(kRows - rows, rows), w.device(),
                 out.device(), cuda::SumOrder::kTensor);
    for (int64_t i = 0; i < rows; ++i) {
      ASSERT_EQ(out.RowBytes(i), all.RowBytes(kRows - rows + i)) << i << " of " << rows;
    }
  }
}

struct Matrices {
  TestTensor gate, up, down;
};

// What each route gives by Linear, SiluMul, Linear on its row alone.
TEST(CudaTensorProductTest, ExpertsGiveWhatTheirRowsAloneGive) {
  constexpr int kExperts = 3;
  constexpr int64_t kRows = 30, kHidden = 72, kIntermediate = 40;
  const auto cuda = MakeCudaBackend(0, Numerics::kAuto);
  const auto layer =
      *cuda->PrepareExpertLayer({kExperts, kHidden, kIntermediate}, WeightFormat::kBF16);
  std::vector<Matrices> experts;
  for (int e = 0; e < kExperts; ++e) {
    experts.push_back({Random({kIntermediate, kHidden}, 3 * e),
                       Random({kIntermediate, kHidden}, 3 * e + 1),
                       Random({kHidden, kIntermediate}, 3 * e + 2)});
    const Matrices& m = experts.back();
    ASSERT_TRUE(layer->Load(e, {m.gate.lent(), m.up.lent(), m.down.lent()}).ok());
  }
  const TestTensor x = Random({kRows, kHidden}, 77, 3);
  // Of 1, 17 and, in the mean, more than 16 and 64 routes of an expert.
  for (const int routes : {1, 17, 60, 210}) {
    std::mt19937 random(routes);
    std::vector<int32_t> route_experts, route_rows;
    for (int t = 0; t < routes; ++t) {
      route_experts.push_back(static_cast<int32_t>(random() % kExperts));
      route_rows.push_back(static_cast<int32_t>(random() % kRows));
    }
    TestTensor out(kBF16, {routes, kHidden}, 2);
    cuda->ExpertMlp(
        {x.device(), *layer, DeviceVector(route_experts), DeviceVector(route_rows), out.device()});
    for (int t = 0; t < routes; t += 1 + routes / 20) {
      const Matrices& m = experts[route_experts[t]];
      const DeviceTensor row = x.device().slice_rows(route_rows[t], 1);
      TestTensor gate(kBF16, {1, kIntermediate}), up(kBF16, {1, kIntermediate}),
          want(kBF16, {1, kHidden});
      cuda->Linear({row, *PrepareLinear(*cuda, m.gate), gate.device()});
      cuda->Linear({row, *PrepareLinear(*cuda, m.up), up.device()});
      cuda->SiluMul({gate.device(), up.device(), gate.device()});
      cuda->Linear({gate.device(), *PrepareLinear(*cuda, m.down), want.device()});
      ASSERT_EQ(out.RowBytes(t), want.RowBytes(0)) << t << " of " << routes;
    }
  }
}

// A layer of f32 may have matrices of bf16, as a checkpoint has them: they are not for tensor
// cores, whose class is that of bf16 alone.
TEST(CudaTensorProductTest, AnF32LayersMatricesOfBf16StayInBlockOrder) {
  constexpr int64_t kHidden = 520, kIntermediate = 136, kRows = 256;  // so that some bits differ
  const Matrices matrices = {Random({kIntermediate, kHidden}, 1),
                             Random({kIntermediate, kHidden}, 2),
                             Random({kHidden, kIntermediate}, 3)};
  const TestTensor x = Random({kRows, kHidden}, 4);
  const std::vector<int32_t> route_experts(kRows, 0);
  std::vector<int32_t> route_rows(kRows);
  std::iota(route_rows.begin(), route_rows.end(), 0);
  const auto run = [&](Numerics numerics, WeightFormat format) {
    const auto cuda = MakeCudaBackend(0, numerics);
    const auto layer = *cuda->PrepareExpertLayer({1, kHidden, kIntermediate}, format);
    EXPECT_TRUE(
        layer->Load(0, {matrices.gate.lent(), matrices.up.lent(), matrices.down.lent()}).ok());
    TestTensor out(kBF16, {kRows, kHidden});
    cuda->ExpertMlp(
        {x.device(), *layer, DeviceVector(route_experts), DeviceVector(route_rows), out.device()});
    return out.Bytes();
  };
  const auto portable = run(Numerics::kPortable, WeightFormat::kBF16);
  EXPECT_TRUE(run(Numerics::kAuto, WeightFormat::kF32) == portable);
  EXPECT_FALSE(run(Numerics::kAuto, WeightFormat::kBF16) == portable) << "this shows nothing";
}

}  // namespace
}  // namespace tandem::kernels
