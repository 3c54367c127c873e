// What the two sides of a shared-memory expert link agree on.
//
// The attention worker connects to the expert worker's socket and passes memory that it has made:
// a message that says kShmHello and carries the file. Then each message on the socket is the header
// of an expert request or reply as proto/expert.proto has it, encoded by protobuf; the payload lies
// in the memory, in the form of common/transport/expert_frame.h. A request's payload_offset says
// where; its reply's rows are put behind it, where the attention worker has left room for them.
// There are no checksums: memory is no network. Headers travel on the socket, where nobody can
// change them any more; the routes in the memory are copied before they are checked.
#ifndef TANDEM_COMMON_TRANSPORT_SHM_EXPERT_PROTOCOL_H_
#define TANDEM_COMMON_TRANSPORT_SHM_EXPERT_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/transport/expert_link.h"
#include "common/transport/shared_memory.h"

namespace tandem {

inline constexpr absl::string_view kShmHello = "tandem expert rows, version 1";

// Where the expert worker that is this process's life listens. Being random, it names no other
// process, and no later life of the same worker.
inline std::string ShmSocketName(uint64_t incarnation) {
  return absl::StrCat("tandem-expert-", absl::Hex(incarnation, absl::kZeroPad16));
}

// Where a reply's rows begin, counted from the request's payload of so many bytes.
constexpr uint64_t ShmReplyOffset(uint64_t request_bytes) {
  return (request_bytes + SharedBlocks::kAlign - 1) / SharedBlocks::kAlign * SharedBlocks::kAlign;
}
inline uint64_t ShmReplyBytes(const ExpertRequest& request) {
  return static_cast<uint64_t>(request.num_output_rows()) * request.rows.width() *
         DtypeBytes(request.rows.dtype);
}

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_SHM_EXPERT_PROTOCOL_H_
