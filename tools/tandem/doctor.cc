#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/status.h"
#include "common/version.h"
#include "diagnosis.h"
#include "nlohmann/json.hpp"

namespace tandem::tool {
namespace {

void Print(const std::vector<Finding>& findings, bool json) {
  for (const Finding& finding : findings) {
    if (json) {
      const nlohmann::ordered_json line = {{"verdict", VerdictName(finding.verdict)},
                                           {"check", finding.check},
                                           {"what", finding.what},
                                           {"advice", finding.advice}};
      std::printf("%s\n", line.dump().c_str());
    } else {
      std::printf("%-5s  %-12s  %s%s%s\n", VerdictName(finding.verdict), finding.check.c_str(),
                  finding.what.c_str(), finding.advice.empty() ? "" : ": ", finding.advice.c_str());
    }
  }
}

absl::Status Run(ConnectOptions connect) {
  if (connect.timeout_s == 0) connect.timeout_s = 10;
  Observation seen;
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(connect));
  seen.asked = absl::Now();
  absl::StatusOr<v1::GetStatusResponse> status = client->GetStatus();
  seen.answered = absl::Now();
  if (!status.ok()) {
    Print({{Verdict::kWrong, "reachable", std::string(status.status().message()),
            "see whether the gateway runs, and what lies between"}},
          connect.json);
    return absl::UnavailableError("the gateway does not answer");
  }
  seen.status = *std::move(status);
  seen.build = Version();
  v1::GetModelResponse model;
  // Before the model is loaded there is none.
  if (client->stub().GetModel(client->NewContext().get(), {}, &model).ok()) {
    seen.digest = model.digest();
  }
  const std::vector<Finding> findings = Diagnose(seen);
  Print(findings, connect.json);
  const auto wrong = std::count_if(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.verdict == Verdict::kWrong;
  });
  if (wrong == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(wrong, wrong == 1 ? " thing is wrong" : " things are wrong"));
}

}  // namespace

Command AddDoctor(CommandLine& root) {
  auto options = std::make_shared<ConnectOptions>();
  CommandLine* app = root.AddSubcommand(
      "doctor", "what is wrong with a deployment and what to do, a line each; exit code 1 if any");
  app->AddOption("gateway", options->server, "its address, host:port").ShowDefault();
  app->AddOption("--timeout", options->timeout_s, "seconds that an answer may take; default 10")
      .NonNegative();
  options->trust.AddTo(*app);
  options->AddJsonTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
