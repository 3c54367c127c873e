// What tests of gateway/membership.h share: options, join requests and heartbeats.
#ifndef TANDEM_TESTS_GATEWAY_MEMBERSHIP_HOUSE_H_
#define TANDEM_TESTS_GATEWAY_MEMBERSHIP_HOUSE_H_

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "gateway/membership.h"

namespace tandem {

inline const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

class MembershipTest : public testing::Test {
 protected:
  using Kind = MembershipAction::Kind;

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
    JoinRequest request;
    request.kind = kind;
    request.address = address;
    request.incarnation = 1;
    request.digest = "d";
    request.dtype = "f32";
    request.numerics_class = "cpu-1";
    request.device = "cpu";
    return request;
  }

  // A worker that has done what it was told.
  static MemberHealth Ready(PlacementVersion version) {
    MemberHealth health;
    health.ready = true;
    health.loaded = 1;
    health.placement = version;
    return health;
  }

  static std::vector<Kind> Kinds(const std::vector<MembershipAction>& actions) {
    std::vector<Kind> kinds;
    for (const auto& action : actions) kinds.push_back(action.kind);
    return kinds;
  }

  // What is to be done until `end`, by calls a second apart.
  static std::vector<MembershipAction> AdvanceUntil(Membership& membership, absl::Time begin,
                                                    absl::Time end) {
    std::vector<MembershipAction> all;
    for (absl::Time now = begin; now <= end; now += absl::Seconds(1)) {
      for (auto& action : membership.Advance(now)) all.push_back(std::move(action));
    }
    return all;
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

}  // namespace tandem

#endif  // TANDEM_TESTS_GATEWAY_MEMBERSHIP_HOUSE_H_
