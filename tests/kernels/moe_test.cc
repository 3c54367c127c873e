#include "kernels/ops/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/oracle.h"
#include "tests/kernels/targets.h"
#include "tests/kernels/test_backend.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

using ::testing::ElementsAre;

constexpr Dtype kF32 = Dtype::kF32;
constexpr Dtype kBF16 = Dtype::kBF16;

// What Route says, rows one after another.
struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// The constants of RouteArgs.
struct Settings {
  int top_k;
  int num_groups = 0;
  int top_groups = 0;
  bool normalize = false;
  float scaling = 1.0f;
};

Choice RouteRows(const Settings& settings, const TestTensor& x, const TestTensor& weight,
                 int num_threads) {
  const int64_t rows = x.view().rows();
  Choice choice;
  choice.ids.resize(rows * settings.top_k);
  choice.weights.resize(rows * settings.top_k);
  auto backend = MakeTestBackend(num_threads);
  backend->Route({x.device(), *PrepareLinear(*backend, weight), settings.top_k, settings.num_groups,
                  settings.top_groups, settings.normalize, settings.scaling,
                  DeviceVector(choice.ids).reshaped({rows, settings.top_k}),
                  DeviceVector(choice.weights).reshaped({rows, settings.top_k})});
  return choice;
}

// Rows whose routing logits are exactly `logits`: x is a unit vector, the weights its column.
Choice RouteLogits(const Settings& settings, const std::vector<float>& logits) {
  TestTensor x(kF32, {1, 8}), weight(kF32, {static_cast<int64_t>(logits.size()), 8});
  for (int i = 0; i < 8; ++i) x.set(0, i, i == 0 ? 1.0f : 0.0f);
  for (size_t e = 0; e < logits.size(); ++e) {
    for (int i = 0; i < 8; ++i) weight.set(e, i, i == 0 ? logits[e] : 0.0f);
  }
  return RouteRows(settings, x, weight, 1);
}

TEST(RouteTest, AgreesWithTheOracle) {
  constexpr int64_t kRows = 37, kHidden = 136, kExperts = 64;
  for (Dtype act : {kF32, kBF16}) {
    const TestTensor x = std::move(TestTensor(act, {kRows, kHidden}).Fill(1));
    const TestTensor weight = std::move(TestTensor(kBF16, {kExperts, kHidden}).Fill(2, 0.1f));
    Settings settings = {6};
    settings.scaling = 2.5f;
    const auto [ids, weights] = RouteRows(settings, x, weight, 2);
    const oracle::Sums sums = oracle::Linear(x, weight);
    for (int64_t i = 0; i < kRows; ++i) {
      const std::vector<double> p = oracle::Softmax(
          {sums.value.begin() + i * kExperts, sums.value.begin() + (i + 1) * kExperts});
      const std::vector<int> order = oracle::Ranking(p);
      for (int j = 0; j < 6; ++j) {
        // The logits are off by BlockOrderError of a magnitude below 30; exp makes it relative.
        const double tolerance = p[order[j]] * (30 * oracle::BlockOrderError(kHidden) + 1e-5);
        EXPECT_NEAR(p[ids[i * 6 + j]], p[order[j]], tolerance);
        EXPECT_NEAR(weights[i * 6 + j], 2.5 * p[ids[i * 6 + j]], 2.5 * tolerance);
      }
    }
  }
}

TEST(RouteTest, OfEqualScoresTheLowerIndexIsFirst) {
  const Choice choice = RouteLogits({4}, {1, 3, 2, 3, 2, 3, 0, 0});
  EXPECT_THAT(choice.ids, ElementsAre(1, 3, 5, 2));
  EXPECT_EQ(choice.weights[0], choice.weights[2]);
}

TEST(RouteTest, GroupsLimitTheChoice) {
  Settings settings = {3};
  settings.num_groups = 4;
  settings.top_groups = 2;
  // Groups {0,1}, {2,3}, {4,5}, {6,7}: the second and the fourth have the best members.
  const Choice choice = RouteLogits(settings, {4, 4, 6, 0, 5, 4, 7, 1});
  EXPECT_THAT(choice.ids, ElementsAre(6, 2, 7));
  // Of groups with equal best scores the lower index stays.
  EXPECT_THAT(RouteLogits(settings, {5, 4, 5, 0, 5, 4, 7, 1}).ids, ElementsAre(6, 0, 1));
}

