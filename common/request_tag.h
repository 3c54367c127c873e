// Whose request a piece of work is: for logs alone, never for what is computed.
#ifndef TANDEM_COMMON_REQUEST_TAG_H_
#define TANDEM_COMMON_REQUEST_TAG_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/log_scope.h"

namespace tandem {

// Travels with a request to every worker. Each text is valid or empty.
struct RequestTag {
  std::string request_id;   // IsRequestId
  std::string traceparent;  // IsTraceparent
  std::string tracestate;   // IsTracestate; empty without a traceparent
};

// What may be a request's id: 1 to 128 letters, digits, and ._:/+=@- (so UUIDs, base64 and paths).
bool IsRequestId(absl::string_view text);
std::string NewRequestId();  // random, 32 hexadecimal digits

// W3C Trace Context, level 1 (https://www.w3.org/TR/trace-context-1/). Later versions than 00 are
// taken as far as they begin like it. Nothing is recorded here, so what came is passed on as it is.
bool IsTraceparent(absl::string_view text);
// Parts of a valid traceparent: 32 hexadecimal digits, and whether whoever began the trace records
// it.
absl::string_view TraceIdOf(absl::string_view traceparent);
bool IsSampled(absl::string_view traceparent);
// At most 512 characters and 32 members.
bool IsTracestate(absl::string_view text);

// Leaves what is valid of it.
RequestTag Sanitized(RequestTag tag);

// Of how many requests at most something is said where many are worked on together.
inline constexpr size_t kMaxTraces = 4;

// request_id and trace_id, as far as there are any.
LogFields FieldsOf(const RequestTag& tag);
// The same of rows of several requests that are worked on together: of each kMaxTraces at most,
// with commas.
LogFields FieldsOf(const std::vector<const RequestTag*>& tags);

// The traceparents of the requests that have rows in a part of a layer: at most kMaxTraces
// different ones, those that are recorded first. Null: none. Shared by all parts of a layer.
using TracesOfPart = std::shared_ptr<const std::vector<std::string>>;

TracesOfPart ChooseTraces(const std::vector<const RequestTag*>& tags);
// trace_id: their ids, with commas; nothing without.
LogFields FieldsOf(const TracesOfPart& traces);

}  // namespace tandem

#endif  // TANDEM_COMMON_REQUEST_TAG_H_
