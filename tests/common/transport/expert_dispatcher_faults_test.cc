// What a dispatcher with several holders of each expert makes of workers that stop, slow down, fail
// and answer garbage: in a simulation, so that times are exact.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "common/service/log_format.h"
#include "common/transport/expert_dispatcher.h"
#include "tests/common/transport/routed_rows.h"
#include "tests/common/transport/simulated_experts.h"
#include "tests/log_lines.h"

namespace tandem {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

SimulatedFate Answers(int ms) {
  SimulatedFate fate;
  fate.time = milliseconds(ms);
  return fate;
}
SimulatedFate Lost() {
  SimulatedFate fate;
  fate.lost = true;
  return fate;
}
SimulatedFate Fails(absl::Status status, int ms = 1) {
  SimulatedFate fate = Answers(ms);
  fate.status = std::move(status);
  return fate;
}
SimulatedFate AnswersGarbage() {
  SimulatedFate fate = Answers(1);
  fate.wrong_rows = true;
  return fate;
}

// Workers that all hold everything, take 5 ms, and have been measured.
class WellKnown : public DispatcherSimulation {
 public:
  explicit WellKnown(int num_workers, DispatcherOptions options = {})
      : DispatcherSimulation(num_workers, 9, std::move(options)) {
    dispatcher().SetPlacement(MakePlacement(num_workers, num_workers));
    for (int w = 1; w <= num_workers; ++w) link(w).set_fate(Answers(5));
    for (int i = 0; i < 20; ++i) RunLayer(routed);
    EXPECT_EQ(Count("hedged_parts_total"), 0);
    EXPECT_EQ(Count("workers_aside"), 0);
  }
  // Milliseconds after `start` at which a worker was asked since.
  std::vector<int64_t> AskedAt(WorkerId id, SimulatedTime::Clock::time_point start) {
    std::vector<int64_t> times;
    for (const auto& request : link(id).requests()) {
      if (request.time < start) continue;
      times.push_back(std::chrono::duration_cast<milliseconds>(request.time - start).count());
    }
    return times;
  }

  const Routed routed{3};
};

// ---- patience -----------------------------------------------------------------------------------

TEST(ExpertDispatcherFaultsTest, AWorkerThatStopsCostsItsPatienceOnce) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Lost());
  EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(100 + 5));
  EXPECT_EQ(simulation.Count("hedged_parts_total"), 1);
  EXPECT_EQ(simulation.Count("workers_aside"), 1);
  // Nothing for a minute of further layers, though it is probed again and again.
  const auto stall = simulation.RunLayersFor(seconds(60), simulation.routed, milliseconds(5));
  EXPECT_EQ(stall.total, milliseconds(0));
  EXPECT_EQ(simulation.Count("hedged_parts_total"), 1);
  EXPECT_GE(simulation.Count("probes_total"), 5);
  EXPECT_EQ(simulation.Count("workers_aside"), 1);
  EXPECT_EQ(simulation.Count("parts_live"), 0);
}

// What an operator has of a request that was slow: the traces of its parts, and of no other.
TEST(ExpertDispatcherFaultsTest, WhatIsLateOrFailsIsLoggedWithTheTracesOfItsRequests) {
  const std::string trace_id = "0af7651916cd43dd8448eb211c80319c";
  Routed traced(3);
  traced.traces = std::make_shared<const std::vector<std::string>>(
      std::vector<std::string>{"00-" + trace_id + "-b7ad6b7169203331-01"});
  const auto logged = [&](SimulatedFate fate, const Routed& routed) {
    WellKnown simulation(2);
    simulation.link(1).set_fate(std::move(fate));
    LogLines lines(MakeTextLogFormatter());
    simulation.RunLayer(routed);
    EXPECT_EQ(simulation.link(1).requests().back().traces, routed.traces);
    return lines.Text();
  };
  const std::string fields = " trace_id=" + trace_id + " step=1 layer=2\n";
  EXPECT_THAT(logged(Lost(), traced),
              HasSubstr("[warning] expert worker 1 has not answered in 100 ms; others are asked as "
                        "well" +
                        fields));
  EXPECT_THAT(logged(Fails(absl::InternalError("a fault")), traced),
              HasSubstr("[warning] expert worker 1 failed: INTERNAL: a fault" + fields));
  EXPECT_THAT(logged(Lost(), Routed(3)), HasSubstr("others are asked as well step=1 layer=2\n"));
  EXPECT_EQ(logged(Answers(5), traced), "");
}

