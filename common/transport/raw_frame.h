// Frames whose header is encoded by protobuf and whose payload is memory as it lies: a message with
// the header as its field 1 and the payload as its field 2, in protobuf's own encoding and in
// canonical order:
//   0x0A, varint length, the encoded header, 0x12, varint length, payload
// (the last three parts are absent where the payload is empty).
#ifndef TANDEM_COMMON_TRANSPORT_RAW_FRAME_H_
#define TANDEM_COMMON_TRANSPORT_RAW_FRAME_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tandem {

inline constexpr uint8_t kFrameHeaderTag = 0x0A;   // field 1, length-delimited
inline constexpr uint8_t kFramePayloadTag = 0x12;  // field 2, length-delimited

inline constexpr size_t kMaxFramePayloadBytes = size_t{1} << 20;
inline constexpr size_t kMaxFrameHeaderBytes = 4096;

// A slice of memory that `owner` keeps alive, without a copy.
grpc::Slice OwnedSlice(const void* data, size_t bytes, std::shared_ptr<const void> owner);

// XXH3-64 of an encoded header, whose own field for it is zero, then of the payload.
uint64_t FrameChecksum(const std::string& header, const std::vector<grpc::Slice>& payload);

// The buffer's slices keep what they point to alive.
grpc::ByteBuffer EncodeRawFrame(const std::string& header, const std::vector<grpc::Slice>& payload);

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_RAW_FRAME_H_
