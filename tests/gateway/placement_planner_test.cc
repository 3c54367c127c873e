#include "gateway/placement_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

using testing::HasSubstr;

// Layers 2 and 4 have experts.
ModelConfig Config(int experts) {
  ModelConfig config;
  config.num_layers = 5;
  config.num_experts = experts;
  config.first_k_dense_replace = 1;
  config.moe_layer_freq = 2;
  return config;
}

// V2-Lite's 26 layers of 64 experts.
ModelConfig Lite() {
  ModelConfig config;
  config.num_layers = 27;
  config.num_experts = 64;
  config.first_k_dense_replace = 1;
  return config;
}

ExpertHost Host(WorkerId id, int64_t capacity = std::numeric_limits<int64_t>::max()) {
  ExpertHost host;
  host.worker.id = id;
  host.capacity = capacity;
  return host;
}

// Hosts that have carried out what `plan` says, and let go of everything else.
void Settle(const Placement& placement, std::vector<ExpertHost>& hosts) {
  for (ExpertHost& host : hosts) {
    host.held.assign(placement.holders.size(), false);
    for (size_t i = 0; i < placement.holders.size(); ++i) {
      const auto& holders = placement.holders[i];
      host.held[i] = std::find(holders.begin(), holders.end(), host.worker.id) != holders.end();
    }
  }
}

int64_t Held(const ExpertHost& host) {
  return std::count(host.held.begin(), host.held.end(), true);
}

// What hosts have to load for it.
int64_t Moves(const Placement& placement, const std::vector<ExpertHost>& hosts) {
  std::vector<ExpertHost> after = hosts;
  Settle(placement, after);
  int64_t moves = 0;
  for (size_t h = 0; h < hosts.size(); ++h) {
    for (size_t i = 0; i < after[h].held.size(); ++i) {
      moves += after[h].held[i] && (hosts[h].held.empty() || !hosts[h].held[i]) ? 1 : 0;
    }
  }
  return moves;
}

std::map<WorkerId, int> Owned(const Placement& placement, int layer) {
  std::map<WorkerId, int> owned;
  for (int expert = 0; expert < placement.num_experts; ++expert) {
    const auto& holders = placement.Holders(layer, expert);
    if (!holders.empty()) ++owned[holders.front()];
  }
  return owned;
}

class PlacementPlannerTest : public testing::Test {
 protected:
  Placement PlanAndSettle() {
    const Placement current = current_;
    request_.current = &current;
    ++request_.version.counter;
    for (int round = 0;; ++round) {
      const auto plan = PlanPlacement(request_);
      EXPECT_TRUE(plan.ok()) << plan.status();
      if (!plan.ok()) return {};
      moves_ += Moves(plan->placement, request_.hosts);
      Settle(plan->placement, request_.hosts);
      current_ = plan->placement;
      EXPECT_LT(round, 20);
      if (!plan->deferred || round == 20) return current_;
    }
  }

  ModelConfig config_ = Lite();
  PlanRequest request_{&config_, {}, {}, nullptr, 1, {1, 0}};
  Placement current_;
  int64_t moves_ = 0;
};

