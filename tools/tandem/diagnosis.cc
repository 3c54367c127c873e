#include "diagnosis.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tandem::tool {
namespace {

// Clocks that differ by less are as good as the same: a heartbeat may be 0.3 s old.
constexpr absl::Duration kClockTolerance = absl::Seconds(2);
constexpr int64_t kBusyTooLongMs = 10'000;
// What issues certificates for an hour or more has had time to issue the next one.
constexpr int64_t kRenewalIsLateSeconds = 15 * 60;
constexpr int64_t kLeastRoomShare = 20;  // a process with less than a twentieth of its memory left

using Findings = std::vector<Finding>;

std::optional<int64_t> CounterOf(const v1::WorkerStatus& worker, const std::string& name) {
  const auto it = worker.counters().find(name);
  if (it == worker.counters().end()) return std::nullopt;
  return it->second;
}

std::string NameOf(const v1::WorkerStatus& worker) {
  if (worker.kind() == "gateway") return "the gateway";
  return absl::StrCat(worker.kind(), " worker ", worker.id(),
                      worker.address().empty() ? "" : absl::StrCat(" at ", worker.address()));
}

std::string GiB(int64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
}

void CheckReached(const Observation& seen, Findings& findings) {
  const double ms = absl::ToDoubleMilliseconds(seen.answered - seen.asked);
  findings.push_back(
      {Verdict::kFine, "reachable", absl::StrFormat("the gateway answers in %.1f ms", ms), ""});
}

void CheckState(const Observation& seen, Findings& findings) {
  const v1::GetStatusResponse& status = seen.status;
  const std::string what = absl::StrCat(status.state(), ": ", status.detail());
  if (status.state() == "serving") {
    findings.push_back({Verdict::kFine, "state", what, ""});
  } else if (status.state() == "draining") {
    findings.push_back(
        {Verdict::kWrong, "state", what, "the gateway is about to end; ask the next"});
  } else if (status.state() == "loading") {
    findings.push_back({Verdict::kWrong, "state", what, "wait; if it does not go on, see its log"});
  } else {
    findings.push_back({Verdict::kWrong, "state", what,
                        "start workers of the kind that is missing, or see their logs"});
  }
}

void CheckVersions(const Observation& seen, Findings& findings) {
  const std::string& expected = seen.status.workers(0).build();
  bool same = true;
  for (const auto& worker : seen.status.workers()) {
    if (worker.build().empty() || worker.build() == expected) continue;
    same = false;
    findings.push_back(
        {Verdict::kNote, "versions",
         absl::StrCat(NameOf(worker), " is ", worker.build(), ", the gateway ", expected),
         "finish the update: run one version everywhere"});
  }
  if (seen.build != expected) {
    same = false;
    findings.push_back({Verdict::kNote, "versions",
                        absl::StrCat("this tool is ", seen.build, ", the gateway ", expected),
                        "use the tool of the gateway's image"});
  }
  if (same)
    findings.push_back({Verdict::kFine, "versions", absl::StrCat("all are ", expected), ""});
}

void CheckCheckpoint(const Observation& seen, Findings& findings) {
  const size_t before = findings.size();
  for (const auto& worker : seen.status.workers()) {
    if (!worker.digest().empty() && !seen.digest.empty() && worker.digest() != seen.digest) {
      findings.push_back(
          {Verdict::kWrong, "checkpoint",
           absl::StrCat(NameOf(worker), " has ", worker.digest(), ", the gateway ", seen.digest),
           "give all the same folder"});
    }
    if (CounterOf(worker, "checkpoint_changed").value_or(0) != 0) {
      findings.push_back({Verdict::kWrong, "checkpoint",
                          absl::StrCat("its files were changed under ", NameOf(worker)),
                          "start that process again; replace files by renaming"});
    }
  }
  for (const std::string& why : seen.status.refused()) {
    findings.push_back({Verdict::kNote, "checkpoint", absl::StrCat("refused: ", why),
                        "if that worker is still there, start it as the gateway was"});
  }
  if (findings.size() > before) return;
  findings.push_back(
      {Verdict::kFine, "checkpoint",
       seen.digest.empty() ? "the digest is not known yet" : absl::StrCat("all have ", seen.digest),
       ""});
}

void CheckClock(const Observation& seen, Findings& findings) {
  const auto clock_of = [](const v1::WorkerStatus& worker) -> std::optional<absl::Time> {
    const auto ms = CounterOf(worker, "unix_time_ms");
    if (!ms.has_value()) return std::nullopt;
    return absl::FromUnixMillis(*ms);
  };
  const std::optional<absl::Time> gateway = clock_of(seen.status.workers(0));
  if (!gateway.has_value()) {
    findings.push_back({Verdict::kFine, "clock", "the gateway does not say its time", ""});
    return;
  }
  const size_t before = findings.size();
  // The gateway's clock was read somewhere between question and answer.
  const absl::Duration off = *gateway < seen.asked      ? *gateway - seen.asked
                             : *gateway > seen.answered ? *gateway - seen.answered
                                                        : absl::ZeroDuration();
  const auto complain = [&](const std::string& who, absl::Duration by) {
    findings.push_back({Verdict::kNote, "clock",
                        absl::StrCat(who, " is ", absl::FormatDuration(absl::AbsDuration(by)),
                                     by > absl::ZeroDuration() ? " ahead" : " behind"),
                        "set clocks by NTP: certificates and logs need them"});
  };
  if (absl::AbsDuration(off) > kClockTolerance) complain("the gateway's, seen from here,", off);
  for (const auto& worker : seen.status.workers()) {
    const std::optional<absl::Time> clock = clock_of(worker);
    if (!clock.has_value() || absl::AbsDuration(*clock - *gateway) <= kClockTolerance) continue;
    complain(absl::StrCat("that of ", NameOf(worker), ", seen from the gateway,"),
             *clock - *gateway);
  }
  if (findings.size() == before) {
    findings.push_back({Verdict::kFine, "clock", "all agree within 2 s", ""});
  }
}

void CheckMemory(const Observation& seen, Findings& findings) {
  bool fine = true;
  std::optional<std::pair<int64_t, std::string>> least;
  for (const auto& worker : seen.status.workers()) {
    const auto limit = CounterOf(worker, "memory_limit_bytes");
    const auto available = CounterOf(worker, "memory_available_bytes");
    if (!limit.has_value() || !available.has_value() || *limit <= 0) continue;
    if (!least.has_value() || *available < least->first) least = {*available, NameOf(worker)};
    if (*available >= *limit / kLeastRoomShare) continue;
    fine = false;
    findings.push_back(
        {Verdict::kNote, "memory",
         absl::StrCat(NameOf(worker), " has ", GiB(*available), " left of ", GiB(*limit)),
         "give it more, or less to hold: --cache-tokens, --expert-memory, --weights"});
  }
  if (!fine) return;
  findings.push_back(
      {Verdict::kFine, "memory",
       least.has_value() ? absl::StrCat("least is left to ", least->second, ": ", GiB(least->first))
                         : "nobody says how much is left",
       ""});
}

void CheckPlacement(const Observation& seen, Findings& findings) {
  const v1::WorkerStatus& gateway = seen.status.workers(0);
  const auto experts = CounterOf(gateway, "model_experts");
  if (!experts.has_value()) {
    findings.push_back(
        {Verdict::kFine, "placement", "everything runs in the gateway's process", ""});
    return;
  }
  const int64_t without = CounterOf(gateway, "experts_without_holder").value_or(0);
  const int64_t single = CounterOf(gateway, "experts_with_one_holder").value_or(0);
  const int64_t workers = CounterOf(gateway, "expert_workers_ready").value_or(0);
  if (without > 0) {
    findings.push_back({Verdict::kWrong, "placement",
                        absl::StrCat(without, " of ", *experts, " experts are at no worker"),
                        "start expert workers, or give them more memory: requests wait for these"});
  } else if (single > 0) {
    findings.push_back({Verdict::kNote, "placement",
                        absl::StrCat(single, " of ", *experts, " experts are at one worker only"),
                        workers < 2 ? "a second expert worker would take over when this one dies"
                                    : "more memory for expert workers would hold second copies"});
  } else {
    findings.push_back({Verdict::kFine, "placement",
                        absl::StrCat("each of ", *experts, " experts is at two workers or more"),
                        ""});
  }
}

void CheckWorkers(const Observation& seen, Findings& findings) {
  const size_t before = findings.size();
  for (const auto& worker : seen.status.workers()) {
    if (worker.kind() == "gateway") continue;
    if (worker.state() != "ready") {
      findings.push_back({Verdict::kNote, "workers",
                          absl::StrFormat("%s is %s, %.0f%% loaded", NameOf(worker), worker.state(),
                                          100.0 * worker.loaded()),
                          "wait; if it does not go on, see its log"});
    }
    if (CounterOf(worker, "busy_ms").value_or(0) > kBusyTooLongMs) {
      findings.push_back({Verdict::kWrong, "workers",
                          absl::StrCat(NameOf(worker), " has been at one piece of work for ",
                                       *CounterOf(worker, "busy_ms") / 1000, " s"),
                          "if its machine is not merely slow, start it again"});
    }
    if (CounterOf(worker, "workers_aside").value_or(0) > 0) {
      findings.push_back(
          {Verdict::kNote, "workers",
           absl::StrCat(NameOf(worker), " has put ", *CounterOf(worker, "workers_aside"),
                        " expert workers aside"),
           "they fail or are slow: see their logs and the network between them"});
    }
    if (CounterOf(worker, "packed_failed").value_or(0) != 0) {
      findings.push_back({Verdict::kNote, "workers",
                          absl::StrCat(NameOf(worker), " cannot keep packed weights"),
                          "give --packed-weights a folder with room: each start packs them again"});
    }
  }
  for (const auto& worker : seen.status.workers()) {
    if (CounterOf(worker, "connections_refused_total").value_or(0) == 0) continue;
    findings.push_back({Verdict::kNote, "workers",
                        absl::StrCat(NameOf(worker), " has refused ",
                                     *CounterOf(worker, "connections_refused_total"),
                                     " connections for want of descriptors"),
                        "raise its limit of open files (ulimit -n)"});
  }
  if (findings.size() == before) {
    findings.push_back({Verdict::kFine, "workers",
                        absl::StrCat("all ", seen.status.workers_size() - 1, " are ready"), ""});
  }
}

void CheckCertificates(const Observation& seen, Findings& findings) {
  const size_t before = findings.size();
  std::optional<std::pair<int64_t, std::string>> first;  // to expire
  for (const auto& worker : seen.status.workers()) {
    const auto left = CounterOf(worker, "certificate_seconds_left");
    if (!left.has_value()) continue;
    if (!first.has_value() || *left < first->first) first = {*left, NameOf(worker)};
    if (*left >= kRenewalIsLateSeconds) continue;
    findings.push_back(
        {*left <= 0 ? Verdict::kWrong : Verdict::kNote, "certificates",
         absl::StrCat("that of ", NameOf(worker), *left <= 0 ? " has expired" : " expires in ",
                      *left <= 0 ? "" : absl::FormatDuration(absl::Seconds(*left))),
         "renew its files: they are read again without a restart"});
  }
  if (findings.size() > before) return;
  findings.push_back({Verdict::kFine, "certificates",
                      first.has_value()
                          ? absl::StrCat("the first to expire is that of ", first->second, ", in ",
                                         absl::FormatDuration(absl::Seconds(first->first)))
                          : "nobody has one: plain text",
                      ""});
}

}  // namespace

const char* VerdictName(Verdict verdict) {
  switch (verdict) {
    case Verdict::kFine:
      return "fine";
    case Verdict::kNote:
      return "note";
    case Verdict::kWrong:
      return "wrong";
  }
  return "";
}

std::vector<Finding> Diagnose(const Observation& observation) {
  Findings findings;
  CheckReached(observation, findings);
  CheckState(observation, findings);
  if (observation.status.workers().empty()) return findings;  // it does not even name itself
  CheckVersions(observation, findings);
  CheckCheckpoint(observation, findings);
  CheckWorkers(observation, findings);
  CheckPlacement(observation, findings);
  CheckMemory(observation, findings);
  CheckClock(observation, findings);
  CheckCertificates(observation, findings);
  return findings;
}

}  // namespace tandem::tool
