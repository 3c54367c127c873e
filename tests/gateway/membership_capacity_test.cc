// Membership as expert workers come and go: placements, copies, drains, memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "gateway/membership.h"
#include "tests/gateway/membership_house.h"

namespace tandem {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

// Workers that do at once what they are told, until they are told to be slow.
class ElasticTest : public MembershipTest {
 protected:
  void Start(int attention, int expert, int copies = 1) {
    MembershipOptions options = Options(attention, expert);
    options.expert_copies = copies;
    membership_.emplace(&config_, options);
    for (int i = 0; i < attention; ++i) Join(WorkerKind::kAttention, absl::StrCat("a:", i));
  }
  WorkerId Join(WorkerKind kind, const std::string& address, int64_t capacity = 1000,
                std::vector<bool> held = {}) {
    JoinRequest request = Request(kind, address);
    request.expert_capacity = capacity;
    request.held = std::move(held);
    const WorkerId id = *membership_->Join(request, now_);
    workers_[id].kind = kind;
    return id;
  }
  void Kill(WorkerId id) {
    workers_.erase(id);
    membership_->Leave(id);
  }
  // Until nothing happens any more.
  void Settle() {
    for (int round = 0; round < 50; ++round) {
      now_ += absl::Milliseconds(100);
      for (auto& [id, worker] : workers_) {
        if (!worker.slow) worker.placement = worker.told;
        MemberHealth health = Ready(worker.placement);
        health.ready = worker.placement.counter > 0;
        health.draining = worker.draining;
        health.expert_capacity = worker.capacity;
        health.failed = worker.failed;
        health.held = worker.held;
        health.load_idle = worker.load_idle;
        membership_->Heartbeat(id, health, now_);
      }
      for (const MembershipAction& action : membership_->Advance(now_)) {
        if (!workers_.contains(action.worker)) continue;
        Worker& worker = workers_.at(action.worker);
        if (action.kind == Kind::kLoad) worker.told = membership_->target().version;
        if (action.kind == Kind::kUse && worker.kind == WorkerKind::kAttention) {
          worker.told = membership_->placement().version;
        }
        if (action.kind == Kind::kUse && worker.kind == WorkerKind::kExpert) ++retirements_;
        if (action.kind == Kind::kDrain) worker.draining = true;
        if (action.kind == Kind::kLoad) ++orders_;
        if (action.kind == Kind::kRelease) released_.push_back(action.worker);
      }
    }
  }
  // Of the placement in use.
  int NumHeld(WorkerId id) const {
    int n = 0;
    for (const auto& holders : membership_->placement().holders) {
      n += static_cast<int>(std::count(holders.begin(), holders.end(), id));
    }
    return n;
  }