TEST(RouteTest, ExpertsOutsideTheGroupsScoreZero) {
  Settings settings = {3};
  settings.num_groups = 4;
  settings.top_groups = 1;
  const Choice choice = RouteLogits(settings, {1, 1, 1, 1, 9, 1, 1, 1});
  EXPECT_THAT(choice.ids, ElementsAre(4, 5, 0));
  EXPECT_EQ(choice.weights[2], 0.0f);
}

TEST(RouteTest, NormalizedWeightsSumToOneAndAreNotScaled) {
  Settings settings = {3};
  settings.normalize = true;
  settings.scaling = 16.0f;
  const Choice choice = RouteLogits(settings, {1, 3, 2, 0, 2, 1, 0, 0});
  EXPECT_NEAR(choice.weights[0] + choice.weights[1] + choice.weights[2], 1.0f, 1e-6f);
  EXPECT_NEAR(choice.weights[0] / choice.weights[1], std::exp(1.0f), 1e-5f);
}

TEST(RouteTest, ARowDoesNotDependOnTheTarget) {
  const TestTensor x = std::move(TestTensor(kBF16, {1, 136}).Fill(3));
  const TestTensor weight = std::move(TestTensor(kBF16, {64, 136}).Fill(4, 0.1f));
  std::vector<float> first;
  for (int64_t target : TargetsOfBackend()) {
    ScopedTarget scoped(target);
    for (int num_threads : {1, 3}) {
      const Choice choice = RouteRows({6}, x, weight, num_threads);
      if (first.empty()) first = choice.weights;
      EXPECT_EQ(choice.weights, first);
    }
  }
}

struct Expert {
  TestTensor gate, up, down;
  ExpertTensors lent() const { return {gate.lent(), up.lent(), down.lent()}; }
};

std::vector<Expert> MakeExperts(int count, Dtype dtype, int64_t hidden, int64_t intermediate) {
  std::vector<Expert> experts;
  for (int e = 0; e < count; ++e) {
    Expert expert{TestTensor(dtype, {intermediate, hidden}, 0, 1),
                  TestTensor(dtype, {intermediate, hidden}, 0, 3),
                  TestTensor(dtype, {hidden, intermediate})};
    expert.gate.Fill(100 + e, 0.2f);
    expert.up.Fill(200 + e, 0.2f);
    expert.down.Fill(300 + e, 0.2f);
    experts.push_back(std::move(expert));
  }
  return experts;
}

// A layer of `num_experts`, the first of them loaded with `experts`, which must outlive it.
std::unique_ptr<ExpertLayer> LoadLayer(Backend& backend, const std::vector<Expert>& experts,
                                       int num_experts, WeightFormat format) {
  const TensorView& down = experts[0].down.view();
  auto layer = *backend.PrepareExpertLayer({num_experts, down.dim(0), down.dim(1)}, format);
  for (size_t e = 0; e < experts.size(); ++e) {
    EXPECT_TRUE(layer->Load(static_cast<int>(e), experts[e].lent()).ok());
  }
  return layer;
}