TEST(ExpertDispatcherFaultsTest, ASlowWorkerIsLoggedAlsoWhereNobodyElseCouldBeAsked) {
  DispatcherSimulation simulation(1);
  simulation.dispatcher().SetPlacement(MakePlacement(1));
  const Routed routed(3);
  simulation.link(1).set_fate(Answers(5));
  for (int i = 0; i < 20; ++i) simulation.RunLayer(routed);
  LogLines lines(MakeTextLogFormatter());
  simulation.link(1).set_fate(Answers(99));
  simulation.RunLayer(routed);
  EXPECT_EQ(lines.Text(), "");
  simulation.link(1).set_fate(Answers(900));
  simulation.RunLayer(routed);
  EXPECT_THAT(lines.Text(), HasSubstr("expert worker 1 took 900 ms for 3 rows"));
}

TEST(ExpertDispatcherFaultsTest, APartitionWhoseErrorsComeLateCostsNoMore) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Fails(absl::DeadlineExceededError("no answer"), 11'000));
  const auto stall = simulation.RunLayersFor(seconds(30), simulation.routed, milliseconds(5));
  EXPECT_EQ(stall.total, milliseconds(100));
  EXPECT_GE(simulation.Count("late_replies_total"), 1);
  EXPECT_EQ(simulation.Count("retries_total"), 0);
}

TEST(ExpertDispatcherFaultsTest, AWorkerThatSlowsDownTenfoldCostsHalfASecondInAll) {
  for (const int usual_ms : {2, 5, 12, 20}) {
    WellKnown simulation(2);
    for (const WorkerId id : {1, 2}) simulation.link(id).set_fate(Answers(usual_ms));
    simulation.RunLayersFor(seconds(10), simulation.routed, milliseconds(usual_ms));
    simulation.link(1).set_fate(Answers(10 * usual_ms));
    const auto stall =
        simulation.RunLayersFor(seconds(60), simulation.routed, milliseconds(usual_ms));
    EXPECT_LE(stall.total, milliseconds(500)) << usual_ms;
    EXPECT_EQ(simulation.Count("workers_aside"), 1) << usual_ms;
  }
}

TEST(ExpertDispatcherFaultsTest, ALateAnswerIsTakenIfItIsTheFirst) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Answers(120));
  simulation.link(2).set_fates([&, first = true](const ExpertRequest&) mutable {
    return Answers(std::exchange(first, false) ? 5 : 300);
  });
  EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(120));
  EXPECT_EQ(simulation.Count("hedged_parts_total"), 1);
  EXPECT_EQ(simulation.Count("late_replies_total"), 0);
  EXPECT_EQ(simulation.Count("parts_live"), 0);
  simulation.time().AdvanceBy(seconds(1));
  EXPECT_EQ(simulation.Count("late_replies_total"), 1);
}

TEST(ExpertDispatcherFaultsTest, TheSecondAnswerIsIgnoredAndCounted) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Answers(300));
  const int64_t received = simulation.Count("rows_received_total");
  EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(105));
  const int64_t rows = simulation.Count("rows_received_total") - received;
  simulation.time().AdvanceBy(seconds(1));
  EXPECT_EQ(simulation.Count("late_replies_total"), 1);
  EXPECT_EQ(simulation.Count("rows_received_total") - received, rows);
}

TEST(ExpertDispatcherFaultsTest, PatienceIsTwiceAsLongAfterEachTimeItHasRunOut) {
  WellKnown simulation(4);
  for (WorkerId id = 1; id <= 4; ++id) simulation.link(id).set_fate(Lost());
  RowBatch one_route = simulation.routed.batch();
  one_route.rows = one_route.rows.slice_rows(0, 1);
  one_route.top_k = 1;
  const auto start = simulation.time().now();
  SimulatedDispatch layer(&simulation.time(), &simulation.dispatcher(), one_route);
  SimulatedDispatch::RunAll(&simulation.time(), {&layer}, start + milliseconds(2000));
  EXPECT_FALSE(layer.done());
  std::vector<int64_t> times;
  for (WorkerId id = 1; id <= 4; ++id) {
    for (const int64_t time : simulation.AskedAt(id, start)) times.push_back(time);
  }
  std::sort(times.begin(), times.end());
  EXPECT_THAT(times, ElementsAre(0, 100, 300, 700));
}