TEST_F(PlacementPlannerTest, EveryExpertOfEveryMoeLayerHasOneHolderAndSharesAreEqual) {
  for (int num_hosts : {1, 2, 3, 4, 7, 64, 70, 256}) {
    const ModelConfig config = Config(64);
    PlanRequest request{&config, {}, {}, nullptr, 1, {1, 2}};
    for (int i = 0; i < num_hosts; ++i) request.hosts.push_back(Host(10 + i));
    const auto plan = PlanPlacement(request);
    ASSERT_TRUE(plan.ok());
    EXPECT_FALSE(plan->deferred);
    EXPECT_EQ(plan->placement.version, (PlacementVersion{1, 2}));
    EXPECT_EQ(plan->placement.workers.size(), num_hosts);
    for (int layer = 0; layer < 5; ++layer) {
      for (int expert = 0; expert < 64; ++expert) {
        ASSERT_EQ(plan->placement.Holders(layer, expert).size(), layer == 2 || layer == 4 ? 1 : 0);
      }
      for (const auto& [worker, count] : Owned(plan->placement, layer)) {
        EXPECT_GE(count, 64 / num_hosts);
        EXPECT_LE(count, (64 + num_hosts - 1) / num_hosts);
      }
    }
    // What cannot be shared evenly within a layer is shared over the layers.
    Settle(plan->placement, request.hosts);
    const auto less = [](const ExpertHost& a, const ExpertHost& b) { return Held(a) < Held(b); };
    const auto [least, most] =
        std::minmax_element(request.hosts.begin(), request.hosts.end(), less);
    EXPECT_LE(Held(*most) - Held(*least), 1);
  }
}

TEST_F(PlacementPlannerTest, NothingMovesWhenNothingHasChanged) {
  for (const int copies : {1, 2, 3}) {
    request_ = {&config_, {}, {}, nullptr, copies, {1, 0}};
    current_ = {};
    for (int i = 0; i < 5; ++i) request_.hosts.push_back(Host(1 + i, i == 3 ? 300 : 900));
    const Placement first = PlanAndSettle();
    moves_ = 0;
    const Placement second = PlanAndSettle();
    EXPECT_EQ(moves_, 0);
    EXPECT_EQ(second.holders, first.holders);
  }
}

TEST_F(PlacementPlannerTest, AWorkerThatJoinsTakesItsShareAndNothingElseMoves) {
  for (int n = 1; n <= 8; ++n) {
    request_.hosts.push_back(Host(n));
    moves_ = 0;
    PlanAndSettle();
    EXPECT_LE(moves_, 26 * 64 / n) << n;
    EXPECT_GE(moves_, 26 * (64 / n)) << n;
  }
}

TEST_F(PlacementPlannerTest, WhatALostWorkerHeldIsSharedAndNothingElseMoves) {
  for (int n = 1; n <= 4; ++n) request_.hosts.push_back(Host(n));
  PlanAndSettle();
  request_.hosts.erase(request_.hosts.begin() + 1);
  moves_ = 0;
  const Placement placement = PlanAndSettle();
  EXPECT_EQ(moves_, 26 * 16);
  for (int layer = 1; layer < 27; ++layer) {
    for (const auto& [worker, count] : Owned(placement, layer)) {
      EXPECT_NEAR(count, 64.0 / 3, 1);
    }
  }
}

TEST_F(PlacementPlannerTest, OneThatLeavesKeepsNothingThatOthersCanHave) {
  for (int n = 1; n <= 3; ++n) request_.hosts.push_back(Host(n));
  PlanAndSettle();
  request_.hosts[0].leaving = true;
  moves_ = 0;
  PlanAndSettle();
  EXPECT_EQ(Held(request_.hosts[0]), 0);
  EXPECT_NEAR(static_cast<double>(moves_), 26 * 64.0 / 3, 26);
}

TEST_F(PlacementPlannerTest, SecondCopiesAreAtOtherWorkersAndALossMovesNoOwner) {
  request_.max_copies = 2;
  for (int n = 1; n <= 3; ++n) request_.hosts.push_back(Host(n));
  const Placement placement = PlanAndSettle();
  for (int layer = 1; layer < 27; ++layer) {
    for (int expert = 0; expert < 64; ++expert) {
      const auto& holders = placement.Holders(layer, expert);
      ASSERT_EQ(holders.size(), 2);
      EXPECT_NE(holders[0], holders[1]);
    }
  }
  request_.hosts.pop_back();
  Placement current = current_;
  request_.current = &current;
  const auto plan = PlanPlacement(request_);
  ASSERT_TRUE(plan.ok());
  int moved = 0;
  for (size_t i = 0; i < plan->placement.holders.size(); ++i) {
    if (plan->placement.holders[i].empty()) continue;
    const WorkerId owner = plan->placement.holders[i].front();
    moved += request_.hosts[owner - 1].held[i] ? 0 : 1;
  }
  EXPECT_LE(moved, 26);  // the others go on at once, from the copy
}