TEST(ExpertMlpTest, EqualsLinearSiluMulLinearOnEachRowAloneBitForBit) {
  constexpr int64_t kHidden = 40, kIntermediate = 136, kRows = 12;
  constexpr int kExperts = 5, kRoutes = 50;
  for (Dtype act : {kF32, kBF16}) {
    for (WeightFormat format :
         {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8, WeightFormat::kInt4}) {
      if (IsInteger(format) && !HasIntegerWeights()) continue;
      const Dtype dtype = format == WeightFormat::kF32 ? kF32 : kBF16;
      const std::vector<Expert> experts = MakeExperts(kExperts, dtype, kHidden, kIntermediate);
      const TestTensor x = std::move(TestTensor(act, {kRows, kHidden}, 8).Fill(5));
      std::mt19937 random(6);
      std::vector<int32_t> route_experts, route_rows;
      for (int t = 0; t < kRoutes; ++t) {
        route_experts.push_back(static_cast<int32_t>(random() % kExperts));
        route_rows.push_back(static_cast<int32_t>(random() % kRows));
      }
      auto alone = MakeTestBackend(1);
      TestTensor want(act, {kRoutes, kHidden});
      for (int t = 0; t < kRoutes; ++t) {
        TestTensor gate(act, {1, kIntermediate}), up(act, {1, kIntermediate});
        const DeviceTensor row = x.device().slice_rows(route_rows[t], 1);
        const Expert& e = experts[route_experts[t]];
        alone->Linear({row, *PrepareLinear(*alone, e.gate, format), gate.device()});
        alone->Linear({row, *PrepareLinear(*alone, e.up, format), up.device()});
        alone->SiluMul({gate.device(), up.device(), gate.device()});
        alone->Linear({gate.device(), *PrepareLinear(*alone, e.down, format),
                       want.device().slice_rows(t, 1)});
      }
      for (int64_t target : TargetsOfBackend()) {
        ScopedTarget scoped(target);
        for (int num_threads : {1, 2, 3}) {
          auto backend = MakeTestBackend(num_threads);
          const auto layer =
              LoadLayer(*backend, experts, kExperts + 1, format);  // one is never loaded
          TestTensor out(act, {kRoutes, kHidden}, 4);
          backend->ExpertMlp({x.device(), *layer, DeviceVector(route_experts),
                              DeviceVector(route_rows), out.device()});
          EXPECT_EQ(out.Bytes(), want.Bytes()) << hwy::TargetName(target);
        }
      }
    }
  }
}

TEST(ExpertMlpTest, MoreRoutesThanFitAtOnceAndNoneAtAll) {
  constexpr int64_t kRoutes = 4500;
  const std::vector<Expert> experts = MakeExperts(2, kF32, 8, 8);
  const TestTensor x = std::move(TestTensor(kF32, {3, 8}).Fill(7));
  std::vector<int32_t> route_experts, route_rows;
  for (int t = 0; t < kRoutes; ++t) {
    route_experts.push_back(t % 7 == 0);
    route_rows.push_back(t % 3);
  }
  auto backend = MakeTestBackend(2);
  const auto layer = LoadLayer(*backend, experts, 2, experts[0].down.format());
  TestTensor out(kF32, {kRoutes, 8});
  backend->ExpertMlp(
      {x.device(), *layer, DeviceVector(route_experts), DeviceVector(route_rows), out.device()});
  for (int64_t t = 21; t < kRoutes; ++t) ASSERT_EQ(out.RowBytes(t), out.RowBytes(t % 21));
  const DeviceTensor no_routes = DeviceVector(route_rows).slice(0, 0);
  backend->ExpertMlp({x.device(), *layer, no_routes, no_routes, out.device().slice_rows(0, 0)});
}

TEST(CombineTest, AddsInRankingOrderAndRoundsOnce) {
  constexpr int64_t kHidden = 41;
  const std::vector<int32_t> offsets = {0, 3, 3, 9};
  for (Dtype act : {kF32, kBF16}) {
    const TestTensor rows = std::move(TestTensor(act, {9, kHidden}).Fill(8));
    std::vector<float> weights;
    for (int t = 0; t < 9; ++t) weights.push_back(0.1f * static_cast<float>(t + 1));
    TestTensor want(act, {3, kHidden});
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t k = 0; k < kHidden; ++k) {
        float sum = 0.0f;
        for (int32_t t = offsets[i]; t < offsets[i + 1]; ++t) {
          sum = std::fma(weights[t], static_cast<float>(rows.at(t, k)), sum);
        }
        want.set(i, k, sum);
      }
    }
    for (int64_t target : TargetsOfBackend()) {
      ScopedTarget scoped(target);
      TestTensor out(act, {3, kHidden}, 2);
      MakeTestBackend(2)->Combine(
          {rows.device(), DeviceVector(offsets), DeviceVector(weights), out.device()});
      EXPECT_EQ(out.Bytes(), want.Bytes()) << hwy::TargetName(target);
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
