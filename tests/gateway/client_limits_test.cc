#include "gateway/client_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

absl::Time At(double seconds) { return kStart + absl::Seconds(seconds); }

TEST(ClientLimitsTest, LetsEverybodyInWhereNothingIsLimited) {
  ClientLimits limits({});
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(limits.Admit("a", kStart).status.ok());
  EXPECT_THAT(limits.Counters(), IsEmpty());
}

TEST(ClientLimitsTest, CountsEachClientsCallsAtOnce) {
  ClientLimits limits({.calls = 2});
  std::optional<ClientLimits::Decision> first = limits.Admit("a", kStart);
  const ClientLimits::Decision second = limits.Admit("a", kStart);
  EXPECT_TRUE(first->status.ok() && second.status.ok());
  const ClientLimits::Decision third = limits.Admit("a", kStart);
  EXPECT_EQ(third.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.status.message()), HasSubstr("2 calls running"));
  EXPECT_THAT(std::string(third.status.message()), HasSubstr("try again in 1000 ms"));
  EXPECT_TRUE(limits.Admit("b", kStart).status.ok());
  first.reset();
  EXPECT_TRUE(limits.Admit("a", kStart).status.ok());
  EXPECT_THAT(limits.Counters(),
              ElementsAre(Pair("clients_known", 1), Pair("calls_over_limit_total", 1)));
}

TEST(ClientLimitsTest, EachChoiceCounts) {
  ClientLimits limits({.calls = 4});
  std::optional<ClientLimits::Decision> first = limits.Admit("a", kStart);
  EXPECT_TRUE(limits.AddCalls(&first->lease, 2, kStart).status.ok());
  ClientLimits::Decision second = limits.Admit("a", kStart);
  EXPECT_TRUE(second.status.ok());
  const ClientLimits::Decision refused = limits.AddCalls(&second.lease, 1, kStart);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status.message()),
              HasSubstr("has 3 calls running and may have 4 at once, and this one counts as 2"));
  const ClientLimits::Decision never = limits.AddCalls(&second.lease, 4, kStart);
  EXPECT_EQ(never.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(never.status.message()), HasSubstr("counts as 5"));
  first.reset();
  EXPECT_TRUE(limits.AddCalls(&second.lease, 3, kStart).status.ok());
  EXPECT_FALSE(limits.Admit("a", kStart).status.ok());
  { const ClientLimits::Lease moved(std::move(second.lease)); }
  EXPECT_THAT(limits.Counters()[0], Pair("clients_known", 0));
}

TEST(ClientLimitsTest, ChoicesBeyondTheBurstArePaidForAfterwards) {
  ClientLimits limits({.calls_per_s = 2, .burst = 1});
  ClientLimits::Decision decision = limits.Admit("a", kStart);
  EXPECT_TRUE(limits.AddCalls(&decision.lease, 3, kStart).status.ok());
  EXPECT_EQ(limits.Admit("a", kStart).retry_after, absl::Seconds(2));
  EXPECT_FALSE(limits.Admit("a", At(1.9)).status.ok());
  EXPECT_TRUE(limits.Admit("a", At(2.1)).status.ok());
  ClientLimits unlimited({});
  ClientLimits::Decision any = unlimited.Admit("a", kStart);
  EXPECT_TRUE(unlimited.AddCalls(&any.lease, 15, kStart).status.ok());
}

TEST(ClientLimitsTest, ALeaseMovesAndEndsOnce) {
  ClientLimits limits({.calls = 1});
  ClientLimits::Lease kept;
  {
    ClientLimits::Decision decision = limits.Admit("a", kStart);
    kept = std::move(decision.lease);
  }
  EXPECT_FALSE(limits.Admit("a", kStart).status.ok());
  { const ClientLimits::Lease moved(std::move(kept)); }
  EXPECT_TRUE(limits.Admit("a", kStart).status.ok());
}

TEST(ClientLimitsTest, RefillsAtItsRateUpToTheBurst) {
  ClientLimits limits({.calls_per_s = 2, .burst = 3});
  const auto admitted = [&](double seconds) {
    int n = 0;
    while (limits.Admit("a", At(seconds)).status.ok()) ++n;
    return n;
  };
  EXPECT_EQ(admitted(0), 3);
  const ClientLimits::Decision refused = limits.Admit("a", At(0.125));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.retry_after, absl::Milliseconds(375));
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("try again in 375 ms"));
  EXPECT_EQ(admitted(0.5), 1);
  EXPECT_EQ(admitted(1.5), 2);
  EXPECT_EQ(admitted(1000), 3);
  EXPECT_EQ(admitted(999), 0);  // clocks may step back
  EXPECT_TRUE(limits.Admit("b", At(1000)).status.ok());
}

TEST(ClientLimitsTest, RemembersABoundedNumberOfClients) {
  ClientLimits limits({.calls_per_s = 1, .burst = 1, .max_clients = 10});
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(limits.Admit(absl::StrCat(i), kStart).status.ok());
  const ClientLimits::Decision refused = limits.Admit("one more", kStart);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("10 clients"));
  EXPECT_TRUE(limits.Admit("one more", At(1.5)).status.ok());  // the others are at rest again
  EXPECT_THAT(limits.Counters(),
              ElementsAre(Pair("clients_known", 1), Pair("calls_over_limit_total", 1)));
}

TEST(ClientLimitsTest, NeverForgetsWhoHasCalls) {
  ClientLimits limits({.calls = 1, .max_clients = 4});
  std::vector<ClientLimits::Decision> running;
  for (int i = 0; i < 4; ++i) running.push_back(limits.Admit(absl::StrCat(i), kStart));
  EXPECT_FALSE(limits.Admit("one more", At(100)).status.ok());
  running.pop_back();
  EXPECT_TRUE(limits.Admit("one more", At(200)).status.ok());
  EXPECT_FALSE(limits.Admit("0", At(200)).status.ok());
}

}  // namespace
}  // namespace tandem