TEST_F(PlacementPlannerTest, SpareMemoryGoesToHotExpertsFirst) {
  request_.max_copies = 2;
  const int64_t all = 26 * 64;
  request_.hosts = {Host(1, all / 2 + 200), Host(2, all / 2 + 200)};
  request_.load.assign(27 * 64, 1);
  for (int layer = 1; layer < 27; ++layer) request_.load[layer * 64 + layer] = 50;
  const Placement placement = PlanAndSettle();
  for (int layer = 1; layer < 27; ++layer) {
    EXPECT_EQ(placement.Holders(layer, layer).size(), 2) << layer;
  }
  for (const ExpertHost& host : request_.hosts) EXPECT_EQ(Held(host), host.capacity);

  // Others become hot: the copies follow, though there is room only once the old ones are gone.
  request_.load.assign(27 * 64, 1);
  for (int layer = 1; layer < 27; ++layer) request_.load[layer * 64 + 63 - layer] = 50;
  const Placement later = PlanAndSettle();
  for (int layer = 1; layer < 27; ++layer) {
    EXPECT_EQ(later.Holders(layer, 63 - layer).size(), 2) << layer;
  }
}

TEST_F(PlacementPlannerTest, OwnersShareTheMeasuredWork) {
  request_.hosts = {Host(1), Host(2)};
  request_.load.assign(27 * 64, 1);
  for (int layer = 1; layer < 27; ++layer) request_.load[layer * 64] = 128;
  const Placement placement = PlanAndSettle();
  for (int layer = 1; layer < 27; ++layer) {
    auto owned = Owned(placement, layer);
    const WorkerId hot = placement.Holders(layer, 0)[0];
    EXPECT_LT(owned[hot], owned[3 - hot]);
  }
}

TEST_F(PlacementPlannerTest, TooLittleMemoryIsSaidInNumbers) {
  request_.hosts = {Host(1, 600), Host(2, 1000)};
  const auto plan = PlanPlacement(request_);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("1664"));
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("1600"));
  request_.hosts = {};
  EXPECT_EQ(PlanPlacement(request_).status().code(), absl::StatusCode::kInvalidArgument);
  const ModelConfig dense = Config(0);
  request_.config = &dense;
  EXPECT_TRUE(PlanPlacement(request_).ok());
}

// A third worker was lost whose experts only fit where copies of others are now.
TEST_F(PlacementPlannerTest, CopiesMakeRoomForExpertsThatNobodyHas) {
  request_.max_copies = 2;
  for (int n = 1; n <= 3; ++n) request_.hosts.push_back(Host(n, 26 * 32));
  PlanAndSettle();
  for (const ExpertHost& host : request_.hosts) EXPECT_EQ(Held(host), 26 * 32);
  request_.hosts.pop_back();
  const Placement placement = PlanAndSettle();
  for (int layer = 1; layer < 27; ++layer) {
    for (int expert = 0; expert < 64; ++expert) {
      EXPECT_EQ(placement.Holders(layer, expert).size(), 1);
    }
  }
}

// One that joins on the machine of one that is full gets its part as fast as that lets go.
TEST_F(PlacementPlannerTest, HostsThatShareAMemoryNeverHoldMoreThanItTogether) {
  const int64_t all = 26 * 64, room = all + 200;
  request_.hosts = {Host(1, room)};
  PlanAndSettle();
  request_.hosts.push_back(Host(2));
  for (ExpertHost& host : request_.hosts) {
    host.capacity = room / 2;
    host.memory = "a machine";
    host.memory_capacity = room;
  }
  for (int round = 0; round < 20; ++round) {
    Placement current = current_;
    request_.current = &current;
    const auto plan = PlanPlacement(request_);
    ASSERT_TRUE(plan.ok());
    EXPECT_LE(all + Moves(plan->placement, request_.hosts), room);
    Settle(plan->placement, request_.hosts);
    current_ = plan->placement;
    if (!plan->deferred) break;
    EXPECT_LT(round, 19);
  }
  EXPECT_EQ(Held(request_.hosts[0]), all / 2);
  EXPECT_EQ(Held(request_.hosts[1]), all / 2);
}

