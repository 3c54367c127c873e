#include "common/status.h"

#include <google/protobuf/util/json_util.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "client.h"
#include "commands.h"

namespace tandem::tool {
namespace {

struct Options {
  ConnectOptions connect;
  bool counters = false;
};

absl::Status Run(const Options& options) {
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));
  TANDEM_ASSIGN_OR_RETURN(const v1::GetStatusResponse status, client->GetStatus());
  if (options.connect.json) {
    google::protobuf::util::JsonPrintOptions print;
    print.preserve_proto_field_names = true;
    print.always_print_primitive_fields = true;
    std::string json;
    const auto written = google::protobuf::util::MessageToJsonString(status, &json, print);
    if (!written.ok()) return absl::InternalError(written.ToString());
    std::cout << json << "\n";
    return absl::OkStatus();
  }
  std::printf("%s: %s\n", status.state().c_str(), status.detail().c_str());
  if (!status.model().empty()) std::printf("model %s\n", status.model().c_str());
  if (status.has_default_sampling()) {
    const v1::Sampling& defaults = status.default_sampling();
    std::printf("defaults: temperature %g, top_k %u, top_p %g\n", defaults.temperature(),
                defaults.top_k(), defaults.top_p());
  }
  for (const auto& worker : status.workers()) {
    std::printf("%-9s %3u  %-8s %3.0f%%  %s %s\n", worker.kind().c_str(), worker.id(),
                worker.state().c_str(), 100.0 * worker.loaded(), worker.address().c_str(),
                worker.device().c_str());
    if (!worker.build().empty() && worker.build() != status.workers(0).build()) {
      std::printf("    its program is version %s, the gateway's %s\n", worker.build().c_str(),
                  status.workers(0).build().c_str());
    }
    if (!options.counters) continue;
    const std::map<std::string, int64_t> sorted(worker.counters().begin(), worker.counters().end());
    for (const auto& [name, value] : sorted) {
      std::printf("    %-40s %lld\n", name.c_str(), static_cast<long long>(value));
    }
  }
  return absl::OkStatus();
}

}  // namespace

Command AddStatus(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("status", "what the deployment is made of and does");
  app->add_flag("--counters", options->counters, "also print every worker's counters");
  options->connect.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
