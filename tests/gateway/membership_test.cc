#include "gateway/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/gateway/membership_house.h"

namespace tandem {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

TEST_F(MembershipTest, ServesOnceExpertsHaveLoadedAndAttentionWorkersUseThePlacement) {
  Membership membership(&config_, Options(1, 2));
  const WorkerId a = *membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart);
  const WorkerId e1 = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  EXPECT_TRUE(membership.Advance(kStart).empty());
  EXPECT_EQ(membership.Detail(), "1 of 1 attention, 1 of 2 expert");
  const WorkerId e2 = *membership.Join(Request(WorkerKind::kExpert, "e:2"), kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), (std::vector<Kind>{Kind::kLoad, Kind::kLoad}));
  const PlacementVersion version = membership.target().version;
  EXPECT_EQ(version, (PlacementVersion{7, 1}));

  membership.Heartbeat(e1, Ready(version), kStart);
  EXPECT_TRUE(membership.Advance(kStart).empty());
  membership.Heartbeat(e2, Ready(version), kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), (std::vector<Kind>{Kind::kUse}));
  EXPECT_FALSE(membership.serving());
  membership.Heartbeat(a, Ready(version), kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)),
            (std::vector<Kind>{Kind::kStartAttention, Kind::kUse, Kind::kUse}));
  EXPECT_TRUE(membership.serving());
  EXPECT_TRUE(membership.Advance(kStart).empty());
}

TEST_F(MembershipTest, AWorkerThatHangsIsLetGoThoughItsHeartbeatsGoOn) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId a = *membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart);
  const WorkerId e = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  membership.Advance(kStart);
  const PlacementVersion version = membership.target().version;
  membership.Heartbeat(e, Ready(version), kStart);
  membership.Heartbeat(a, Ready(version), kStart);
  membership.Advance(kStart);
  ASSERT_TRUE(membership.serving());

  MemberHealth busy = Ready(version);
  busy.busy = absl::Seconds(120);  // a long layer
  membership.Heartbeat(e, busy, kStart);
  membership.Heartbeat(a, busy, kStart);
  EXPECT_THAT(membership.Advance(kStart), IsEmpty());
  busy.busy += absl::Seconds(1);
  membership.Heartbeat(e, busy, kStart);
  const auto actions = membership.Advance(kStart);
  ASSERT_EQ(Kinds(actions), std::vector<Kind>{Kind::kDrop});
  EXPECT_EQ(actions[0].worker, e);
  EXPECT_THAT(actions[0].why, HasSubstr("expert worker at e:1 hangs"));
  EXPECT_THAT(actions[0].why, HasSubstr("2m1s"));
  EXPECT_THAT(membership.Detail(), HasSubstr("0 of 1 expert; expert worker at e:1 hangs"));

  // It dials again, still hanging; then another comes in its place.
  JoinRequest again = Request(WorkerKind::kExpert, "e:1");
  again.busy = absl::Minutes(3);
  EXPECT_EQ(membership.Join(again, kStart).status().code(), absl::StatusCode::kUnavailable);
  membership.Heartbeat(a, busy, kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)),
            (std::vector<Kind>{Kind::kDrop, Kind::kStopAttention}));
  again.busy = absl::ZeroDuration();
  EXPECT_TRUE(membership.Join(again, kStart).ok());
  EXPECT_THAT(membership.Detail(), testing::Not(HasSubstr("e:1")));
  EXPECT_THAT(membership.Detail(), HasSubstr("attention worker at a:1 hangs"));
}

