// What a link's reply to a request is worth.
#ifndef TANDEM_COMMON_TRANSPORT_REPLY_CHECK_H_
#define TANDEM_COMMON_TRANSPORT_REPLY_CHECK_H_

#include "absl/status/status.h"
#include "common/transport/expert_link.h"

namespace tandem {

// OK, or why its rows cannot be taken.
inline absl::Status CheckReply(const ExpertReply& reply, const ExpertRequest& request) {
  if (!reply.status.ok()) return reply.status;
  if (reply.rows.rank == 2 && reply.rows.rows() == request.num_output_rows() &&
      reply.rows.width() == request.rows.width() && reply.rows.dtype == request.rows.dtype) {
    return absl::OkStatus();
  }
  return absl::DataLossError("its reply does not answer the request");
}

// The worker has let go of the experts, and a newer placement is on its way: no fault of its own.
inline bool HasLetGo(const absl::Status& status) {
  return status.code() == absl::StatusCode::kNotFound ||
         status.code() == absl::StatusCode::kFailedPrecondition;
}

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_REPLY_CHECK_H_
