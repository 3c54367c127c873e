// Packed weights of an expert as frames on the wire (proto/weights.proto), from one expert worker
// to another. What is received is untrusted.
#ifndef TANDEM_COMMON_TRANSPORT_WEIGHTS_FRAME_H_
#define TANDEM_COMMON_TRANSPORT_WEIGHTS_FRAME_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/packed_unit.h"
#include "common/transport/raw_frame.h"
#include "proto/weights.pb.h"

namespace tandem {

inline constexpr int kMaxWeightsFrameBytes =
    static_cast<int>(kMaxFramePayloadBytes + 2 * kMaxFrameHeaderBytes);

// What all weights of a worker have in common.
struct WeightsOrigin {
  std::string digest;  // of the checkpoint
  std::string numerics_class;
};

v1::WeightsLabel MakeWeightsLabel(const WeightsOrigin& origin, int layer, int expert,
                                  const PackedLayout& layout);

// INVALID_ARGUMENT for what is no label, or too long for a header.
absl::StatusOr<v1::WeightsLabel> DecodeWeightsLabel(const grpc::ByteBuffer& buffer);

// FAILED_PRECONDITION, with both sides, unless `asked` names what this worker has.
absl::Status CheckWeightsLabel(const v1::WeightsLabel& asked, const v1::WeightsLabel& ours);

// A frame ready to be written, without a copy.
struct EncodedWeights {
  grpc::ByteBuffer frame;
  int64_t payload_bytes = 0;
};
// The frame from `offset`, below the label's bytes, on. `memory` has the label's bytes.
EncodedWeights EncodeWeights(const v1::WeightsLabel& label,
                             const std::shared_ptr<const std::byte>& memory, int64_t offset);

// Puts one expert's frames together. Not thread-safe.
class WeightsReceiver {
 public:
  explicit WeightsReceiver(v1::WeightsLabel label);

  //   DATA_LOSS           it is not the next frame of what the label names, or not as it was sent
  //   RESOURCE_EXHAUSTED  there is no memory for the weights
  absl::Status Add(const v1::WeightsFrame& frame);
  // All of it, at a multiple of the page size, once. DATA_LOSS: there is more to come.
  absl::StatusOr<std::shared_ptr<const std::byte>> Take();

  int64_t received_bytes() const { return received_bytes_; }

 private:
  const v1::WeightsLabel label_;
  const std::string encoded_label_;
  std::shared_ptr<std::byte> memory_;  // from the first frame on
  int64_t received_bytes_ = 0;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_WEIGHTS_FRAME_H_
