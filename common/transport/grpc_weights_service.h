// Gives other expert workers the weights that this one has packed, over gRPC.
#ifndef TANDEM_COMMON_TRANSPORT_GRPC_WEIGHTS_SERVICE_H_
#define TANDEM_COMMON_TRANSPORT_GRPC_WEIGHTS_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/packed_unit.h"
#include "common/transport/weights_frame.h"

namespace tandem {

struct GrpcWeightsServiceOptions {
  // Of what this worker has. Its digest is empty while it is not known.
  std::function<WeightsOrigin()> origin;
  // Of an expert that is loaded: LoadedExperts::Packed.
  std::function<absl::StatusOr<PackedBytes>(int64_t layer, int32_t expert)> find;
  // How long to send nothing to anybody after a frame with so many bytes, whose making took
  // `passed`. Null: no pauses.
  std::function<absl::Duration(int64_t bytes, absl::Duration passed)> pause;
  int max_transfers = 16;                             // at once; more are refused
  absl::Duration transfer_limit = absl::Seconds(30);  // then it is ended, whoever reads slowly
};

// The server side of ExpertWeights.Fetch. One thread sends, a frame at a time, to whom it is the
// turn of, from where the weights lie: so pauses are those of all transfers together, and who does
// not read keeps nobody waiting. Weights that are let go of stay until their transfer has ended.
class GrpcWeightsService {
 public:
  explicit GrpcWeightsService(GrpcWeightsServiceOptions options);
  // Requires that its server has been shut down.
  ~GrpcWeightsService();

  // For grpc::ServerBuilder::RegisterService.
  grpc::Service* service();

  // weights_sent_total (experts, to the end), weights_sent_bytes_total, weights_refused_total,
  // weights_transfers_live
  CounterSnapshot Counters() const;

 private:
  class Transfer;
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GRPC_WEIGHTS_SERVICE_H_
