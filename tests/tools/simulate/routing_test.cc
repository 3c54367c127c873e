#include "tools/simulate/routing.h"

#include <algorithm>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "tests/tools/simulate/small_model.h"

namespace tandem::simulate {
namespace {

constexpr int kRows = 4000;

// How often each expert of `layer` is chosen.
std::vector<int> CountsOf(const Routing& routing, int layer, int num_experts) {
  WorkloadRandom random(5);
  std::vector<int> counts(num_experts);
  for (int row = 0; row < kRows; ++row) {
    std::vector<int32_t> experts;
    routing.Draw(layer, random, experts);
    EXPECT_EQ(std::set<int32_t>(experts.begin(), experts.end()).size(), 4u);
    for (const int32_t expert : experts) ++counts.at(expert);
  }
  return counts;
}

TEST(RoutingTest, WithoutSkewAllExpertsAreAlike) {
  WorkloadRandom random(1);
  const Routing routing(SmallModel(), 0, random);
  for (const int count : CountsOf(routing, 1, 16)) {
    EXPECT_NEAR(count, kRows / 4, 165);  // six standard deviations
  }
}

TEST(RoutingTest, SkewedExpertsAreChosenInTheOrderOfTheirLoad) {
  WorkloadRandom random(1);
  const Routing routing(SmallModel(), 1, random);
  std::vector<std::vector<double>> loads;
  for (const int layer : {1, 2}) {
    const std::vector<int> counts = CountsOf(routing, layer, 16);
    const std::vector<double> load(routing.load().begin() + layer * 16,
                                   routing.load().begin() + (layer + 1) * 16);
    const auto most_loaded = std::max_element(load.begin(), load.end()) - load.begin();
    const auto least_loaded = std::min_element(load.begin(), load.end()) - load.begin();
    EXPECT_EQ(std::max_element(counts.begin(), counts.end()) - counts.begin(), most_loaded);
    EXPECT_GT(counts[most_loaded], 4 * counts[least_loaded]);
    loads.push_back(load);
  }
  EXPECT_NE(loads[0], loads[1]) << "each layer has its own popular ones";
  for (int expert = 0; expert < 16; ++expert) EXPECT_EQ(routing.load()[expert], 0);  // dense
}

}  // namespace
}  // namespace tandem::simulate
