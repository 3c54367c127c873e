// tandem-gateway: the public service. With --model alone the whole deployment runs in this process;
// with --registry it waits for workers that dial that address.

#include <utility>

#include "common/command_line.h"
#include "common/service/service_host.h"
#include "deployment/gateway_process.h"

int main(int argc, char** argv) {
  tandem::BlockEndSignals();
  tandem::CommandLine app("Serves a DeepSeek-V2 checkpoint over gRPC.");
  tandem::GatewayOptions options;
  options.AddTo(app);
  if (const auto code = tandem::ParseCommandLine(app, argc, argv)) return *code;
  return tandem::ExitCode(tandem::RunGateway(std::move(options)));
}
