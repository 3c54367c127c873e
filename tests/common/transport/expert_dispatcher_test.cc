#include "common/transport/expert_dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "common/transport/faulty_expert_link.h"
#include "tests/common/transport/fake_expert.h"
#include "tests/common/transport/routed_rows.h"
#include "tests/common/transport/waited_dispatch.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

using Links = std::map<WorkerId, std::shared_ptr<ExpertLink>>;

std::unique_ptr<ExpertDispatcher> MakeDispatcher(const Links& links,
                                                 DispatcherOptions options = {}) {
  return std::make_unique<ExpertDispatcher>(
      9, options, [links](const Placement::Worker& worker) -> std::shared_ptr<ExpertLink> {
        const auto it = links.find(worker.id);
        return it == links.end() ? nullptr : it->second;
      });
}

absl::Status RunLayer(ExpertDispatcher& dispatcher, const Routed& routed, Output& out) {
  return WaitedDispatch(&dispatcher, routed.batch()).Wait(CombineOne, out.view());
}

DispatcherOptions QuickOptions() {
  DispatcherOptions options;
  options.attempt_timeout = absl::Milliseconds(100);
  options.layer_timeout = absl::Seconds(30);
  options.retry_delay = absl::Milliseconds(1);
  options.reply_grace = absl::Milliseconds(50);
  options.first_aside = options.longest_aside = absl::Milliseconds(50);
  return options;
}

TEST(ExpertDispatcherTest, GivesTheSameBitsWithOneTwoAndFourWorkers) {
  for (const int num_rows : {1, 2, 7, 64}) {
    const Routed routed(num_rows, num_rows);
    for (const int num_workers : {1, 2, 4, 16}) {
      Links links;
      for (int w = 1; w <= num_workers; ++w) links[w] = std::make_shared<FakeExpertLink>();
      auto dispatcher = MakeDispatcher(links);
      dispatcher->SetPlacement(MakePlacement(num_workers));
      Output out(routed);
      ASSERT_TRUE(RunLayer(*dispatcher, routed, out).ok());
      EXPECT_EQ(out.values, routed.Expected()) << num_rows << " rows, " << num_workers;
      EXPECT_EQ(Counter(dispatcher->Counters(), "parts_live"), 0);
      EXPECT_EQ(Counter(dispatcher->Counters(), "retries_total"), 0);
    }
  }
}

TEST(ExpertDispatcherTest, NoRowsAreAnsweredAtOnce) {
  const Routed routed(0);
  auto dispatcher = MakeDispatcher({});
  Output out(routed);
  EXPECT_TRUE(RunLayer(*dispatcher, routed, out).ok());
}

TEST(ExpertDispatcherTest, OneWorkerGetsOneCombinedRowPerRow) {
  const Routed routed(10);
  auto dispatcher = MakeDispatcher({{1, std::make_shared<FakeExpertLink>()}});
  dispatcher->SetPlacement(MakePlacement(1));
  Output out(routed);
  ASSERT_TRUE(RunLayer(*dispatcher, routed, out).ok());
  EXPECT_EQ(Counter(dispatcher->Counters(), "parts_total"), 1);
  EXPECT_EQ(Counter(dispatcher->Counters(), "rows_received_total"), 10);
}

TEST(ExpertDispatcherTest, SeveralLayersCanBePendingAtOnce) {
  const Routed first(5, 1), second(9, 2);
  auto dispatcher = MakeDispatcher(
      {{1, std::make_shared<FakeExpertLink>()}, {2, std::make_shared<FakeExpertLink>()}});
  dispatcher->SetPlacement(MakePlacement(2));
  WaitedDispatch pending_first(dispatcher.get(), first.batch(1));
  WaitedDispatch pending_second(dispatcher.get(), second.batch(1));
  Output out_first(first), out_second(second);
  ASSERT_TRUE(pending_second.Wait(CombineOne, out_second.view()).ok());
  ASSERT_TRUE(pending_first.Wait(CombineOne, out_first.view()).ok());
  EXPECT_EQ(out_first.values, first.Expected());
  EXPECT_EQ(out_second.values, second.Expected());
}

TEST(ExpertDispatcherTest, FaultsNeverChangeAResult) {
  const Routed routed(13);
  const std::vector<float> expected = routed.Expected();
  ExpertFaults faults;
  faults.drop = 0.05;
  faults.error = 0.2;
  faults.wrong_rows = 0.1;
  faults.delay = 0.2;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Links links;
    for (int w = 1; w <= 4; ++w) {
      links[w] = std::make_shared<FaultyExpertLink>(std::make_shared<FakeExpertLink>(), faults,
                                                    seed * 10 + w);
    }
    auto dispatcher = MakeDispatcher(links, QuickOptions());
    dispatcher->SetPlacement(MakePlacement(4, 1 + seed % 2));
    for (int round = 0; round < 3; ++round) {
      Output out(routed);
      const absl::Status status = RunLayer(*dispatcher, routed, out);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(out.values, expected) << "seed " << seed;
    }
  }
}

