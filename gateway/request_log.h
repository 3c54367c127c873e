// What a gateway logs of its calls: a line for each, of how it ended and what it took, that names
// its request and its trace. Never what was asked or answered.
#ifndef TANDEM_GATEWAY_REQUEST_LOG_H_
#define TANDEM_GATEWAY_REQUEST_LOG_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "common/log_rate.h"
#include "common/log_scope.h"
#include "common/request_tag.h"

namespace tandem {

enum class RequestLogLevel : uint8_t {
  kNone,
  kFailed,  // calls that the deployment failed, as often as LogRate allows
  kAll,
};

// The metadata key of a request's id, in both directions.
inline constexpr char kRequestIdKey[] = "x-request-id";

// Whose a call is, by its metadata: x-request-id, or a new one if that is none; traceparent, if
// there is one alone and it is valid, and with it tracestate, of several the members of all.
RequestTag TagOf(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata);

// Thread-safe.
class RequestLog {
 public:
  explicit RequestLog(RequestLogLevel level) : level_(level) {}

  // The call `rpc` has ended, within the LogScope of its request. `details`: what is known of it.
  void Ended(absl::string_view rpc, const grpc::Status& status, LogFields details);

 private:
  const RequestLogLevel level_;
  LogRate rate_;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_REQUEST_LOG_H_
