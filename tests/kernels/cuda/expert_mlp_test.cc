#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/cuda/cuda_test.h"

namespace tandem::kernels {
namespace {

struct Matrices {
  TestTensor gate, up, down;
};

class CudaExpertMlpTest : public CudaOpsTest {
 protected:
  static constexpr int kExperts = 9;

  void MakeExperts(int64_t hidden, int64_t intermediate) {
    experts_.clear();
    for (int e = 0; e < kExperts; ++e) {
      Matrices matrices = {TestTensor(weight(), {intermediate, hidden}),
                           TestTensor(weight(), {intermediate, hidden}),
                           TestTensor(weight(), {hidden, intermediate})};
      matrices.gate.Fill(3 * e, 0.2f);
      matrices.up.Fill(3 * e + 1, 0.2f);
      matrices.down.Fill(3 * e + 2, 0.2f);
      experts_.push_back(std::move(matrices));
    }
  }

  // All but the last are loaded.
  std::unique_ptr<ExpertLayer> Layer(Backend& backend) const {
    const TensorView& down = experts_[0].down.view();
    auto layer =
        *backend.PrepareExpertLayer({kExperts, down.dim(0), down.dim(1)}, WeightFormat::kF32);
    for (int e = 0; e + 1 < kExperts; ++e) {
      EXPECT_TRUE(
          layer->Load(e, {experts_[e].gate.lent(), experts_[e].up.lent(), experts_[e].down.lent()})
              .ok());
    }
    return layer;
  }

  TestTensor Run(Backend& backend, const TestTensor& x, const TestTensor& route_experts,
                 const TestTensor& route_rows) const {
    TestTensor out(act(), {route_rows.view().elements(), x.view().width()}, 2);
    backend.ExpertMlp(
        {x.device(), *Layer(backend), route_experts.device(), route_rows.device(), out.device()});
    return out;
  }

  std::vector<Matrices> experts_;
};

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaExpertMlpTest, CudaOpsTest::AllDtypes(), CudaOpsTest::NameOf);

TEST_P(CudaExpertMlpTest, GivesTheCpusBits) {
  constexpr int64_t kRows = 7;
  const auto cpu = MakeCpuBackend();
  for (const auto& [hidden, intermediate] : {std::pair{8, 24}, {40, 136}, {136, 40}}) {
    MakeExperts(hidden, intermediate);
    TestTensor x(act(), {kRows, hidden}, 3);
    x.Fill(1);
    // All routes of one expert, more than a tile has; some of all; one.
    for (const int routes : {1, 16, 17, 60}) {
      for (const int experts : {1, kExperts - 1}) {
        std::mt19937 random(routes);
        std::vector<int32_t> route_experts, route_rows;
        for (int t = 0; t < routes; ++t) {
          route_experts.push_back(static_cast<int32_t>(random() % experts));
          route_rows.push_back(static_cast<int32_t>(random() % kRows));
        }
        const TestTensor of_experts = Ints(route_experts), of_rows = Ints(route_rows);
        const TestTensor want = Run(*cpu, x, of_experts, of_rows);
        for (uint64_t seed = 0; seed < kSeeds; seed += routes == 60 ? 1 : kSeeds) {
          ExpectSameBits(Run(*MakeCudaBackend(seed), x, of_experts, of_rows), want, seed);
        }
      }
    }
  }
}

// A file of bf16 loaded as f32 stays bf16, and a file may have both.
TEST_P(CudaExpertMlpTest, MatricesOfALayerMayLieInDifferentDtypes) {
  MakeExperts(40, 24);
  for (int e = 0; e < kExperts; e += 2) {
    experts_[e].up = TestTensor(Dtype::kBF16, {24, 40});
    experts_[e].up.Fill(77, 0.2f);
  }
  experts_[3].down = TestTensor(Dtype::kF32, {40, 24});
  experts_[3].down.Fill(78, 0.2f);
  TestTensor x(act(), {4, 40});
  x.Fill(1);
  const TestTensor experts = Ints({2, 3, 2, 1}), rows = Ints({0, 1, 2, 3});
  ExpectSameBits(Run(*MakeCudaBackend(1), x, experts, rows),
                 Run(*MakeCpuBackend(), x, experts, rows), 1);
}

TEST_P(CudaExpertMlpTest, AnExpertThatIsLoadedAgainIsTheNewOne) {
  MakeExperts(40, 24);
  TestTensor x(act(), {1, 40});
  x.Fill(1);
  const TestTensor expert = Ints({2}), row = Ints({0});
  const auto cpu = MakeCpuBackend(), cuda = MakeCudaBackend(1);
  const auto layer = Layer(*cuda);
  layer->Unload(2);
  EXPECT_TRUE(
      layer->Load(2, {experts_[5].gate.lent(), experts_[5].up.lent(), experts_[5].down.lent()})
          .ok());
  TestTensor out(act(), {1, 40});
  cuda->ExpertMlp({x.device(), *layer, expert.device(), row.device(), out.device()});
  ExpectSameBits(out, Run(*cpu, x, Ints({5}), row), 1);
}

}  // namespace
}  // namespace tandem::kernels