TEST_F(PlacementPlannerTest, ARepairAddsWhatIsMissingAndMovesNothing) {
  for (int n = 1; n <= 4; ++n) request_.hosts.push_back(Host(n));
  PlanAndSettle();
  request_.hosts.erase(request_.hosts.begin());
  Placement current = current_;
  request_.current = &current;
  request_.repair = true;
  const auto plan = PlanPlacement(request_);
  ASSERT_TRUE(plan.ok());
  EXPECT_TRUE(plan->deferred);
  EXPECT_EQ(Moves(plan->placement, request_.hosts), 26 * 16);
  for (size_t i = 0; i < current.holders.size(); ++i) {
    if (current.holders[i].empty()) continue;
    ASSERT_EQ(plan->placement.holders[i].size(), 1);
    if (current.holders[i].front() != 1) {
      EXPECT_EQ(plan->placement.holders[i], current.holders[i]);
    }
  }
}

TEST_F(PlacementPlannerTest, PlacementOfOneGivesAllToOne) {
  const Placement placement = PlacementOfOne(config_, {7, "x", 9}, {1, 1});
  EXPECT_EQ(placement.workers, (std::vector<Placement::Worker>{{7, "x", 9}}));
  EXPECT_TRUE(placement.Holders(0, 0).empty());
  EXPECT_EQ(placement.Holders(26, 63), std::vector<WorkerId>{7});
}

// Workers come, go, shrink and grow, and experts get hot and cold, at random.
TEST_F(PlacementPlannerTest, HoldsItsPromisesWhateverHappens) {
  for (int seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    const ModelConfig config = Config(8 + 8 * draw(4));
    const int64_t total = 2 * config.num_experts;
    PlanRequest request{&config, {}, {}, nullptr, 1 + draw(3), {1, 0}};
    Placement current;
    WorkerId next = 1;
    for (int round = 0; round < 40; ++round) {
      const int what = draw(6);
      if (what <= 1 || request.hosts.empty()) {
        request.hosts.push_back(Host(next++, draw(3) == 0 ? draw(60) : total));
      } else if (what == 2) {
        request.hosts.erase(request.hosts.begin() + draw(static_cast<int>(request.hosts.size())));
      } else if (what == 3) {
        request.hosts[draw(static_cast<int>(request.hosts.size()))].leaving ^= true;
      } else if (what == 4) {
        request.load.assign(5 * config.num_experts, 0);
        for (double& load : request.load) load = draw(100);
      }
      request.current = &current;
      const auto plan = PlanPlacement(request);
      int64_t room = 0;
      for (const ExpertHost& host : request.hosts) {
        if (!host.leaving) room += std::min(host.capacity, total);
      }
      ASSERT_EQ(plan.ok(), room >= total);
      if (!plan.ok()) continue;
      std::vector<ExpertHost> after = request.hosts;
      Settle(plan->placement, after);
      for (size_t h = 0; h < after.size(); ++h) {
        int64_t in_memory = 0;
        for (size_t i = 0; i < after[h].held.size(); ++i) {
          in_memory +=
              after[h].held[i] || (!request.hosts[h].held.empty() && request.hosts[h].held[i]);
        }
        // Memory that shrank or filled before is no fault of the plan.
        EXPECT_LE(in_memory, std::max(request.hosts[h].capacity, Held(request.hosts[h])));
      }
      for (int layer = 0; layer < 5; ++layer) {
        for (int expert = 0; expert < config.num_experts; ++expert) {
          const auto& holders = plan->placement.Holders(layer, expert);
          const size_t i = static_cast<size_t>(layer) * config.num_experts + expert;
          if (!config.IsMoeLayer(layer)) {
            EXPECT_TRUE(holders.empty());
            continue;
          }
          EXPECT_EQ(std::set<WorkerId>(holders.begin(), holders.end()).size(), holders.size());
          EXPECT_LE(holders.size(), static_cast<size_t>(request.max_copies));
          if (holders.empty()) {
            EXPECT_TRUE(plan->deferred);
            for (const ExpertHost& host : request.hosts) {
              EXPECT_FALSE(!host.held.empty() && host.held[i]);  // nobody has it any more
            }
          }
        }
      }
      current = plan->placement;
      request.hosts = std::move(after);
    }
    // Left alone, in a few rounds every expert has a holder that stays.
    bool feasible = true;
    for (int round = 0; feasible && round < 8; ++round) {
      request.current = &current;
      const auto plan = PlanPlacement(request);
      feasible = plan.ok();
      if (!feasible) break;
      Settle(plan->placement, request.hosts);
      current = plan->placement;
      if (!plan->deferred) break;
    }
    for (const int layer : {2, 4}) {
      for (int expert = 0; feasible && expert < config.num_experts; ++expert) {
        const auto& holders = current.Holders(layer, expert);
        EXPECT_TRUE(std::any_of(holders.begin(), holders.end(),
                                [&](WorkerId id) {
                                  return std::any_of(request.hosts.begin(), request.hosts.end(),
                                                     [id](const ExpertHost& host) {
                                                       return host.worker.id == id && !host.leaving;
                                                     });
                                }))
            << layer << " " << expert;
      }
    }
  }
}

