// gRPC's statuses and abseil's: the same codes mean the same on both sides.
#ifndef TANDEM_COMMON_SERVICE_GRPC_STATUS_H_
#define TANDEM_COMMON_SERVICE_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace tandem {

// Messages beyond 1 KiB are cut between two characters: a message travels in a header, and gRPC
// ends a call whose headers are too large with another status than the one that was meant.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_GRPC_STATUS_H_
