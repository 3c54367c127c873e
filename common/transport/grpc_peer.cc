#include "common/transport/grpc_peer.h"

#include "common/service/grpc_channel.h"

namespace tandem {

std::shared_ptr<grpc::Channel> CreatePeerChannel(const GrpcPeer& peer) {
  grpc::ChannelArguments args = ClientChannelArguments();
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(peer.address, MakeChannelCredentials(peer.trust.get()), args);
}

}  // namespace tandem