TEST(ExpertDispatcherFaultsTest, AMachineThatIsSlowAsAWholeIsNotAskedTwiceForLong) {
  WellKnown simulation(2);
  for (const WorkerId id : {1, 2}) simulation.link(id).set_fate(Answers(400));
  simulation.RunLayersFor(seconds(10), simulation.routed, milliseconds(400));
  const int64_t hedged = simulation.Count("hedged_parts_total");
  EXPECT_LE(hedged, 6);
  const auto stall = simulation.RunLayersFor(seconds(30), simulation.routed, milliseconds(400));
  EXPECT_EQ(stall.total, milliseconds(0));
  EXPECT_EQ(simulation.Count("hedged_parts_total"), hedged);
  EXPECT_EQ(simulation.Count("workers_aside"), 0);
}

TEST(ExpertDispatcherFaultsTest, LargePartsHaveThePatienceOfLargeParts) {
  WellKnown simulation(2);
  const Routed large(500);
  for (const WorkerId id : {1, 2}) {
    simulation.link(id).set_fates(
        [](const ExpertRequest& request) { return Answers(request.num_routes() > 100 ? 800 : 5); });
  }
  simulation.RunLayer(large);
  const int64_t hedged = simulation.Count("hedged_parts_total");
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(simulation.RunLayer(large), milliseconds(800));
    EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(5));
  }
  EXPECT_EQ(simulation.Count("hedged_parts_total"), hedged);
}

TEST(ExpertDispatcherFaultsTest, WhatIsInLineBehindALargePartHasItsPatience) {
  WellKnown simulation(2);
  // Workers that do one thing after the other.
  std::map<WorkerId, SimulatedTime::Clock::time_point> busy_until;
  for (const WorkerId id : {1, 2}) {
    simulation.link(id).set_fates([&, id](const ExpertRequest& request) {
      busy_until[id] = std::max(busy_until[id], simulation.time().now()) +
                       milliseconds(request.num_routes() > 100 ? 800 : 5);
      SimulatedFate fate;
      fate.time = busy_until[id] - simulation.time().now();
      return fate;
    });
  }
  const Routed large(500);
  simulation.RunLayer(large);  // is not known yet, and may be late
  simulation.time().AdvanceBy(seconds(10));
  simulation.RunLayersFor(seconds(10), simulation.routed, milliseconds(5));
  const int64_t hedged = simulation.Count("hedged_parts_total");
  for (int i = 0; i < 10; ++i) {
    const auto prompt = simulation.Dispatch(large);
    const auto decoding = simulation.Dispatch(simulation.routed);
    SimulatedDispatch::RunAll(&simulation.time(), {prompt.get(), decoding.get()});
    for (int j = 0; j < 20; ++j) simulation.RunLayer(simulation.routed);
  }
  EXPECT_EQ(simulation.Count("hedged_parts_total"), hedged);
  EXPECT_EQ(simulation.Count("workers_aside"), 0);
  // And what is not behind one, has its own.
  simulation.link(1).set_fate(Lost());
  EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(105));
}

