#include "gateway/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem {
namespace {

using Kind = MembershipAction::Kind;
using testing::HasSubstr;
using testing::IsEmpty;

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

class MembershipTest : public testing::Test {
 protected:
  MembershipTest() {
    config_.num_layers = 3;
    config_.num_experts = 8;
    config_.first_k_dense_replace = 1;
  }

  MembershipOptions Options(int attention, int expert) {
    MembershipOptions options;
    options.attention_workers = attention;
    options.expert_workers = expert;
    options.digest = "d";
    options.dtype = "f32";
    options.epoch = 7;
    return options;
  }

  static JoinRequest Request(WorkerKind kind, const std::string& address) {
    return {kind, address, 1, "d", "f32", "cpu-1", "cpu", {}};
  }

  // A worker that has done what it was told.
  static MemberHealth Ready(PlacementVersion version) { return {true, 1, version, {}, {}}; }

  static std::vector<Kind> Kinds(const std::vector<MembershipAction>& actions) {
    std::vector<Kind> kinds;
    for (const auto& action : actions) kinds.push_back(action.kind);
    return kinds;
  }

  // One attention worker, whose id is returned, and one expert worker, both in service.
  static WorkerId Serve(Membership& membership) {
    const WorkerId a = *membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart);
    const WorkerId e = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
    membership.Advance(kStart);
    membership.Heartbeat(e, Ready({7, 1}), kStart);
    membership.Heartbeat(a, Ready({7, 1}), kStart);
    membership.Advance(kStart);
    EXPECT_TRUE(membership.serving());
    return a;
  }

  ModelConfig config_;
};

TEST_F(MembershipTest, ServesOnceExpertsHaveLoadedAndAttentionWorkersUseThePlacement) {
  Membership membership(&config_, Options(1, 2));
  const WorkerId a = *membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart);
  const WorkerId e1 = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  EXPECT_TRUE(membership.Advance(kStart).empty());
  EXPECT_EQ(membership.Detail(), "1 of 1 attention, 1 of 2 expert");
  const WorkerId e2 = *membership.Join(Request(WorkerKind::kExpert, "e:2"), kStart);
  EXPECT_EQ(Kinds(membership.Advance(kStart)), (std::vector<Kind>{Kind::kLoad, Kind::kLoad}));
  const PlacementVersion version = membership.placement().version;
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
  const PlacementVersion version = membership.placement().version;
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
  EXPECT_EQ(Kinds(membership.Advance(later)), std::vector<Kind>{Kind::kDrop});
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
  EXPECT_EQ(Kinds(membership.Advance(later)), (std::vector<Kind>{Kind::kDrop}));
  EXPECT_FALSE(membership.serving());
  const WorkerId e2 = *membership.Join(Request(WorkerKind::kExpert, "e:2"), later);
  EXPECT_EQ(Kinds(membership.Advance(later)), (std::vector<Kind>{Kind::kLoad}));
  membership.Heartbeat(e2, Ready({7, 2}), later);
  EXPECT_EQ(Kinds(membership.Advance(later)), (std::vector<Kind>{Kind::kUse}));
  EXPECT_TRUE(membership.serving());
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
    for (const MembershipAction& action : membership.Advance(now)) {
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
  EXPECT_EQ(membership.Join(refused, kStart).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(membership.Join(Request(WorkerKind::kAttention, "a:1"), kStart).ok());
}

TEST_F(MembershipTest, AWorkerThatDialsAgainReplacesItself) {
  Membership membership(&config_, Options(1, 1));
  const WorkerId first = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  const WorkerId second = *membership.Join(Request(WorkerKind::kExpert, "e:1"), kStart);
  EXPECT_NE(first, second);
  EXPECT_EQ(membership.members().size(), 1u);
  EXPECT_EQ(membership.Join(Request(WorkerKind::kExpert, "e:2"), kStart).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace tandem