TEST(ExpertDispatcherTest, AsksAnotherHolderAfterAFailureAndAvoidsTheFirstForAWhile) {
  const Routed routed(4);
  ExpertFaults always;
  always.error = 1;
  auto good = std::make_shared<FakeExpertLink>();
  auto bad = std::make_shared<FaultyExpertLink>(std::make_shared<FakeExpertLink>(), always, 1);
  Placement placement = MakePlacement(2, 2);
  for (int e = 0; e < kExperts; ++e) placement.holders[kLayer * kExperts + e] = {1, 2};
  DispatcherOptions options = QuickOptions();
  options.first_aside = absl::Hours(1);
  auto dispatcher = MakeDispatcher({{1, bad}, {2, good}}, options);
  dispatcher->SetPlacement(placement);
  for (int round = 0; round < 3; ++round) {
    Output out(routed);
    ASSERT_TRUE(RunLayer(*dispatcher, routed, out).ok());
    EXPECT_EQ(out.values, routed.Expected());
  }
  EXPECT_EQ(Counter(dispatcher->Counters(), "retries_total"), 1);
  EXPECT_EQ(good->received(), 4);  // its half of the first layer, the other half, two layers
}

TEST(ExpertDispatcherTest, ALostPartIsAskedForAgain) {
  // A link that forgets its first request.
  class Forgetful : public ExpertLink {
   public:
    void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
      ids.push_back(request->id);
      if (ids.size() > 1) done(ComputeFakeReply(*request));
    }
    std::vector<DispatchId> ids;
  };
  const Routed routed(3);
  auto link = std::make_shared<Forgetful>();
  auto dispatcher = MakeDispatcher({{1, link}}, QuickOptions());
  dispatcher->SetPlacement(MakePlacement(1));
  Output out(routed);
  ASSERT_TRUE(RunLayer(*dispatcher, routed, out).ok());
  EXPECT_EQ(out.values, routed.Expected());
  ASSERT_EQ(link->ids.size(), 2u);
  EXPECT_EQ(link->ids[0].attempt, 0u);
  EXPECT_EQ(link->ids[1].attempt, 1u);
  EXPECT_NE(link->ids[0].part, link->ids[1].part);
  EXPECT_EQ(link->ids[1].incarnation, 9u);
  EXPECT_EQ(Counter(dispatcher->Counters(), "retries_total"), 1);
}

TEST(ExpertDispatcherTest, UnavailableNamesWorkerAndLayerWhenTheTimeIsUp) {
  const Routed routed(2);
  ExpertFaults always;
  always.error = 1;
  DispatcherOptions options = QuickOptions();
  options.layer_timeout = absl::Milliseconds(60);
  auto dispatcher = MakeDispatcher(
      {{1, std::make_shared<FaultyExpertLink>(std::make_shared<FakeExpertLink>(), always, 1)}},
      options);
  dispatcher->SetPlacement(MakePlacement(1));
  Output out(routed);
  const absl::Status status = RunLayer(*dispatcher, routed, out);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.ToString(), HasSubstr("layer 2"));
  EXPECT_THAT(status.ToString(), HasSubstr("expert worker 1"));
  EXPECT_EQ(Counter(dispatcher->Counters(), "parts_live"), 0);
}

TEST(ExpertDispatcherTest, UnavailableNamesAnExpertThatNobodyHolds) {
  const Routed routed(2);
  DispatcherOptions options = QuickOptions();
  options.layer_timeout = absl::Milliseconds(20);
  auto dispatcher = MakeDispatcher({}, options);
  Placement placement = MakePlacement(1);
  for (auto& holders : placement.holders) holders.clear();
  dispatcher->SetPlacement(placement);
  Output out(routed);
  const absl::Status status = RunLayer(*dispatcher, routed, out);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.ToString(), HasSubstr("no expert worker holds expert"));
}

TEST(ExpertDispatcherTest, ALayerMayBeAbandonedAndALateReplyIsHarmless) {
  const Routed routed(2);
  auto link = std::make_shared<FakeExpertLink>();
  link->set_held(true);
  auto dispatcher = MakeDispatcher({{1, link}});
  dispatcher->SetPlacement(MakePlacement(1));
  WaitedDispatch pending(dispatcher.get(), routed.batch());
  EXPECT_EQ(Counter(dispatcher->Counters(), "parts_live"), 1);
  pending.Abandon();
  EXPECT_EQ(Counter(dispatcher->Counters(), "parts_live"), 0);
  link->set_held(false);
  Output again(routed);
  ASSERT_TRUE(RunLayer(*dispatcher, routed, again).ok());
  EXPECT_EQ(again.values, routed.Expected());
}