TEST_F(MembershipTest, TheLostAreForgottenOnceOthersAreInTheirPlaces) {
  Membership membership(&config_, Options(1, 2));
  const WorkerId e1 = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  const absl::Time later = kStart + absl::Seconds(10);
  EXPECT_EQ(Kinds(AdvanceUntil(membership, kStart, later)), std::vector<Kind>{Kind::kDrop});
  EXPECT_THAT(membership.Detail(), HasSubstr("e:1 has sent no heartbeat for 3s"));
  ASSERT_TRUE(membership.Join(Request(WorkerKind::kExpert, "e:2"), later).ok());
  EXPECT_THAT(membership.Detail(), HasSubstr("e:1"));
  const WorkerId e3 = *membership.Join(Request(WorkerKind::kExpert, "e:3"), later);
  membership.Leave(e3);
  EXPECT_THAT(membership.Detail(), HasSubstr("1 of 2 expert"));
  EXPECT_THAT(membership.Detail(), testing::Not(HasSubstr("e:1")));
  EXPECT_NE(e1, e3);
}

TEST_F(MembershipTest, RefusesAnotherCheckpointModeOrNumericsClass) {
  Membership membership(&config_, Options(4, 4));
  ASSERT_TRUE(membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart).ok());
  for (const auto& [spoil, word] : std::vector<std::pair<void (*)(JoinRequest&), const char*>>{
           {[](JoinRequest& r) { r.digest = "x"; }, "digest x"},
           {[](JoinRequest& r) { r.dtype = "bf16"; }, "dtype bf16"},
           {[](JoinRequest& r) { r.numerics_class = "gpu"; }, "class gpu"}}) {
    JoinRequest request = Request(WorkerKind::kExpert, "e:2");
    spoil(request);
    const auto refused = membership.Join(request, kStart);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(word));
  }
  JoinRequest nowhere = Request(WorkerKind::kExpert, "");
  EXPECT_EQ(membership.Join(nowhere, kStart).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(MembershipTest, DropsASilentWorkerAndPlansAnewWhenAnotherTakesItsPlace) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId a = Serve(membership);

  const absl::Time later = kStart + absl::Seconds(10);
  membership.Heartbeat(a, Ready({7, 1}), later);
  EXPECT_EQ(Kinds(AdvanceUntil(membership, kStart, later)), (std::vector<Kind>{Kind::kDrop}));
  EXPECT_FALSE(membership.serving());
  const WorkerId e2 = *membership.Join(Request(WorkerKind::kExpert, "e:2"), later);
  EXPECT_EQ(Kinds(membership.Advance(later)), (std::vector<Kind>{Kind::kLoad}));
  membership.Heartbeat(e2, Ready({7, 2}), later);
  EXPECT_EQ(Kinds(membership.Advance(later)), (std::vector<Kind>{Kind::kUse}));
  EXPECT_TRUE(membership.serving());
}

// Heartbeats that came meanwhile are read after it.
TEST_F(MembershipTest, AStopOfTheGatewayEndsNoLease) {
  Membership membership(&config_, Options(1, 1));
  Serve(membership);
  const absl::Time later = kStart + absl::Seconds(10);
  EXPECT_THAT(membership.Advance(later), IsEmpty());
  EXPECT_TRUE(membership.serving());
  EXPECT_THAT(AdvanceUntil(membership, later, later + absl::Seconds(3)), IsEmpty());
  EXPECT_THAT(Kinds(AdvanceUntil(membership, later, later + absl::Seconds(4))),
              testing::Contains(Kind::kDrop));
}

TEST_F(MembershipTest, AnAttentionWorkerWhoseSessionIsLostIsStartedAgain) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId a = Serve(membership);
  membership.SessionLost(a);
  EXPECT_FALSE(membership.serving());
  EXPECT_THAT(membership.Detail(), HasSubstr("attention worker 1 does not answer at a:1"));
  EXPECT_EQ(Kinds(membership.Advance(kStart)), (std::vector<Kind>{Kind::kStartAttention}));
  EXPECT_TRUE(membership.serving());
}