TEST(ExpertDispatcherFaultsTest, WithoutAnotherHolderPatienceHasNoEffect) {
  DispatcherSimulation simulation(1);
  simulation.dispatcher().SetPlacement(MakePlacement(1));
  const Routed routed(3);
  for (int i = 0; i < 20; ++i) simulation.RunLayer(routed);
  simulation.link(1).set_fate(Answers(9'000));
  SimulatedDispatch layer(&simulation.time(), &simulation.dispatcher(), routed.batch());
  EXPECT_TRUE(layer.Run().ok());
  EXPECT_LE(layer.polls(), 2);
  EXPECT_EQ(simulation.Count("hedged_parts_total"), 0);
  EXPECT_EQ(simulation.Count("retries_total"), 0);
  EXPECT_GT(simulation.link(1).requests().back().time_left, absl::Seconds(10));
}

TEST(ExpertDispatcherFaultsTest, OnlyExpertsWithAnotherHolderAreAskedOfIt) {
  DispatcherSimulation simulation(2);
  Placement placement = MakePlacement(1);
  placement.workers = MakePlacement(2).workers;
  for (int e = 0; e < kExperts; e += 2) placement.holders[kLayer * kExperts + e].push_back(2);
  simulation.dispatcher().SetPlacement(placement);
  const Routed routed(8);
  for (int i = 0; i < 20; ++i) simulation.RunLayer(routed);
  simulation.link(1).set_fate(Answers(300));
  const int asked = simulation.link(2).received();
  EXPECT_EQ(simulation.RunLayer(routed), milliseconds(300));
  for (int i = asked; i < simulation.link(2).received(); ++i) {
    for (const int32_t expert : simulation.link(2).requests()[i].experts) EXPECT_EQ(expert % 2, 0);
  }
  EXPECT_EQ(simulation.Count("retries_total"), 0);
}

TEST(ExpertDispatcherFaultsTest, ANewHolderIsAskedForWhatIsOutAtOneThatHasStopped) {
  DispatcherSimulation simulation(2);
  Placement placement = MakePlacement(1);
  placement.workers = MakePlacement(2).workers;
  simulation.dispatcher().SetPlacement(placement);
  const Routed routed(3);
  for (int i = 0; i < 20; ++i) simulation.RunLayer(routed);
  simulation.link(1).set_fate(Lost());
  const auto start = simulation.time().now();
  SimulatedDispatch layer(&simulation.time(), &simulation.dispatcher(), routed.batch());
  simulation.time().After(seconds(2),
                          [&] { simulation.dispatcher().SetPlacement(MakePlacement(2, 2, 1, 2)); });
  EXPECT_TRUE(layer.Run().ok());
  EXPECT_EQ(layer.Rows(routed), routed.Expected());
  EXPECT_EQ(simulation.time().now() - start, seconds(2) + milliseconds(2));
  // One that is out for less than its patience is left alone.
  simulation.link(1).set_fate(Answers(60));
  simulation.dispatcher().SetPlacement([&] {
    placement.version.counter = 3;
    return placement;
  }());
  const int asked = simulation.link(2).received();
  SimulatedDispatch next(&simulation.time(), &simulation.dispatcher(), routed.batch());
  simulation.dispatcher().SetPlacement(MakePlacement(2, 2, 1, 4));
  EXPECT_TRUE(next.Run().ok());
  EXPECT_EQ(simulation.link(2).received(), asked);
}

TEST(ExpertDispatcherFaultsTest, NobodyIsAskedForTheSameTwiceAtATime) {
  WellKnown simulation(3);
  // Nobody answers, so whatever a worker is asked for within the limits is out there.
  for (WorkerId id = 1; id <= 3; ++id) simulation.link(id).set_fate(Lost());
  const auto start = simulation.time().now();
  const auto layer = simulation.Dispatch(simulation.routed);
  // A new placement, by which the first may ask a third, comes when the second is late too.
  simulation.time().After(milliseconds(300),
                          [&] { simulation.dispatcher().SetPlacement(MakePlacement(3, 3, 1, 2)); });
  SimulatedDispatch::RunAll(&simulation.time(), {layer.get()}, start + seconds(9));
  for (WorkerId id = 1; id <= 3; ++id) {
    std::set<int32_t> experts;
    for (const auto& request : simulation.link(id).requests()) {
      if (request.time < start) continue;
      for (const int32_t expert :
           std::set<int32_t>(request.experts.begin(), request.experts.end())) {
        EXPECT_TRUE(experts.insert(expert).second) << "expert " << expert << " at " << id;
      }
    }
    EXPECT_EQ(experts,
              std::set<int32_t>(simulation.routed.ids.begin(), simulation.routed.ids.end()));
  }
}

TEST(ExpertDispatcherFaultsTest, AHolderThatFailsInPlaceOfALateOneIsAskedAgain) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Lost());
  simulation.link(2).set_fates([&, count = 0](const ExpertRequest&) mutable {
    // Its own part is done; the one in place of worker 1's fails twice.
    ++count;
    return count == 2 || count == 3 ? Fails(absl::UnavailableError("not now")) : Answers(5);
  });
  EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(100 + 1 + 20 + 1 + 20 + 5));
}

// ---- put aside and probed -----------------------------------------------------------------------

