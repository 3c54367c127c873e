// Serves an attention worker over gRPC.
#ifndef TANDEM_COMMON_TRANSPORT_GRPC_ATTENTION_SERVICE_H_
#define TANDEM_COMMON_TRANSPORT_GRPC_ATTENTION_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/counters.h"
#include "common/transport/attention_link.h"

namespace tandem {

// Opens a session with the worker's engine; null while the worker is not ready. Called in a gRPC
// callback, so it must not block.
using AttentionConnect =
    std::function<std::unique_ptr<AttentionLink>(AttentionLink::Observer* observer)>;

struct GrpcAttentionServiceOptions {
  std::function<std::string()> digest;               // of the checkpoint that the worker serves
  absl::Duration silence_limit = absl::Seconds(10);  // a gateway silent for so long is gone
};

// The server side of AttentionWorker.Run: each stream is one session. When a stream ends, for
// whatever reason, its session is destroyed on a thread of the service, which frees all it opened.
class GrpcAttentionService {
 public:
  // What `connect` opens must be destructible as long as the service lives; the service must
  // outlive its server.
  GrpcAttentionService(AttentionConnect connect, GrpcAttentionServiceOptions options);
  // Returns when every session is destroyed.
  ~GrpcAttentionService();

  // For grpc::ServerBuilder::RegisterService.
  grpc::Service* service();

  // sessions_live, sessions_total, sessions_refused_total, messages_sent_total,
  // messages_received_total
  CounterSnapshot Counters() const;

 private:
  class Session;
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GRPC_ATTENTION_SERVICE_H_
