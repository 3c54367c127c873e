#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "commands.h"
#include "common/command_line.h"
#include "common/service/grpc_status.h"
#include "common/service/service_host.h"
#include "common/service/trust_options.h"
#include "common/status.h"
#include "common/transport/grpc_peer.h"
#include "proto/registry.grpc.pb.h"

namespace tandem::tool {
namespace {

struct Options {
  std::string registry = "127.0.0.1:8471";
  uint32_t worker = 0;
  PeerTrustOptions trust;
};

absl::Status Run(const Options& options) {
  TANDEM_RETURN_IF_ERROR(CheckDialAddress(options.registry));
  TANDEM_ASSIGN_OR_RETURN(const auto trust, PeerTrust::Create(options.trust));
  const auto stub = v1::Registry::NewStub(CreatePeerChannel(
      {options.registry, trust == nullptr ? nullptr : trust->ClientOf(PeerRole::kGateway)}));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::DrainRequest request;
  request.set_worker_id(options.worker);
  v1::DrainResponse response;
  TANDEM_RETURN_IF_ERROR(FromGrpc(stub->Drain(&context, request, &response)));
  std::printf("worker %u drains, and ends when it has nothing any more\n", options.worker);
  return absl::OkStatus();
}

}  // namespace

Command AddDrain(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app =
      root.AddSubcommand("drain", "moves everything away from a worker, which then ends");
  app->AddOption("worker", options->worker, "its number, as `tandem status` shows it").Required();
  app->AddOption("--registry", options->registry, "the gateway's registry, host:port")
      .ShowDefault();
  options->trust.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
