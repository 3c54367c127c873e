#include "kernels/cuda/route.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/kernels/cuda/cuda_test.h"
#include "tests/kernels/oracle.h"

namespace tandem::kernels {
namespace {

using ::testing::ElementsAre;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

Choice Choose(const cuda::RouteChoice& choice, const TestTensor& logits, uint64_t seed) {
  const int64_t rows = logits.view().rows();
  const TestTensor ids(Dtype::kI32, {rows, choice.top_k});
  const TestTensor weights(Dtype::kF32, {rows, choice.top_k});
  cuda::ChooseExperts(TestStream(seed), logits.device(), choice, ids.device(), weights.device());
  Choice chosen;
  for (int64_t i = 0; i < rows * choice.top_k; ++i) {
    chosen.ids.push_back(static_cast<const int32_t*>(ids.view().data)[i]);
    chosen.weights.push_back(weights.at(i / choice.top_k, i % choice.top_k));
  }
  return chosen;
}

Choice Choose(const cuda::RouteChoice& choice, const std::vector<float>& logits) {
  TestTensor tensor(Dtype::kF32, {1, static_cast<int64_t>(logits.size())});
  for (size_t i = 0; i < logits.size(); ++i) tensor.set(0, static_cast<int64_t>(i), logits[i]);
  return Choose(choice, tensor, 1);
}

TEST(CudaRouteTest, AgreesWithTheOracle) {
  for (const int64_t experts : {6, 64, 160}) {
    TestTensor logits(Dtype::kF32, {7, experts}, 3);
    logits.Fill(1, 2.0f);
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      const Choice chosen = Choose({6, 0, 0, false, 16.0f}, logits, seed);
      for (int64_t row = 0; row < 7; ++row) {
        std::vector<double> values;
        for (int64_t e = 0; e < experts; ++e) values.push_back(logits.at(row, e));
        const std::vector<double> p = oracle::Softmax(values);
        const std::vector<int> ranking = oracle::Ranking(p);
        for (int i = 0; i < 6; ++i) {
          ASSERT_EQ(chosen.ids[row * 6 + i], ranking[i]);
          const double want = 16.0 * p[ranking[i]];
          ASSERT_NEAR(chosen.weights[row * 6 + i], want, 2e-6 * want);
        }
      }
    }
  }
}

TEST(CudaRouteTest, GivesTheCpusBits) {
  const auto cpu = MakeCpuBackend();
  for (const Dtype act : {Dtype::kF32, Dtype::kBF16}) {
    for (const int groups : {0, 4}) {
      TestTensor x(act, {19, 40}, 3), weight(act, {64, 40});
      x.Fill(1);
      weight.Fill(2, 0.3f);
      const auto run = [&](Backend& backend, const TestTensor& ids, const TestTensor& weights) {
        backend.Route({x.device(), *PrepareLinear(backend, weight), 6, groups, groups / 2,
                       groups > 0, 2.5f, ids.device(), weights.device()});
      };
      const TestTensor want_ids(Dtype::kI32, {19, 6}), want(Dtype::kF32, {19, 6});
      run(*cpu, want_ids, want);
      for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        const TestTensor ids(Dtype::kI32, {19, 6}), weights(Dtype::kF32, {19, 6});
        run(*MakeCudaBackend(seed), ids, weights);
        ExpectSameBits(ids, want_ids, seed);
        ExpectSameBits(weights, want, seed);
      }
    }
  }
}

TEST(CudaRouteTest, OfEqualScoresTheLowerIndexIsFirst) {
  EXPECT_THAT(Choose({4}, {1, 3, 2, 3, 2, 3, 0, 0}).ids, ElementsAre(1, 3, 5, 2));
  const Choice all = Choose({40}, std::vector<float>(40, 0.5f));
  for (int i = 0; i < 40; ++i) EXPECT_EQ(all.ids[i], i);
}

TEST(CudaRouteTest, GroupsLimitTheChoice) {
  const cuda::RouteChoice choice = {3, 4, 2};
  EXPECT_THAT(Choose(choice, {4, 4, 6, 0, 5, 4, 7, 1}).ids, ElementsAre(6, 2, 7));
  EXPECT_THAT(Choose(choice, {5, 4, 5, 0, 5, 4, 7, 1}).ids, ElementsAre(6, 0, 1));
}

TEST(CudaRouteTest, ExpertsOutsideTheGroupsScoreZero) {
  const Choice chosen = Choose({3, 4, 1}, {1, 1, 1, 1, 9, 1, 1, 1});
  EXPECT_THAT(chosen.ids, ElementsAre(4, 5, 0));
  EXPECT_EQ(chosen.weights[2], 0);
}

TEST(CudaRouteTest, OfARowWithANaNTheIdsStayIds) {
  const float nan = std::nanf("");
  for (const cuda::RouteChoice& choice : {cuda::RouteChoice{3}, cuda::RouteChoice{3, 4, 2}}) {
    const Choice chosen = Choose(choice, {1, 2, nan, 3, 4, 5, 6, 7});
    EXPECT_THAT(chosen.ids, ElementsAre(0, 1, 2));
    EXPECT_TRUE(std::isnan(chosen.weights[0]));
  }
}

TEST(CudaRouteTest, NormalizedWeightsSumToOneAndAreNotScaled) {
  const Choice chosen = Choose({3, 0, 0, true, 16.0f}, {1, 3, 2, 0, 2, 1, 0, 0});
  EXPECT_NEAR(chosen.weights[0] + chosen.weights[1] + chosen.weights[2], 1, 1e-6);
  EXPECT_NEAR(chosen.weights[0] / chosen.weights[1], std::exp(1.0), 1e-5);
}

}  // namespace
}  // namespace tandem::kernels