TEST(ExpertDispatcherFaultsTest, AWorkerThatFailsIsPutAsideForLongerAndLonger) {
  for (const SimulatedFate& fate :
       {Fails(absl::UnavailableError("broken")), Fails(absl::DataLossError("garbage")),
        AnswersGarbage(), Fails(absl::ResourceExhaustedError("too much"))}) {
    WellKnown simulation(2);
    const auto start = simulation.time().now();
    simulation.link(1).set_fate(fate);
    const auto stall = simulation.RunLayersFor(seconds(70), simulation.routed, milliseconds(5));
    EXPECT_EQ(stall.total, milliseconds(1));  // of the first
    // After 0.5, 1, 2, 4, 8, 16 and 16 s, as soon as there is a layer.
    const std::vector<int64_t> asked = simulation.AskedAt(1, start);
    ASSERT_EQ(asked.size(), 9u);
    const int64_t pauses[] = {500, 1000, 2000, 4000, 8000, 16000, 16000, 16000};
    for (int i = 0; i < 8; ++i) {
      EXPECT_GE(asked[i + 1] - asked[i], pauses[i]);
      EXPECT_LE(asked[i + 1] - asked[i], pauses[i] + 10);
    }
    EXPECT_EQ(simulation.Count("probes_total"), 8);
    EXPECT_EQ(simulation.Count("retries_total"), 1);
  }
}

TEST(ExpertDispatcherFaultsTest, AGoodProbeBringsItBack) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Fails(absl::UnavailableError("broken")));
  simulation.RunLayersFor(milliseconds(100), simulation.routed, milliseconds(5));
  EXPECT_EQ(simulation.Count("workers_aside"), 1);
  simulation.link(1).set_fate(Answers(5));
  const int asked = simulation.link(1).received();
  simulation.RunLayersFor(milliseconds(390), simulation.routed, milliseconds(5));
  EXPECT_EQ(simulation.link(1).received(), asked);
  // The probe: a few rows, of which worker 2 is asked too, and does not wait for it.
  simulation.RunLayersFor(milliseconds(20), simulation.routed, milliseconds(5));
  EXPECT_EQ(simulation.Count("probes_total"), 1);
  EXPECT_EQ(simulation.link(1).requests()[asked].experts.size(), 1u);
  EXPECT_EQ(simulation.Count("workers_aside"), 0);
  simulation.RunLayer(simulation.routed);
  EXPECT_GT(simulation.Asked(1).size(), 1u);
}

TEST(ExpertDispatcherFaultsTest, ALateOrSlowProbeDoesNot) {
  for (const int ms : {50, 99, 101, 5'000}) {
    WellKnown simulation(2);
    simulation.link(1).set_fate(Fails(absl::UnavailableError("broken")));
    simulation.RunLayer(simulation.routed);
    simulation.link(1).set_fate(Answers(ms));
    const auto stall = simulation.RunLayersFor(seconds(20), simulation.routed, milliseconds(5));
    EXPECT_EQ(stall.total, milliseconds(0)) << ms;
    EXPECT_EQ(simulation.Count("workers_aside"), 1) << ms;
    EXPECT_GE(simulation.Count("probes_total"), 4) << ms;
    EXPECT_LE(simulation.Count("probes_total"), 6) << ms;
  }
}

TEST(ExpertDispatcherFaultsTest, AWorkerThatIsAsideDoesWhatNobodyElseCan) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Fails(absl::UnavailableError("broken")));
  simulation.RunLayer(simulation.routed);
  simulation.link(1).set_fate(Answers(5));
  // From now on nobody else holds odd experts.
  Placement placement = MakePlacement(2, 2, 1, 2);
  for (int e = 1; e < kExperts; e += 2) placement.holders[kLayer * kExperts + e] = {1};
  simulation.dispatcher().SetPlacement(placement);
  EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(5));
  for (const int32_t expert : simulation.Asked(1)) EXPECT_EQ(expert % 2, 1);
  EXPECT_EQ(simulation.Count("workers_aside"), 1);
  // It comes back by such an answer, without a probe.
  simulation.time().AdvanceBy(milliseconds(500));
  simulation.RunLayer(simulation.routed);
  EXPECT_EQ(simulation.Count("workers_aside"), 0);
  EXPECT_EQ(simulation.Count("probes_total"), 0);
}

TEST(ExpertDispatcherFaultsTest, TheOnlyWellHolderIsNotLateForOneThatIsAside) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Lost());
  simulation.RunLayer(simulation.routed);
  // Longer than patience: worker 1 is asked as well, but is no better.
  simulation.link(2).set_fate(Answers(150));
  EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(150));
  EXPECT_EQ(simulation.Count("hedged_parts_total"), 2);
  simulation.link(2).set_fate(Answers(5));
  const auto stall = simulation.RunLayersFor(milliseconds(300), simulation.routed, milliseconds(5));
  EXPECT_EQ(stall.total, milliseconds(0));
}