int OwnedInAll(const Placement& placement, WorkerId worker) {
  int owned = 0;
  for (int layer = 0; layer < placement.num_layers; ++layer) {
    owned += Owned(placement, layer)[worker];
  }
  return owned;
}

TEST_F(PlacementPlannerTest, MoreHostsThanALayerHasExpertsShareTheHotOnesOfAllLayers) {
  constexpr int kHosts = 128;
  for (int i = 0; i < kHosts; ++i) request_.hosts.push_back(Host(10 + i));
  request_.load.assign(static_cast<size_t>(config_.num_layers) * 64, 1);
  for (int layer = 1; layer < config_.num_layers; ++layer) request_.load[layer * 64 + 5] = 1000;
  const Placement placement = PlanAndSettle();
  std::set<WorkerId> owners;
  for (int layer = 1; layer < config_.num_layers; ++layer) {
    EXPECT_TRUE(owners.insert(placement.Holders(layer, 5).front()).second) << layer;
  }
}

TEST_F(PlacementPlannerTest, AHostMoreThanALayerHasExpertsGetsItsPartAndThenNothingMoves) {
  for (int i = 0; i < 64; ++i) request_.hosts.push_back(Host(10 + i));
  PlanAndSettle();
  for (const WorkerId id : {WorkerId{80}, WorkerId{81}, WorkerId{82}}) {
    request_.hosts.push_back(Host(id));
    moves_ = 0;
    const Placement placement = PlanAndSettle();
    // 1,664 experts: 25 each.
    EXPECT_GE(OwnedInAll(placement, id), 22);
    EXPECT_LE(moves_, 50) << "at most as much again";
    for (const ExpertHost& host : request_.hosts) {
      EXPECT_GE(OwnedInAll(placement, host.worker.id), 22) << host.worker.id;
      EXPECT_LE(OwnedInAll(placement, host.worker.id), 26) << host.worker.id;
    }
    moves_ = 0;
    EXPECT_EQ(PlanAndSettle().holders, placement.holders);
    EXPECT_EQ(moves_, 0);
  }
}

}  // namespace
}  // namespace tandem
