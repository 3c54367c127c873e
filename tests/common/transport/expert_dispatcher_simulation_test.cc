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

// A dispatcher and the workers 1 to num_workers.
class Simulation {
 public:
  explicit Simulation(int num_workers, uint64_t incarnation = 9) {
    for (int w = 1; w <= num_workers; ++w) {
      links_[w] = std::make_shared<SimulatedExpertLink>(&time_);
    }
    options_.now = [this] { return time_.now(); };
    dispatcher_ = std::make_unique<ExpertDispatcher>(
        incarnation, options_, [this](const Placement::Worker& worker) {
          const auto it = links_.find(worker.id);
          return it == links_.end() ? nullptr : it->second;
        });
  }

  SimulatedTime& time() { return time_; }
  ExpertDispatcher& dispatcher() { return *dispatcher_; }
  SimulatedExpertLink& link(WorkerId id) { return *links_.at(id); }
  int64_t Count(const std::string& name) const { return Counter(dispatcher_->Counters(), name); }
  // Experts that a worker has been asked for by its latest request.
  std::set<int32_t> Asked(WorkerId id) const {
    const auto& experts = links_.at(id)->requests().back().experts;
    return std::set<int32_t>(experts.begin(), experts.end());
  }
  std::unique_ptr<SimulatedDispatch> Dispatch(const Routed& routed) {
    return std::make_unique<SimulatedDispatch>(&time_, dispatcher_.get(), routed.batch());
  }
  // Runs a layer, whose rows must be as if nothing had happened. Returns how long it took.
  std::chrono::nanoseconds RunLayer(const Routed& routed) {
    const auto start = time_.now();
    const auto layer = Dispatch(routed);
    const absl::Status status = layer->Run();
    EXPECT_TRUE(status.ok()) << status;
    if (status.ok()) {
      EXPECT_EQ(layer->Rows(routed), routed.Expected());
    }
    return time_.now() - start;
  }

 private:
  SimulatedTime time_;
  DispatcherOptions options_;
  std::map<WorkerId, std::shared_ptr<SimulatedExpertLink>> links_;
  std::unique_ptr<ExpertDispatcher> dispatcher_;
};

TEST(ExpertDispatcherSimulationTest, HoldersOfTheSameExpertsShareThem) {
  for (const int num_rows : {1, 4, 64}) {
    const Routed routed(num_rows);
    Simulation simulation(2);
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
  Simulation simulation(2);
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
  Simulation simulation(2);
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
    Simulation simulation(2, incarnation);
    simulation.dispatcher().SetPlacement(placement);
    simulation.RunLayer(routed);
    of_first.insert(simulation.Asked(1));
  }
  EXPECT_EQ(of_first.size(), 2u);
}

TEST(ExpertDispatcherSimulationTest, TheSameHappensAgain) {
  const auto run = [](uint64_t seed) {
    std::mt19937_64 random(seed);
    Simulation simulation(4);
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
  Simulation simulation(1);
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
  Simulation simulation(2);
  SimulatedFate failing;
  failing.time = milliseconds(1);
  failing.status = absl::UnavailableError("not now");
  simulation.link(1).set_fate(failing);
  simulation.dispatcher().SetPlacement(MakePlacement(2, 2));
  EXPECT_EQ(simulation.RunLayer(routed), milliseconds(1 + 2));
}

TEST(ExpertDispatcherSimulationTest, TheLayersLimitIsOfTheInjectedTime) {
  const Routed routed(2);
  Simulation simulation(1);
  Placement placement = MakePlacement(1);
  for (auto& holders : placement.holders) holders.clear();
  simulation.dispatcher().SetPlacement(placement);
  const auto start = simulation.time().now();
  EXPECT_EQ(simulation.Dispatch(routed)->Run().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(simulation.time().now() - start, std::chrono::seconds(60));
}

}  // namespace
}  // namespace tandem