// ---- what is no fault of a worker ---------------------------------------------------------------

TEST(ExpertDispatcherFaultsTest, AWorkerThatHasLetGoOfAnExpertIsNotPutAside) {
  for (const absl::Status& status :
       {absl::NotFoundError("not loaded"), absl::FailedPreconditionError("retired")}) {
    WellKnown simulation(2);
    simulation.link(1).set_fate(Fails(status));
    EXPECT_EQ(simulation.RunLayer(simulation.routed), milliseconds(1 + 5));
    EXPECT_EQ(simulation.Count("retries_total"), 1);
    EXPECT_EQ(simulation.Count("workers_aside"), 0);
    // As a probe's answer it decides nothing, and the next one waits.
    simulation.link(1).set_fate(Fails(absl::UnavailableError("broken")));
    simulation.RunLayer(simulation.routed);
    simulation.link(1).set_fate(Fails(status));
    simulation.RunLayersFor(milliseconds(2'200), simulation.routed, milliseconds(5));
    EXPECT_EQ(simulation.Count("probes_total"), 4);
    simulation.link(1).set_fate(Answers(5));
    simulation.RunLayersFor(milliseconds(600), simulation.routed, milliseconds(5));
    EXPECT_EQ(simulation.Count("workers_aside"), 0);
  }
}

TEST(ExpertDispatcherFaultsTest, AWorkerThatHasLeftThePlacementIsTakenBackFrom) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Lost());
  SimulatedDispatch layer(&simulation.time(), &simulation.dispatcher(), simulation.routed.batch());
  const auto start = simulation.time().now();
  simulation.time().After(milliseconds(20),
                          [&] { simulation.dispatcher().SetPlacement(MakePlacement(1, 1, 2, 2)); });
  EXPECT_TRUE(layer.Run().ok());
  EXPECT_EQ(layer.Rows(simulation.routed), simulation.routed.Expected());
  EXPECT_EQ(simulation.time().now() - start, milliseconds(20 + 5));
  EXPECT_EQ(simulation.Count("workers_aside"), 0);
  // Another process by the same number is another worker.
  Placement again = MakePlacement(2, 2, 1, 3);
  again.workers[0].incarnation = 77;
  simulation.link(1).set_fate(Answers(5));
  simulation.dispatcher().SetPlacement(again);
  simulation.RunLayer(simulation.routed);
  EXPECT_GT(simulation.Asked(1).size(), 1u);
}

