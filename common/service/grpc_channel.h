// What Tandem's clients ask of their gRPC channels.
#ifndef TANDEM_COMMON_SERVICE_GRPC_CHANNEL_H_
#define TANDEM_COMMON_SERVICE_GRPC_CHANNEL_H_

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

namespace tandem {

// Messages of any size; a server that was away is tried again within a second, where gRPC's own
// pauses grow to two minutes.
inline grpc::ChannelArguments ClientChannelArguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // One that comes back at another address, as a pod does, is looked for again as often; gRPC asks
  // for a name every half minute at most.
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000);
  // What would retry calls by itself ends the process when a server's trailers have no status.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return arguments;
}

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_GRPC_CHANNEL_H_
