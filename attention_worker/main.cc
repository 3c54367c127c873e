// tandem-attention-worker: joins a gateway's registry, loads attention, shared experts and lm_head,
// and runs the gateway's steps.

#include <utility>

#include "common/command_line.h"
#include "common/service/service_host.h"
#include "deployment/attention_role.h"
#include "deployment/worker_host.h"

int main(int argc, char** argv) {
  tandem::BlockEndSignals();
  tandem::CommandLine app("Runs attention, shared experts and sampling for a Tandem gateway.");
  tandem::WorkerOptions options;
  options.AddTo(app);
  tandem::AttentionRoleOptions role;
  role.AddTo(app);
  if (const auto code = tandem::ParseCommandLine(app, argc, argv)) return *code;
  tandem::WorkerHost host(std::move(options), [&role](const tandem::WorkerParts& parts) {
    return tandem::MakeAttentionRole(parts, role);
  });
  return tandem::ExitCode(host.Serve());
}
