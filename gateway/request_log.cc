#include "gateway/request_log.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// Of the deployment's making: not a client's, nor what a client asks beyond what there is.
bool IsFailure(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DATA_LOSS:
      return true;
    default:
      return false;
  }
}

}  // namespace

RequestTag TagOf(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata) {
  const auto text = [](const grpc::string_ref& ref) { return std::string(ref.data(), ref.size()); };
  RequestTag tag;
  if (metadata.count("traceparent") == 1)
    tag.traceparent = text(metadata.find("traceparent")->second);
  const auto states = metadata.equal_range("tracestate");
  for (auto it = states.first; it != states.second; ++it) {
    absl::StrAppend(&tag.tracestate, tag.tracestate.empty() ? "" : ",", text(it->second));
  }
  if (metadata.count(kRequestIdKey) == 1)
    tag.request_id = text(metadata.find(kRequestIdKey)->second);
  tag = Sanitized(std::move(tag));
  if (tag.request_id.empty()) tag.request_id = NewRequestId();
  return tag;
}

void RequestLog::Ended(absl::string_view rpc, const grpc::Status& status, LogFields details) {
  const bool failure = IsFailure(status.error_code());
  if (level_ == RequestLogLevel::kNone || (level_ == RequestLogLevel::kFailed && !failure)) return;
  std::string left_out;
  if (level_ == RequestLogLevel::kFailed) {
    std::optional<std::string> taken = rate_.Take(LogRate::Clock::now());
    if (!taken.has_value()) return;
    left_out = *std::move(taken);
  }
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  details.emplace_back("status", std::string(absl::StatusCodeToString(code)));
  const LogScope scope(std::move(details));
  // A sentence about what a client has got wrong may quote it, and the client has been told.
  if (!failure) return spdlog::info("{} ended", std::string(rpc));
  spdlog::warn("{} failed: {}{}", std::string(rpc), status.error_message(), left_out);
}

}  // namespace tandem