TEST_F(MembershipTest, ALostAttentionWorkerIsStoppedHoweverItIsLost) {
  const absl::Time later = kStart + absl::Seconds(10);
  for (const char* how : {"its stream ends", "its lease runs out", "it dials again"}) {
    Membership membership(&config_, Options(1, 1));
    const WorkerId lost = Serve(membership);
    absl::Time now = kStart;
    if (how == std::string("its stream ends")) membership.Leave(lost);
    if (how == std::string("its lease runs out")) now = later;
    if (how == std::string("it dials again")) {
      ASSERT_TRUE(membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart).ok());
    }
    std::vector<WorkerId> stopped;
    for (const MembershipAction& action : AdvanceUntil(membership, kStart, now)) {
      if (action.kind == Kind::kStopAttention) stopped.push_back(action.worker);
    }
    EXPECT_EQ(stopped, std::vector<WorkerId>{lost}) << how;
    EXPECT_FALSE(membership.serving()) << how;
  }
}

TEST_F(MembershipTest, AnAttentionWorkerThatWasNotStartedIsNotStopped) {
  Membership membership(&config_, Options(1, 1));
  membership.Leave(*membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart));
  EXPECT_THAT(membership.Advance(kStart), IsEmpty());
}

// Workers outlive their gateway: what they have loaded or use may be of the one before, whose
// counters began at 1 as well.
TEST_F(MembershipTest, APlacementOfAnotherEpochIsNotTheCurrentOne) {
  for (const PlacementVersion other : {PlacementVersion{6, 1}, {8, 1}, {6, 2}, {8, 2}}) {
    Membership membership(&config_, Options(1, 1));
    const WorkerId a = *membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart);
    const WorkerId e = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
    EXPECT_EQ(Kinds(membership.Advance(kStart)), std::vector<Kind>{Kind::kLoad});
    membership.Heartbeat(e, Ready(other), kStart);
    membership.Heartbeat(a, Ready(other), kStart);
    EXPECT_THAT(membership.Advance(kStart), IsEmpty());

    membership.Heartbeat(e, Ready({7, 1}), kStart);
    EXPECT_EQ(Kinds(membership.Advance(kStart)), std::vector<Kind>{Kind::kUse});
    EXPECT_FALSE(membership.serving());

    membership.Heartbeat(a, Ready({7, 1}), kStart);
    EXPECT_EQ(Kinds(membership.Advance(kStart)),
              (std::vector<Kind>{Kind::kStartAttention, Kind::kUse}));
    EXPECT_TRUE(membership.serving());
  }
}

TEST_F(MembershipTest, ExpertWorkersHearOfAPlacementInUseOnceAllAttentionWorkersUseIt) {
  Membership membership(&config_, Options(2, 1));
  const WorkerId a = *membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart);
  const WorkerId b = *membership.Join(Request(WorkerKind::kAttention, "b:1"), kStart);
  const WorkerId e = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  membership.Advance(kStart);
  membership.Heartbeat(e, Ready({7, 1}), kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), (std::vector<Kind>{Kind::kUse, Kind::kUse}));
  membership.Heartbeat(a, Ready({7, 1}), kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), (std::vector<Kind>{Kind::kStartAttention}));
  membership.Heartbeat(b, Ready({7, 1}), kStart);
  const auto actions = membership.Advance(kStart);
  EXPECT_EQ(Kinds(actions), (std::vector<Kind>{Kind::kStartAttention, Kind::kUse}));
  EXPECT_EQ(actions[1].worker, e);
  EXPECT_THAT(membership.Advance(kStart), IsEmpty());
}

TEST_F(MembershipTest, ARefusedWorkerDoesNotDecideTheNumericsClass) {
  Membership membership(&config_, Options(1, 0));
  JoinRequest refused = Request(WorkerKind::kExpert, "e:1");
  refused.numerics_class = "gpu";
  refused.busy = absl::Hours(1);
  EXPECT_EQ(membership.Join(refused, kStart).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart).ok());
}

TEST_F(MembershipTest, AWorkerThatDialsAgainReplacesItself) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId first = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  const WorkerId second = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  EXPECT_NE(first, second);
  EXPECT_EQ(membership.members().size(), 1u);
  EXPECT_TRUE(membership.Join(Request(WorkerKind::kExpert, "e:2"), kStart).ok());
}

