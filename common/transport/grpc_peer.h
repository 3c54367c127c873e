// How Tandem's gRPC clients reach a peer.
#ifndef TANDEM_COMMON_TRANSPORT_GRPC_PEER_H_
#define TANDEM_COMMON_TRANSPORT_GRPC_PEER_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "common/service/client_trust.h"

namespace tandem {

struct GrpcPeer {
  std::string address;                       // host:port
  std::shared_ptr<const ClientTrust> trust;  // null: plain text
};

// A channel of its own connection, not shared with other channels of the process, that receives
// messages of any size and tries a peer that was away again within a second. Connects lazily.
// Its last reference must not be dropped in a gRPC callback.
std::shared_ptr<grpc::Channel> CreatePeerChannel(const GrpcPeer& peer);

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GRPC_PEER_H_
