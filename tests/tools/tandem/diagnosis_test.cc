#include "diagnosis.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

namespace tandem::tool {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::Field;
using testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;
const absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

// A gateway, an attention and two expert workers, with nothing wrong.
class DiagnosisTest : public testing::Test {
 protected:
  DiagnosisTest() {
    seen_.digest = "d1";
    seen_.build = "0.1.0";
    seen_.asked = kNow;
    seen_.answered = kNow + absl::Milliseconds(2);
    seen_.status.set_state("serving");
    seen_.status.set_detail("all workers are ready");
    for (const char* kind : {"gateway", "attention", "expert", "expert"}) {
      v1::WorkerStatus& worker = *seen_.status.add_workers();
      worker.set_id(seen_.status.workers_size() - 1);
      worker.set_kind(kind);
      worker.set_state("ready");
      worker.set_loaded(1);
      worker.set_build("0.1.0");
      if (worker.kind() != "gateway") worker.set_digest("d1");
      auto& counters = *worker.mutable_counters();
      counters["unix_time_ms"] = absl::ToUnixMillis(kNow) - 200;
      counters["memory_limit_bytes"] = 16 * kGiB;
      counters["memory_available_bytes"] = 4 * kGiB;
      counters["busy_ms"] = 12;
    }
    auto& gateway = Counters(0);
    gateway["model_experts"] = 1664;
    gateway["experts_without_holder"] = 0;
    gateway["experts_with_one_holder"] = 0;
    gateway["expert_workers_ready"] = 2;
  }

  google::protobuf::Map<std::string, int64_t>& Counters(int worker) {
    return *seen_.status.mutable_workers(worker)->mutable_counters();
  }

  Observation seen_;
};

testing::Matcher<Finding> Is(Verdict verdict, const std::string& check, const std::string& what) {
  return AllOf(Field("verdict", &Finding::verdict, verdict), Field("check", &Finding::check, check),
               Field("what", &Finding::what, HasSubstr(what)));
}

TEST_F(DiagnosisTest, AHealthyDeploymentIsFineInEachCheck) {
  const auto findings = Diagnose(seen_);
  EXPECT_THAT(findings, Each(Field("verdict", &Finding::verdict, Verdict::kFine)));
  std::string checks;
  for (const Finding& finding : findings) checks += finding.check + " ";
  EXPECT_EQ(checks,
            "reachable state versions checkpoint workers placement memory clock certificates ");
}

TEST_F(DiagnosisTest, WhateverIsNotFineSaysWhatToDo) {
  seen_.status.set_state("waiting for workers");
  seen_.status.add_refused("another checkpoint");
  seen_.build = "0.2.0";
  Counters(0)["experts_without_holder"] = 3;
  for (int worker = 0; worker < 4; ++worker) {
    for (const auto& [name, value] :
         std::map<std::string, int64_t>{{"memory_limit_bytes", 100},
                                        {"memory_available_bytes", 1},
                                        {"unix_time_ms", 5},
                                        {"busy_ms", 1'000'000},
                                        {"packed_failed", 1},
                                        {"workers_aside", 2},
                                        {"checkpoint_changed", 1},
                                        {"connections_refused_total", 4}}) {
      Counters(worker)[name] = value;
    }
  }
  for (const Finding& finding : Diagnose(seen_)) {
    EXPECT_EQ(finding.advice.empty(), finding.verdict == Verdict::kFine) << finding.what;
  }
}

TEST_F(DiagnosisTest, StatesButServingAreWrong) {
  for (const char* state : {"loading", "waiting for workers", "draining", "failed"}) {
    seen_.status.set_state(state);
    EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kWrong, "state", state)));
  }
}

TEST_F(DiagnosisTest, VersionsThatDifferAreNamed) {
  seen_.status.mutable_workers(2)->set_build("0.0.9");
  EXPECT_THAT(Diagnose(seen_),
              Contains(Is(Verdict::kNote, "versions", "expert worker 2 is 0.0.9")));
  seen_.build = "0.2.0";
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kNote, "versions", "this tool is 0.2.0")));
}