  struct Worker {
    WorkerKind kind = WorkerKind::kExpert;
    PlacementVersion told, placement;
    bool slow = false, draining = false;
    int64_t capacity = 1000;
    PlacementVersion failed;  // for want of memory
    std::vector<bool> held;   // then
    absl::Duration load_idle;
  };
  std::optional<Membership> membership_;
  std::map<WorkerId, Worker> workers_;
  std::vector<WorkerId> released_;
  int retirements_ = 0;
  int orders_ = 0;  // to load
  absl::Time now_ = kStart;
};

// Two layers of eight experts.
constexpr int kExperts = 16;

TEST_F(ElasticTest, WorkersThatJoinTakeTheirSharesAndThoseThatDieLeaveThem) {
  Start(1, 1);
  std::vector<WorkerId> experts = {Join(WorkerKind::kExpert, "e:0")};
  Settle();
  EXPECT_TRUE(membership_->serving());
  EXPECT_TRUE(membership_->target().urgent);  // nothing could be served before
  EXPECT_EQ(NumHeld(experts[0]), kExperts);
  for (int i = 1; i < 4; ++i) experts.push_back(Join(WorkerKind::kExpert, absl::StrCat("e:", i)));
  Settle();
  for (const WorkerId id : experts) EXPECT_EQ(NumHeld(id), kExperts / 4);
  EXPECT_EQ(membership_->placement().version, membership_->target().version);
  EXPECT_FALSE(membership_->target().urgent);
  Kill(experts[1]);
  EXPECT_FALSE(membership_->serving());
  Settle();
  EXPECT_TRUE(membership_->serving());
  Kill(experts[2]);
  Kill(experts[3]);
  Settle();
  EXPECT_TRUE(membership_->serving());  // though there are fewer than there were to begin with
  EXPECT_EQ(NumHeld(experts[0]), kExperts);
  EXPECT_EQ(membership_->Detail(), "all workers are ready");
}

TEST_F(ElasticTest, TheOldPlacementIsInUseUntilTheNewOneIsLoaded) {
  Start(1, 1);
  const WorkerId first = Join(WorkerKind::kExpert, "e:0");
  Settle();
  const PlacementVersion old = membership_->placement().version;
  const int retirements = retirements_;
  const WorkerId second = Join(WorkerKind::kExpert, "e:1");
  workers_[second].slow = true;
  Settle();
  EXPECT_EQ(membership_->placement().version, old);
  EXPECT_NE(membership_->target().version, old);
  EXPECT_EQ(retirements_, retirements);  // `first` keeps what it is to give away
  EXPECT_TRUE(membership_->serving());
  EXPECT_EQ(membership_->Detail(), "experts are moving");
  EXPECT_EQ(membership_->StateOf(membership_->members().at(second)), MemberState::kLoading);
  EXPECT_EQ(membership_->StateOf(membership_->members().at(first)), MemberState::kReady);
  Kill(second);  // before it has loaded
  Settle();
  EXPECT_EQ(NumHeld(first), kExperts);
  EXPECT_EQ(membership_->placement().version, membership_->target().version);
}

// Those that leave among them: they have it until others do.
TEST_F(ElasticTest, AnOrderToLoadNamesWhoHasWhat) {
  Start(1, 1);
  const WorkerId first = Join(WorkerKind::kExpert, "e:0");
  Settle();
  const auto& sources = [this]() -> const std::vector<Placement::Source>& {
    return membership_->target().sources;
  };
  EXPECT_TRUE(sources().empty());  // nobody had anything
  const std::vector<bool> all = membership_->target().GivenTo(first);
  const WorkerId second = Join(WorkerKind::kExpert, "e:1");
  workers_[second].slow = true;
  Settle();
  ASSERT_EQ(sources().size(), 1u);
  EXPECT_EQ(sources()[0].worker, (Placement::Worker{first, "e:0", 1}));
  EXPECT_EQ(sources()[0].experts, all);
  EXPECT_TRUE(membership_->placement().sources.empty());
  workers_[second].slow = false;
  Settle();
  EXPECT_EQ(membership_->placement().version, membership_->target().version);
  EXPECT_TRUE(membership_->placement().sources.empty());
  workers_[first].draining = true;
  Settle();
  ASSERT_EQ(sources().size(), 2u);
  EXPECT_EQ(sources()[0].worker.id, first);
  EXPECT_EQ(sources()[1].worker.id, second);
  EXPECT_EQ(membership_->target().GivenTo(first), std::vector<bool>(all.size(), false));
}

TEST_F(ElasticTest, WithSecondCopiesALossStopsNothing) {
  Start(1, 1, 2);
  std::vector<WorkerId> experts;
  for (int i = 0; i < 3; ++i) experts.push_back(Join(WorkerKind::kExpert, absl::StrCat("e:", i)));
  Settle();
  for (const auto& holders : membership_->placement().holders) {
    EXPECT_THAT(holders.size(), testing::AnyOf(0, 2));
  }
  Kill(experts[0]);
  EXPECT_TRUE(membership_->serving());
  Settle();
  for (const auto& holders : membership_->placement().holders) {
    EXPECT_THAT(holders, testing::Not(testing::Contains(experts[0])));
    EXPECT_THAT(holders.size(), testing::AnyOf(0, 2));
  }
}

TEST_F(ElasticTest, OneThatDrainsMayEndOnceOthersHaveWhatItHad) {
  Start(1, 2);
  const WorkerId goes = Join(WorkerKind::kExpert, "e:0");
  const WorkerId stays = Join(WorkerKind::kExpert, "e:1");
  Settle();
  workers_[goes].draining = true;
  workers_[stays].slow = true;
  Settle();
  EXPECT_THAT(released_, IsEmpty());
  EXPECT_EQ(membership_->StateOf(membership_->members().at(goes)), MemberState::kDraining);
  workers_[stays].slow = false;
  Settle();
  EXPECT_EQ(released_, std::vector<WorkerId>{goes});
  EXPECT_EQ(NumHeld(goes), 0);
  EXPECT_EQ(NumHeld(stays), kExperts);
  EXPECT_TRUE(membership_->serving());
}

// Neither is a reason for the others to load or let go of anything.
TEST_F(ElasticTest, WhoHoldsNothingComesAndGoesWithoutANewPlacement) {
  Start(1, 2);
  const WorkerId goes = Join(WorkerKind::kExpert, "e:0");
  const WorkerId stays = Join(WorkerKind::kExpert, "e:1");
  Settle();
  workers_[goes].draining = true;
  Settle();
  ASSERT_EQ(released_, std::vector<WorkerId>{goes});
  const PlacementVersion version = membership_->placement().version;
  Kill(goes);
  Settle();
  EXPECT_EQ(membership_->target().version, version);
  EXPECT_EQ(membership_->target().Find(goes), nullptr);
  EXPECT_EQ(membership_->placement().workers, membership_->target().workers);
  const WorkerId empty = Join(WorkerKind::kExpert, "e:2", 0);
  workers_[empty].capacity = 0;
  Settle();
  EXPECT_EQ(membership_->target().version, version);
  EXPECT_EQ(membership_->StateOf(membership_->members().at(empty)), MemberState::kReady);
  Kill(empty);
  Join(WorkerKind::kExpert, "e:3");
  Settle();
  EXPECT_EQ(NumHeld(stays), kExperts / 2);
}

TEST_F(ElasticTest, TheLastOneThatDrainsGoesOnUntilAnotherComes) {
  Start(1, 1);
  const WorkerId goes = Join(WorkerKind::kExpert, "e:0");
  Settle();
  workers_[goes].draining = true;
  Settle();
  EXPECT_THAT(released_, IsEmpty());
  EXPECT_TRUE(membership_->serving());
  Join(WorkerKind::kExpert, "e:1");
  Settle();
  EXPECT_EQ(released_, std::vector<WorkerId>{goes});
}

TEST_F(ElasticTest, DrainingByHand) {
  Start(1, 2);
  const WorkerId first = Join(WorkerKind::kExpert, "e:0", 10);
  const WorkerId second = Join(WorkerKind::kExpert, "e:1", 10);
  Settle();
  EXPECT_EQ(membership_->Drain(99).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(membership_->Drain(1).code(), absl::StatusCode::kFailedPrecondition);  // the only one
  const absl::Status no_room = membership_->Drain(first);
  EXPECT_EQ(no_room.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(no_room.message()), HasSubstr("holds 10"));
  EXPECT_EQ(membership_->StateOf(membership_->members().at(first)), MemberState::kReady);
  Join(WorkerKind::kExpert, "e:2", 10);
  EXPECT_TRUE(membership_->Drain(first).ok());
  Settle();
  EXPECT_EQ(released_, std::vector<WorkerId>{first});
  EXPECT_GT(NumHeld(second), 0);
}

TEST_F(ElasticTest, DrainingAnAttentionWorkerByHand) {
  Start(2, 1);
  Join(WorkerKind::kExpert, "e:0");
  Settle();
  EXPECT_TRUE(membership_->Drain(1).ok());
  Settle();
  EXPECT_EQ(membership_->StateOf(membership_->members().at(1)), MemberState::kDraining);
  EXPECT_TRUE(membership_->Drain(1).ok());  // again
  EXPECT_EQ(membership_->Drain(2).code(), absl::StatusCode::kFailedPrecondition);
}

// The others do without it, and it goes on with what it has; once it gets on, it counts again.
TEST_F(ElasticTest, AWorkerThatDoesNotGetOnWithLoadingIsNotWaitedFor) {
  Start(1, 1);
  const WorkerId first = Join(WorkerKind::kExpert, "e:0");
  const WorkerId second = Join(WorkerKind::kExpert, "e:1");
  Settle();
  const WorkerId third = Join(WorkerKind::kExpert, "e:2");
  workers_[second].slow = true;
  Settle();
  EXPECT_EQ(membership_->Detail(), "experts are moving");
  workers_[second].load_idle = absl::Seconds(60);
  Settle();
  EXPECT_EQ(membership_->Detail(), "experts are moving");
  workers_[second].load_idle = absl::Seconds(61);
  Settle();
  EXPECT_EQ(membership_->placement().version, membership_->target().version);
  EXPECT_GT(NumHeld(first), 0);
  EXPECT_GT(NumHeld(second), 0);
  EXPECT_GT(NumHeld(third), 0);
  EXPECT_EQ(membership_->StateOf(membership_->members().at(second)), MemberState::kStalled);
  EXPECT_THAT(membership_->Detail(), HasSubstr("expert worker at e:1 does not get on"));
  // What it has stays in use when another goes.
  Kill(first);
  Settle();
  EXPECT_TRUE(membership_->serving());
  EXPECT_EQ(membership_->placement().version, membership_->target().version);

  workers_[second].load_idle = absl::ZeroDuration();  // but it has not carried out an order yet
  Settle();
  EXPECT_EQ(membership_->StateOf(membership_->members().at(second)), MemberState::kStalled);
  workers_[second].slow = false;
  Settle();
  EXPECT_EQ(membership_->StateOf(membership_->members().at(second)), MemberState::kReady);
  EXPECT_EQ(NumHeld(second), kExperts / 2);
}

TEST_F(ElasticTest, TheFirstPlacementDoesWithoutWhoDoesNotGetOn) {
  Start(2, 2);
  const WorkerId stuck = Join(WorkerKind::kExpert, "e:0");
  const WorkerId other = Join(WorkerKind::kExpert, "e:1");
  for (const WorkerId id : {WorkerId{1}, stuck}) {  // an attention worker as well
    workers_[id].slow = true;
    workers_[id].load_idle = absl::Minutes(5);
  }
  Settle();
  EXPECT_TRUE(membership_->serving());
  EXPECT_EQ(NumHeld(other), kExperts);
  workers_[stuck].slow = false;
  workers_[stuck].load_idle = absl::ZeroDuration();
  Settle();
  EXPECT_EQ(NumHeld(stuck), kExperts / 2);
}

TEST_F(ElasticTest, AWorkerThatFindsLessMemoryGetsFewerExperts) {
  Start(1, 2);
  const WorkerId small = Join(WorkerKind::kExpert, "e:0");
  Join(WorkerKind::kExpert, "e:1");
  workers_[small].slow = true;
  Settle();
  EXPECT_FALSE(membership_->serving());
  EXPECT_THAT(membership_->Detail(), HasSubstr("workers load their weights"));
  workers_[small].capacity = 3;
  workers_[small].slow = false;
  Settle();
  EXPECT_LE(NumHeld(small), 3);
  EXPECT_TRUE(membership_->serving());
}

// What it had loaded of an order that it could not carry out is gone: it is told once more, even if
// the same.
TEST_F(ElasticTest, AWorkerThatCouldNotLoadIsToldAnew) {
  Start(1, 1);
  const WorkerId first = Join(WorkerKind::kExpert, "e:0");
  Settle();
  const WorkerId second = Join(WorkerKind::kExpert, "e:1");
  workers_[second].slow = true;
  Settle();
  const int orders = orders_;
  workers_[second].capacity = kExperts / 2;  // as many as it is to have
  workers_[second].failed = membership_->target().version;
  Settle();
  EXPECT_GT(orders_, orders);
  EXPECT_EQ(NumHeld(first), kExperts);
  workers_[second].slow = false;
  Settle();
  EXPECT_EQ(NumHeld(second), kExperts / 2);
}

// Not from what is in use: it may have more, of orders of which nothing came, and no room beside
// it.
TEST_F(ElasticTest, AWorkerWithoutMemoryIsPlannedForByWhatItHas) {
  Start(1, 2);
  std::vector<bool> held(3 * 8);
  for (const int i : {9, 11, 14, 16, 19, 22}) held[i] = true;
  std::vector<bool> all(3 * 8);
  std::fill(all.begin() + 8, all.end(), true);
  Join(WorkerKind::kExpert, "e:0", 1000, all);
  const WorkerId full = Join(WorkerKind::kExpert, "e:1", 7, held);
  workers_[full].capacity = 7;
  workers_[full].slow = true;
  Settle();
  ASSERT_FALSE(membership_->serving());
  workers_[full].capacity = 6;
  workers_[full].failed = membership_->target().version;
  workers_[full].held = held;
  workers_[full].slow = false;
  Settle();
  EXPECT_TRUE(membership_->serving());
  EXPECT_EQ(membership_->placement().GivenTo(full), held);
}

// Those that stay hold more than their parts until what nobody had is back in use.
TEST_F(ElasticTest, WhatNobodyHoldsComesBeforeWhatIsBetter) {
  Start(1, 1);
  std::vector<WorkerId> experts;
  for (int i = 0; i < 4; ++i) experts.push_back(Join(WorkerKind::kExpert, absl::StrCat("e:", i)));
  Settle();
  const Placement before = membership_->placement();
  Join(WorkerKind::kExpert, "e:4");
  Kill(experts[0]);
  membership_->Advance(now_);
  EXPECT_TRUE(membership_->target().urgent);
  for (size_t i = 0; i < before.holders.size(); ++i) {
    if (before.holders[i].empty() || before.holders[i].front() == experts[0]) continue;
    EXPECT_EQ(membership_->target().holders[i], before.holders[i]);
  }
  Settle();
  for (size_t i = 1; i < experts.size(); ++i) EXPECT_EQ(NumHeld(experts[i]), kExperts / 4);
}

TEST_F(ElasticTest, TooLittleMemoryIsSaid) {
  Start(1, 1);
  Join(WorkerKind::kExpert, "e:0", 10);
  Settle();
  EXPECT_FALSE(membership_->serving());
  EXPECT_THAT(membership_->Detail(), HasSubstr("the model has 16 routed experts"));
  Join(WorkerKind::kExpert, "e:1", 6);
  Settle();
  EXPECT_TRUE(membership_->serving());
  EXPECT_THAT(membership_->plan_error(), IsEmpty());
}

TEST_F(ElasticTest, WorkersThatShareAMemoryHaveEqualPartsOfIt) {
  Start(1, 1, 2);
  std::vector<WorkerId> experts;
  for (int i = 0; i < 2; ++i) {
    JoinRequest request = Request(WorkerKind::kExpert, absl::StrCat("e:", i));
    request.expert_capacity = 20;
    request.memory = "this machine";
    experts.push_back(*membership_->Join(request, now_));
    workers_[experts.back()] = {};
  }
  Settle();
  for (const WorkerId id : experts) EXPECT_EQ(NumHeld(id), 10);
}

// Workers that outlive their gateway bring what they have: nothing is loaded twice, though the
// first placement could have been made with the first of them.
TEST_F(ElasticTest, ANewGatewayTakesWorkersAsTheyAre) {
  Start(1, 1);
  std::vector<bool> even(3 * 8), odd(3 * 8);
  for (int i = 8; i < 24; ++i) (i % 2 == 0 ? even : odd)[i] = true;
  const WorkerId first = Join(WorkerKind::kExpert, "e:0", 1000, even);
  EXPECT_THAT(membership_->Advance(now_), IsEmpty());
  now_ += absl::Seconds(1);
  const WorkerId second = Join(WorkerKind::kExpert, "e:1", 1000, odd);
  membership_->Advance(now_);
  EXPECT_EQ(membership_->target().version.counter, 0);
  Settle();
  for (int i = 8; i < 24; ++i) {
    EXPECT_EQ(membership_->placement().holders[i],
              std::vector<WorkerId>{i % 2 == 0 ? first : second});
  }
}

TEST_F(ElasticTest, CopiesFollowTheLoad) {
  Start(1, 1, 2);
  const WorkerId first = Join(WorkerKind::kExpert, "e:0", 10);
  Join(WorkerKind::kExpert, "e:1", 10);
  Settle();
  EXPECT_TRUE(membership_->serving());
  for (const int hot : {11, 20}) {
    for (int minute = 0; minute < 5; ++minute) {
      MemberHealth health = Ready(workers_[first].placement);
      health.expert_capacity = 10;
      health.expert_tokens.assign(24, 1);
      health.expert_tokens[hot] = 1000;
      membership_->Heartbeat(first, health, now_);
      workers_[first].capacity = 10;
      now_ += absl::Seconds(61);
      Settle();
    }
    EXPECT_EQ(membership_->placement().holders[hot].size(), 2) << hot;
  }
}

}  // namespace
}  // namespace tandem
