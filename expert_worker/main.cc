// tandem-expert-worker: joins a gateway's registry, loads the experts that the placement gives it,
// and serves them.

#include <utility>

#include "common/command_line.h"
#include "common/service/service_host.h"
#include "deployment/expert_role.h"
#include "deployment/worker_host.h"

int main(int argc, char** argv) {
  tandem::BlockEndSignals();
  tandem::CommandLine app("Serves routed experts to Tandem's attention workers.");
  tandem::WorkerOptions options;
  options.AddTo(app);
  options.AddExpertOptionsTo(app);
  if (const auto code = tandem::ParseCommandLine(app, argc, argv)) return *code;
  tandem::WorkerHost host(std::move(options), tandem::MakeExpertRole);
  return tandem::ExitCode(host.Serve());
}
