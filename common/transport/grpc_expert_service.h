// Serves an expert worker over gRPC.
#ifndef TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_SERVICE_H_
#define TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>

#include "common/counters.h"
#include "common/transport/expert_link.h"

namespace tandem {

struct GrpcExpertServiceOptions {
  // Per stream, of requests and the replies they will get; what is over it is refused with
  // RESOURCE_EXHAUSTED.
  int64_t max_outstanding_bytes = int64_t{1} << 30;
};

// The server side of ExpertWorker.Exchange: decodes and checks requests, hands them to the engine,
// and sends its rows from where they lie. gRPC's threads only validate and enqueue. What a client
// asked for is computed even if the client has gone, and then dropped and counted.
class GrpcExpertService {
 public:
  // `engine` must outlive the service and answer every request before it is destroyed; the service
  // must outlive its server.
  explicit GrpcExpertService(ExpertLink* engine, GrpcExpertServiceOptions options = {});
  // Waits until the engine has answered every request.
  ~GrpcExpertService();

  // For grpc::ServerBuilder::RegisterService.
  grpc::Service* service();

  // grpc_streams_live, grpc_streams_total, grpc_requests_total, grpc_refused_total (frames and
  // messages that were not fit to be computed), grpc_replies_dropped_total (their client had gone),
  // and FrameCounters'
  CounterSnapshot Counters() const;

 private:
  class Session;
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_SERVICE_H_
