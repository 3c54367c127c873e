// The dispatcher with a simulation's clock and links: what it does when, to the microsecond.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/transport/expert_dispatcher.h"
#include "tests/common/transport/routed_rows.h"
#include "tests/common/transport/simulated_experts.h"

namespace tandem {
namespace {

using std::chrono::milliseconds;

TEST(ExpertDispatcherSimulationTest, HoldersOfTheSameExpertsShareThem) {
  for (const int num_rows : {1, 4, 64}) {
    const Routed routed(num_rows);
    DispatcherSimulation simulation(2);
    simulation.dispatcher().SetPlacement(MakePlacement(2, 2));
    simulation.RunLayer(routed);
    const std::set<int32_t> used(routed.ids.begin(), routed.ids.end());
    const size_t of_one = simulation.Asked(1).size();
    const size_t of_other = simulation.Asked(2).size();
    EXPECT_EQ(of_one + of_other, used.size());
    EXPECT_LE(std::max(of_one, of_other), used.size() / 2 + 1) << num_rows << " rows";
  }
}

TEST(ExpertDispatcherSimulationTest, WorkOfOtherLayersCountsUntilItIsAnswered) {
  const Routed routed(1);
  DispatcherSimulation simulation(2);
  // Until now all is at worker 1, for which the first layer waits.
  simulation.dispatcher().SetPlacement(MakePlacement(1));
  const auto first = simulation.Dispatch(routed);
  Placement both = MakePlacement(2, 2, 1, 2);
  simulation.dispatcher().SetPlacement(both);
  const auto second = simulation.Dispatch(routed);
  EXPECT_EQ(simulation.link(1).received(), 1);
  EXPECT_EQ(simulation.Asked(2).size(), kTopK);
  EXPECT_TRUE(first->Run().ok());
  EXPECT_TRUE(second->Run().ok());
  simulation.RunLayer(routed);
  EXPECT_EQ(simulation.Asked(1).size(), kTopK / 2);
  EXPECT_EQ(simulation.Asked(2).size(), kTopK / 2);
}

TEST(ExpertDispatcherSimulationTest, WorkOfALayerThatIsGivenUpCountsNoMore) {
  const Routed routed(1);
  DispatcherSimulation simulation(2);
  simulation.dispatcher().SetPlacement(MakePlacement(1));
  simulation.Dispatch(routed).reset();
  simulation.dispatcher().SetPlacement(MakePlacement(2, 2, 1, 2));
  simulation.RunLayer(routed);
  EXPECT_EQ(simulation.Asked(1).size(), kTopK / 2);
}

TEST(ExpertDispatcherSimulationTest, SendersOfOneRowTakeDifferentHolders) {
  Routed routed(1);
  Placement placement = MakePlacement(2, 2);
  std::set<std::set<int32_t>> of_first;
  for (uint64_t incarnation = 0; incarnation < 2; ++incarnation) {
    DispatcherSimulation simulation(2, incarnation);
    simulation.dispatcher().SetPlacement(placement);
    simulation.RunLayer(routed);
    of_first.insert(simulation.Asked(1));
  }
  EXPECT_EQ(of_first.size(), 2u);
}

TEST(ExpertDispatcherSimulationTest, TheSameHappensAgain) {
  const auto run = [](uint64_t seed) {
    std::mt19937_64 random(seed);
    DispatcherSimulation simulation(4);
    for (WorkerId w = 1; w <= 4; ++w) {
      simulation.link(w).set_fates([&random](const ExpertRequest&) {
        SimulatedFate fate;
        fate.time = std::chrono::microseconds(random() % 5000);
        if (random() % 4 == 0) fate.status = absl::UnavailableError("a fault on purpose");
        return fate;
      });
    }
    std::vector<std::chrono::nanoseconds> times;
    for (int layer = 0; layer < 20; ++layer) {
      simulation.dispatcher().SetPlacement(MakePlacement(4, 3, 1, layer + 1));
      times.push_back(simulation.RunLayer(Routed(5, layer)));
    }
    return std::pair(times, simulation.dispatcher().Counters());
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(ExpertDispatcherSimulationTest, AsksTheSameHolderAgainOnlyAfterTheRetryDelay) {
  const Routed routed(3);
  DispatcherSimulation simulation(1);
  simulation.link(1).set_fates([&](const ExpertRequest&) {
    SimulatedFate fate;
    fate.time = milliseconds(1);
    if (simulation.link(1).received() <= 3) fate.status = absl::UnavailableError("not yet");
    return fate;
  });
  simulation.dispatcher().SetPlacement(MakePlacement(1));
  // Three errors after a millisecond, each followed by the delay, and then the answer.
  EXPECT_EQ(simulation.RunLayer(routed), 3 * milliseconds(1 + 20) + milliseconds(1));
  EXPECT_EQ(simulation.Count("retries_total"), 3);
}

TEST(ExpertDispatcherSimulationTest, AnotherHolderIsAskedAtOnce) {
  const Routed routed(3);
  DispatcherSimulation simulation(2);
  SimulatedFate failing;
  failing.time = milliseconds(1);
  failing.status = absl::UnavailableError("not now");
  simulation.link(1).set_fate(failing);
  simulation.dispatcher().SetPlacement(MakePlacement(2, 2));
  EXPECT_EQ(simulation.RunLayer(routed), milliseconds(1 + 2));
}

TEST(ExpertDispatcherSimulationTest, TheLayersLimitIsOfTheInjectedTime) {
  const Routed routed(2);
  DispatcherSimulation simulation(1);
  Placement placement = MakePlacement(1);
  for (auto& holders : placement.holders) holders.clear();
  simulation.dispatcher().SetPlacement(placement);
  const auto start = simulation.time().now();
  EXPECT_EQ(simulation.Dispatch(routed)->Run().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(simulation.time().now() - start, std::chrono::seconds(60));
}

}  // namespace
}  // namespace tandem