TEST_F(DiagnosisTest, AnotherCheckpointAndOneThatChangedAreWrong) {
  seen_.status.mutable_workers(1)->set_digest("d2");
  EXPECT_THAT(Diagnose(seen_),
              Contains(Is(Verdict::kWrong, "checkpoint", "attention worker 1 has d2")));
  seen_.status.mutable_workers(1)->set_digest("d1");
  Counters(1)["checkpoint_changed"] = 1;
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kWrong, "checkpoint", "were changed under")));
  Counters(1)["checkpoint_changed"] = 0;
  seen_.status.add_refused("the worker at e:1 has another checkpoint");
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kNote, "checkpoint", "refused: the worker")));
}

TEST_F(DiagnosisTest, ClocksMayDifferByTwoSeconds) {
  Counters(3)["unix_time_ms"] += 2'000;
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kFine, "clock", "")));
  Counters(3)["unix_time_ms"] += 1;
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kNote, "clock",
                                           "expert worker 3, seen from the gateway, is 2.001s "
                                           "ahead")));
  // The gateway's is held against this machine's, between question and answer.
  seen_.asked += absl::Minutes(5);
  seen_.answered += absl::Minutes(6);
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kNote, "clock", "is 5m0.2s behind")));
}

TEST_F(DiagnosisTest, MemoryIsShortBelowATwentieth) {
  Counters(2)["memory_available_bytes"] = 16 * kGiB / 20;
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kFine, "memory", "expert worker 2: 0.80 GiB")));
  Counters(2)["memory_available_bytes"] -= 1;
  EXPECT_THAT(Diagnose(seen_),
              Contains(Is(Verdict::kNote, "memory", "expert worker 2 has 0.80 GiB")));
}

TEST_F(DiagnosisTest, ExpertsWithoutAHolderAreWrongAndWithOneANote) {
  Counters(0)["experts_with_one_holder"] = 26;
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kNote, "placement",
                                           "26 of 1664 experts are at one worker only")));
  Counters(0)["experts_without_holder"] = 1;
  EXPECT_THAT(Diagnose(seen_),
              Contains(Is(Verdict::kWrong, "placement", "1 of 1664 experts are at no worker")));
  Counters(0).erase("model_experts");
  EXPECT_THAT(Diagnose(seen_),
              Contains(Is(Verdict::kFine, "placement", "in the gateway's process")));
}

TEST_F(DiagnosisTest, WorkersThatHangLoadOrFailAreNamed) {
  Counters(1)["busy_ms"] = 10'001;
  Counters(1)["workers_aside"] = 1;
  Counters(2)["packed_failed"] = 1;
  Counters(0)["connections_refused_total"] = 7;
  seen_.status.mutable_workers(3)->set_state("loading");
  seen_.status.mutable_workers(3)->set_loaded(0.5);
  const auto findings = Diagnose(seen_);
  EXPECT_THAT(findings, Contains(Is(Verdict::kWrong, "workers", "attention worker 1 has been at")));
  EXPECT_THAT(findings, Contains(Is(Verdict::kNote, "workers", "has put 1 expert workers aside")));
  EXPECT_THAT(findings, Contains(Is(Verdict::kNote, "workers", "expert worker 2 cannot keep")));
  EXPECT_THAT(findings, Contains(Is(Verdict::kNote, "workers", "expert worker 3 is loading, 50%")));
  EXPECT_THAT(findings, Contains(Is(Verdict::kNote, "workers", "the gateway has refused 7")));
}

TEST_F(DiagnosisTest, CertificatesThatAreNotRenewedInTimeAreNamed) {
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kFine, "certificates", "plain text")));
  Counters(1)["certificate_seconds_left"] = 900;
  Counters(2)["certificate_seconds_left"] = 3600;
  EXPECT_THAT(Diagnose(seen_),
              Contains(Is(Verdict::kFine, "certificates",
                          "the first to expire is that of attention worker 1, in 15m")));
  Counters(1)["certificate_seconds_left"] = 899;
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kNote, "certificates",
                                           "that of attention worker 1 expires in 14m59s")));
  Counters(2)["certificate_seconds_left"] = 0;
  EXPECT_THAT(Diagnose(seen_),
              Contains(Is(Verdict::kWrong, "certificates", "that of expert worker 2 has expired")));
}

TEST_F(DiagnosisTest, AnAnswerWithoutWorkersIsNoReasonToCrash) {
  seen_.status.clear_workers();
  EXPECT_THAT(Diagnose(seen_), Contains(Is(Verdict::kFine, "state", "serving")));
}

}  // namespace
}  // namespace tandem::tool