TEST(ExpertDispatcherFaultsTest, AProbeHoldsNoPlacementBackOnceItsLinkHasAnswered) {
  WellKnown simulation(2);
  simulation.link(1).set_fate(Fails(absl::UnavailableError("broken")));
  simulation.RunLayer(simulation.routed);
  simulation.time().AdvanceBy(milliseconds(500));
  simulation.link(1).set_fate(Fails(absl::DeadlineExceededError("no answer"), 1'000));
  simulation.RunLayer(simulation.routed);
  EXPECT_EQ(simulation.Count("probes_total"), 1);
  simulation.dispatcher().SetPlacement(MakePlacement(2, 2, 1, 2));
  EXPECT_EQ(simulation.dispatcher().oldest_in_use(), (PlacementVersion{1, 1}));
  simulation.time().AdvanceBy(seconds(2));  // in which no layer is looked at
  EXPECT_EQ(simulation.dispatcher().oldest_in_use(), (PlacementVersion{1, 2}));
}

TEST(ExpertDispatcherFaultsTest, WithNoHolderLeftALayerWaitsForOne) {
  WellKnown simulation(2);
  for (const WorkerId id : {1, 2}) {
    simulation.link(id).set_fate(Fails(absl::UnavailableError("broken")));
  }
  const auto start = simulation.time().now();
  SimulatedDispatch layer(&simulation.time(), &simulation.dispatcher(), simulation.routed.batch());
  simulation.time().After(seconds(40), [&] { simulation.link(2).set_fate(Answers(5)); });
  EXPECT_TRUE(layer.Run().ok());
  EXPECT_LE(simulation.time().now() - start, seconds(40) + milliseconds(30));
  EXPECT_EQ(layer.Rows(simulation.routed), simulation.routed.Expected());
}

// ---- everything at once -------------------------------------------------------------------------

// Fates and placements that follow from a seed.
void RunRandomFaults(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto num_workers = static_cast<WorkerId>(2 + random() % 4);
  DispatcherSimulation simulation(num_workers, seed);
  const auto chance = [&](int percent) { return random() % 100 < static_cast<uint64_t>(percent); };
  auto no_loss_until = simulation.time().now();  // a layer survives two losses in a row, not more
  int copies = 1;
  WorkerId stopped = 0;  // with one copy none is
  const auto fate = [&](WorkerId id) {
    SimulatedFate fate;
    fate.time = std::chrono::microseconds(random() % 20'000);
    fate.answered_twice = chance(5);
    if (chance(4)) fate.time = milliseconds(random() % 4'000);  // late
    if (chance(3)) fate.wrong_rows = true;
    if (chance(3)) fate.status = absl::DataLossError("corrupted on the way");
    if (chance(4)) fate.status = absl::UnavailableError("broken");
    if (chance(2)) fate.status = absl::NotFoundError("not loaded");
    if (chance(5) && simulation.time().now() >= no_loss_until) {
      fate.lost = true;
      no_loss_until = simulation.time().now() + seconds(60);
    }
    fate.lost = fate.lost || id == stopped;
    return fate;
  };
  for (WorkerId id = 1; id <= num_workers; ++id) {
    simulation.link(id).set_fates([&fate, id](const ExpertRequest&) { return fate(id); });
  }

  std::vector<std::unique_ptr<Routed>> routed;
  uint64_t version = 0;
  for (int round = 0; round < 12; ++round) {
    const auto change_placement = [&] {
      const int left = chance(30) && num_workers > 2 ? 1 : 0;  // worker 1 has
      copies = 1 + static_cast<int>(random() % (num_workers - left));
      if (copies == 1) stopped = 0;
      simulation.dispatcher().SetPlacement(
          MakePlacement(num_workers - left, copies, 1 + left, ++version));
    };
    if (round == 0 || chance(20)) change_placement();
    stopped = copies > 1 && chance(20) ? 1 + random() % num_workers : 0;
    if (chance(20)) simulation.time().After(milliseconds(random() % 300), change_placement);
    std::vector<std::unique_ptr<SimulatedDispatch>> layers;
    std::vector<SimulatedDispatch*> running;
    const size_t first = routed.size();
    for (uint64_t i = 0; i <= random() % 3; ++i) {
      routed.push_back(std::make_unique<Routed>(1 + random() % 9, random()));
      layers.push_back(simulation.Dispatch(*routed.back()));
      running.push_back(layers.back().get());
    }
    if (chance(10)) {  // abandoned
      SimulatedDispatch::RunAll(&simulation.time(), running,
                                simulation.time().now() + milliseconds(random() % 200));
      continue;
    }
    const auto start = simulation.time().now();
    SimulatedDispatch::RunAll(&simulation.time(), running);
    EXPECT_LT(simulation.time().now() - start, seconds(59));
    for (size_t i = 0; i < layers.size(); ++i) {
      ASSERT_TRUE(layers[i]->status().ok()) << layers[i]->status();
      ASSERT_EQ(layers[i]->Rows(*routed[first + i]), routed[first + i]->Expected());
    }
    simulation.time().AdvanceBy(milliseconds(random() % 700));
  }

  // All that is out comes to its end, and a last layer without faults finds nothing left over.
  simulation.time().AdvanceBy(seconds(100));
  for (WorkerId id = 1; id <= num_workers; ++id) simulation.link(id).set_fate(Answers(1));
  simulation.dispatcher().SetPlacement(MakePlacement(num_workers, 1, 1, ++version));
  simulation.RunLayer(Routed(20));
  simulation.time().AdvanceBy(seconds(100));
  simulation.RunLayer(Routed(20));
  EXPECT_EQ(simulation.Count("parts_live"), 0);
  EXPECT_EQ(simulation.dispatcher().oldest_in_use(), (PlacementVersion{1, version}));
  for (const auto& rows : routed) EXPECT_EQ(rows->values.use_count(), 1);
  // What was never sent again, answered, failed or late is nowhere.
  EXPECT_GE(simulation.Count("parts_total"), simulation.Count("hedged_parts_total"));
}

TEST(ExpertDispatcherFaultsTest, NoFaultChangesAResultOrLeavesAnythingBehind) {
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RunRandomFaults(seed);
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace tandem