TEST_F(MembershipTest, TooManyWorkersAreRefused) {
  Membership membership(&config_, Options(1, 1));
  for (int i = 0; i < Membership::kMaxWorkers; ++i) {
    ASSERT_TRUE(membership.Join(Request(WorkerKind::kExpert, absl::StrCat("e:", i)), kStart).ok());
  }
  EXPECT_EQ(membership.Join(Request(WorkerKind::kExpert, "f:1"), kStart).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(MembershipTest, AnAttentionWorkerDrains) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId goes = Serve(membership);
  MemberHealth draining = Ready({7, 1});
  draining.draining = true;
  draining.drain_left = absl::Seconds(60);
  membership.Heartbeat(goes, draining, kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), std::vector<Kind>{Kind::kDrainAttention});
  EXPECT_FALSE(membership.serving());  // nobody takes sequences
  EXPECT_THAT(membership.Detail(), HasSubstr("0 of 1 attention"));

  // Half of its time has passed, but there is no other to move to yet.
  const absl::Time half = kStart + absl::Seconds(30);
  const auto beat = [&](WorkerId id, const MemberHealth& health, absl::Time now) {
    for (const auto& [other, member] : membership.members()) {
      if (other != id) membership.Heartbeat(other, member.health, now);
    }
    membership.Heartbeat(id, health, now);
  };
  beat(goes, draining, half);
  EXPECT_THAT(membership.Advance(half), IsEmpty());
  const WorkerId next = *membership.Join(Request(WorkerKind::kAttention, "a:2"), half);
  EXPECT_EQ(Kinds(membership.Advance(half)), std::vector<Kind>{Kind::kUse});
  beat(next, Ready({7, 1}), half);
  EXPECT_EQ(Kinds(membership.Advance(half)), std::vector<Kind>{Kind::kStartAttention});
  EXPECT_TRUE(membership.serving());
  const auto moves = membership.Advance(half);
  ASSERT_EQ(Kinds(moves), std::vector<Kind>{Kind::kMoveAttention});
  EXPECT_EQ(moves[0].worker, goes);
  EXPECT_THAT(membership.Advance(half), IsEmpty());

  membership.SequencesGone(goes);
  membership.SequencesGone(next);  // which does not drain
  const auto ends = membership.Advance(half);
  ASSERT_EQ(Kinds(ends), (std::vector<Kind>{Kind::kStopAttention, Kind::kRelease}));
  EXPECT_EQ(ends[1].worker, goes);
  EXPECT_THAT(membership.Advance(half), IsEmpty());
  membership.Leave(goes);
  EXPECT_THAT(membership.Advance(half), IsEmpty());
  EXPECT_TRUE(membership.serving());
}

TEST_F(MembershipTest, SequencesStayForHalfOfTheTimeThatAWorkerDrains) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId goes = Serve(membership);
  const WorkerId stays = *membership.Join(Request(WorkerKind::kAttention, "a:2"), kStart);
  membership.Heartbeat(stays, Ready({7, 1}), kStart);
  membership.Advance(kStart);
  MemberHealth draining = Ready({7, 1});
  draining.draining = true;
  draining.drain_left = absl::Seconds(4);
  membership.Heartbeat(goes, draining, kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), std::vector<Kind>{Kind::kDrainAttention});
  EXPECT_THAT(membership.Advance(kStart + absl::Milliseconds(1999)), IsEmpty());
  draining.drain_left = absl::Seconds(2);  // it says so again
  membership.Heartbeat(goes, draining, kStart + absl::Seconds(2));
  EXPECT_EQ(Kinds(membership.Advance(kStart + absl::Seconds(2))),
            std::vector<Kind>{Kind::kMoveAttention});
}

// One that drains under a gateway that is started again has nothing there.
TEST_F(MembershipTest, ADrainingAttentionWorkerWithoutASessionMayEndAtOnce) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId a = *membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart);
  MemberHealth draining = Ready({6, 3});
  draining.draining = true;
  membership.Heartbeat(a, draining, kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), std::vector<Kind>{Kind::kRelease});
}

}  // namespace
}  // namespace tandem