TEST(ExpertDispatcherTest, AWaitGoesOnUnderTheNewestPlacement) {
  const Routed routed(6);
  // The newest is another one of the same gateway, or the first one of the next.
  for (const PlacementVersion newest : {PlacementVersion{1, 2}, {2, 1}}) {
    auto hung = std::make_shared<FakeExpertLink>();
    hung->set_held(true);
    auto dispatcher = MakeDispatcher({{1, hung}, {2, std::make_shared<FakeExpertLink>()}});
    dispatcher->SetPlacement(MakePlacement(1));
    WaitedDispatch pending(dispatcher.get(), routed.batch());
    ASSERT_TRUE(hung->WaitForRequests(1));
    Placement placement = MakePlacement(1, 1, 2);
    placement.version = newest;
    std::thread gateway([&] { dispatcher->SetPlacement(placement); });
    Output out(routed);
    // The hung worker has ten seconds to answer, but has left the placement.
    const auto start = std::chrono::steady_clock::now();
    EXPECT_TRUE(pending.Wait(CombineOne, out.view()).ok());
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
    gateway.join();
    EXPECT_EQ(out.values, routed.Expected());
  }
}

TEST(ExpertDispatcherTest, APlacementIsInUseUntilWhatWasSentUnderItHasBeenAnswered) {
  const Routed routed(6);
  auto held = std::make_shared<FakeExpertLink>();
  held->set_held(true);
  auto dispatcher = MakeDispatcher({{1, held}});
  EXPECT_EQ(dispatcher->oldest_in_use(), PlacementVersion{});
  dispatcher->SetPlacement(MakePlacement(1, 1, 1, 1));
  EXPECT_EQ(dispatcher->oldest_in_use(), (PlacementVersion{1, 1}));
  std::optional<WaitedDispatch> pending(std::in_place, dispatcher.get(), routed.batch());
  ASSERT_TRUE(held->WaitForRequests(1));
  dispatcher->SetPlacement(MakePlacement(1, 1, 1, 2));
  dispatcher->SetPlacement(MakePlacement(1, 1, 1, 3));
  EXPECT_EQ(dispatcher->oldest_in_use(), (PlacementVersion{1, 1}));
  held->set_held(false);
  Output out(routed);
  EXPECT_TRUE(pending->Wait(CombineOne, out.view()).ok());
  EXPECT_EQ(dispatcher->oldest_in_use(), (PlacementVersion{1, 3}));
}

TEST(ExpertDispatcherTest, PollHasSomethingToDoOnlyWhenItIsToldOrItsTimeHasCome) {
  const Routed routed(6);
  auto held = std::make_shared<FakeExpertLink>();
  held->set_held(true);
  auto dispatcher = MakeDispatcher({{1, held}});
  dispatcher->SetPlacement(MakePlacement(1));
  WaitedDispatch pending(dispatcher.get(), routed.batch());
  std::thread worker([&] {
    ASSERT_TRUE(held->WaitForRequests(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // in which nothing may be polled
    held->set_held(false);
  });
  Output out(routed);
  EXPECT_TRUE(pending.Wait(CombineOne, out.view()).ok());
  worker.join();
  EXPECT_LE(pending.polls(), 1);
  EXPECT_EQ(out.values, routed.Expected());
}

TEST(ExpertDispatcherTest, RowsWaitForTheFirstPlacement) {
  const Routed routed(3);
  auto dispatcher = MakeDispatcher({{1, std::make_shared<FakeExpertLink>()}});
  WaitedDispatch pending(dispatcher.get(), routed.batch());
  std::thread gateway([&] { dispatcher->SetPlacement(MakePlacement(1)); });
  Output out(routed);
  EXPECT_TRUE(pending.Wait(CombineOne, out.view()).ok());
  gateway.join();
  EXPECT_EQ(out.values, routed.Expected());
}

TEST(ExpertDispatcherTest, LinksToWorkersThatStayAreKeptAndOthersClosed) {
  std::map<WorkerId, int> made;
  std::map<WorkerId, std::weak_ptr<ExpertLink>> alive;
  ExpertDispatcher dispatcher(1, {}, [&](const Placement::Worker& worker) {
    ++made[worker.id];
    auto link = std::make_shared<FakeExpertLink>();
    alive[worker.id] = link;
    return link;
  });
  const Routed routed(8);
  Output out(routed);
  dispatcher.SetPlacement(MakePlacement(2, 1, 1, 1));
  ASSERT_TRUE(RunLayer(dispatcher, routed, out).ok());
  dispatcher.SetPlacement(MakePlacement(2, 1, 2, 2));
  ASSERT_TRUE(RunLayer(dispatcher, routed, out).ok());
  EXPECT_EQ(made, (std::map<WorkerId, int>{{1, 1}, {2, 1}, {3, 1}}));
  EXPECT_TRUE(alive[1].expired());
  EXPECT_FALSE(alive[2].expired());
  EXPECT_EQ(out.values, routed.Expected());
}

}  // namespace
}  // namespace tandem
