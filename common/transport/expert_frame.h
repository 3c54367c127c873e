// Expert requests and replies as frames on the wire.
//
// A frame is one proto/expert.proto ExpertFrame (raw_frame.h). Only the header passes through
// protobuf; the payload is sent as slices that point into the tensors. A message is cut into frames
// of at most kMaxFramePayloadBytes; its payload, little-endian and without padding, is
//   request: rows [num_rows, hidden] in the wire dtype, i32 route_offsets [num_rows + 1],
//            i32 route_experts [num_routes], f32 route_weights [num_routes], u8 combined [num_rows]
//   reply:   rows [num_rows, hidden] in the wire dtype; nothing where the status is not OK
// Every frame's checksum covers its header and its payload. What is received is untrusted: each
// function here answers any bytes with a value or a status.
#ifndef TANDEM_COMMON_TRANSPORT_EXPERT_FRAME_H_
#define TANDEM_COMMON_TRANSPORT_EXPERT_FRAME_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/counters.h"
#include "common/transport/expert_link.h"
#include "common/transport/raw_frame.h"
#include "proto/expert.pb.h"

namespace tandem {

inline constexpr uint64_t kMaxExpertMessageBytes = uint64_t{1} << 30;

template <typename H>
H AbslHashValue(H h, const DispatchId& id) {
  return H::combine(std::move(h), id.incarnation, id.step, id.layer, id.part, id.attempt);
}

// A frame ready to be written. The buffer's slices keep what they point to alive.
struct EncodedFrame {
  grpc::ByteBuffer buffer;
  size_t header_bytes = 0;   // encoded by protobuf
  size_t payload_bytes = 0;  // raw
};

// Cuts a message into frames; never empty. Rows are referenced, not copied, unless they are
// strided. RESOURCE_EXHAUSTED for messages over kMaxExpertMessageBytes.
absl::StatusOr<std::vector<EncodedFrame>> EncodeRequest(
    std::shared_ptr<const ExpertRequest> request);
absl::StatusOr<std::vector<EncodedFrame>> EncodeReply(const DispatchId& id,
                                                      const ExpertReply& reply);
EncodedFrame EncodeKeepalive();

// Bytes of a request's message, rows and routes.
int64_t RequestPayloadBytes(const ExpertRequest& request);
// Writes that message's payload to `to`.
void CopyRequestPayload(const ExpertRequest& request, std::byte* to);
// Writes rows one after the other, without what may lie between them.
void CopyRows(const TensorView& rows, std::byte* to);

// A message's header, but for payload_offset, payload_total and checksum.
v1::ExpertFrameHeader RequestHeader(const ExpertRequest& request);
v1::ExpertFrameHeader ReplyHeader(const DispatchId& id, const ExpertReply& reply);

// A received frame.
struct DecodedFrame {
  v1::ExpertFrameHeader header;
  std::vector<grpc::Slice> payload;
  size_t header_bytes = 0;
  size_t payload_bytes = 0;
  bool intact = false;  // the checksum is right; if not, the header may name anything
};

// INVALID_ARGUMENT for what is not a frame, its header not canonical, or too large.
absl::StatusOr<DecodedFrame> DecodeFrame(const grpc::ByteBuffer& buffer);

DispatchId IdOf(const v1::ExpertFrameHeader& header);

// INVALID_ARGUMENT unless the header's sizes agree with each other and are within limits: after
// that, payload_total bytes are worth being received.
absl::Status CheckRequestHeader(const v1::ExpertFrameHeader& header);
// DATA_LOSS unless the header announces what answers `request`, or an error.
absl::Status CheckReplyHeader(const v1::ExpertFrameHeader& header, const ExpertRequest& request);

// A whole message.
struct ExpertMessage {
  v1::ExpertFrameHeader header;  // of its first frame
  std::shared_ptr<std::byte> payload;
  size_t payload_bytes = 0;
};

// Puts frames of interleaved messages together. Not thread-safe: one per reader.
class ExpertMessageAssembler {
 public:
  struct Limits {
    size_t max_messages = 64;                // under assembly at once
    uint64_t max_bytes = uint64_t{2} << 30;  // of their payload_total together
    uint64_t max_message_bytes = kMaxExpertMessageBytes;
  };

  ExpertMessageAssembler() = default;
  explicit ExpertMessageAssembler(Limits limits) : limits_(limits) {}

  // The whole message if `frame`, which must be intact, completes it. An error (INVALID_ARGUMENT,
  // RESOURCE_EXHAUSTED) concerns that message only, whose earlier frames are dropped.
  absl::StatusOr<std::optional<ExpertMessage>> Add(const DecodedFrame& frame);
  // Forgets a message under assembly, if there is one.
  void Drop(const DispatchId& id);

  size_t num_messages() const { return partial_.size(); }

 private:
  struct Partial {
    ExpertMessage message;
    std::string common_header;  // what all its frames must repeat
    uint64_t received_bytes = 0;
  };

  Limits limits_;
  absl::flat_hash_map<DispatchId, Partial> partial_;
  uint64_t partial_bytes_ = 0;
};

// INVALID_ARGUMENT unless every offset, expert and flag is in range and each row has a route. The
// request's rows stay in the message's memory, which it keeps alive.
absl::StatusOr<std::shared_ptr<const ExpertRequest>> DecodeRequest(const ExpertMessage& message);
// Requires CheckReplyHeader to have passed.
ExpertReply DecodeReply(const ExpertMessage& message);

// What crossed in both directions. Thread-safe.
class FrameCounters {
 public:
  void AddSent(const EncodedFrame& frame);
  void AddReceived(const DecodedFrame& frame);
  // frames_sent_total, header_bytes_sent_total (encoded by protobuf), payload_bytes_sent_total
  // (raw), and the same three with _received_
  void AppendTo(CounterSnapshot* snapshot) const;

 private:
  struct Direction {
    std::atomic<int64_t> frames{0};
    std::atomic<int64_t> header_bytes{0};
    std::atomic<int64_t> payload_bytes{0};
  };
  Direction sent_;
  Direction received_;
};

// `text`, with what is not printable ASCII replaced and cut to 1 KiB: fit for a protobuf string.
std::string PrintableMessage(absl::string_view text);

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_EXPERT_FRAME_H_
