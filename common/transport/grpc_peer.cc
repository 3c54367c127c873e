#include "common/transport/grpc_peer.h"

#include <grpc/grpc.h>

namespace tandem {

std::shared_ptr<grpc::Channel> CreatePeerChannel(const GrpcPeer& peer) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(-1);
  args.SetMaxSendMessageSize(-1);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // What would retry calls by itself ends the process when a peer's trailers have no status.
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return grpc::CreateCustomChannel(
      peer.address, peer.credentials ? peer.credentials : grpc::InsecureChannelCredentials(), args);
}

}  // namespace tandem
