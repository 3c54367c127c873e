#include "common/transport/weights_frame.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/huge_memory.h"

namespace tandem {
namespace {

uint64_t Checksum(v1::WeightsFrameHeader header, const std::vector<grpc::Slice>& payload) {
  header.set_checksum(0);
  return FrameChecksum(header.SerializeAsString(), payload);
}

absl::Status Differs(const char* what, const std::string& asked, const std::string& ours) {
  return absl::FailedPreconditionError(absl::StrCat("asked for weights of ", what, " \"", asked,
                                                    "\", and this worker's are of \"", ours, "\""));
}

}  // namespace

v1::WeightsLabel MakeWeightsLabel(const WeightsOrigin& origin, int layer, int expert,
                                  const PackedLayout& layout) {
  v1::WeightsLabel label;
  label.set_digest(origin.digest);
  label.set_numerics_class(origin.numerics_class);
  label.set_layer(static_cast<uint32_t>(layer));
  label.set_expert(static_cast<uint32_t>(expert));
  label.set_layout(layout.name);
  label.set_bytes(static_cast<uint64_t>(layout.bytes));
  return label;
}

absl::StatusOr<v1::WeightsLabel> DecodeWeightsLabel(const grpc::ByteBuffer& buffer) {
  // What else a frame's header has is less than the other half.
  constexpr size_t kMaxLabelBytes = kMaxFrameHeaderBytes / 2;
  std::vector<grpc::Slice> slices;
  v1::WeightsLabel label;
  std::string encoded;
  if (buffer.Valid() && buffer.Length() <= kMaxLabelBytes && buffer.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) {
      encoded.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    if (label.ParseFromString(encoded)) return label;
  }
  return absl::InvalidArgumentError("a request for weights that names none");
}

absl::Status CheckWeightsLabel(const v1::WeightsLabel& asked, const v1::WeightsLabel& ours) {
  if (asked.digest() != ours.digest()) {
    return Differs("the checkpoint digest", asked.digest(), ours.digest());
  }
  if (asked.numerics_class() != ours.numerics_class()) {
    return Differs("the numerics class", asked.numerics_class(), ours.numerics_class());
  }
  if (asked.layout() != ours.layout() || asked.bytes() != ours.bytes()) {
    return Differs("the layout", absl::StrCat(asked.layout(), ", ", asked.bytes(), " bytes"),
                   absl::StrCat(ours.layout(), ", ", ours.bytes(), " bytes"));
  }
  return absl::OkStatus();
}

EncodedWeights EncodeWeights(const v1::WeightsLabel& label,
                             const std::shared_ptr<const std::byte>& memory, int64_t offset) {
  EncodedWeights encoded;
  encoded.payload_bytes = std::min(static_cast<int64_t>(kMaxFramePayloadBytes),
                                   static_cast<int64_t>(label.bytes()) - offset);
  const std::vector<grpc::Slice> payload = {
      OwnedSlice(memory.get() + offset, static_cast<size_t>(encoded.payload_bytes), memory)};
  v1::WeightsFrameHeader header;
  *header.mutable_label() = label;
  header.set_offset(static_cast<uint64_t>(offset));
  header.set_checksum(Checksum(header, payload));
  encoded.frame = EncodeRawFrame(header.SerializeAsString(), payload);
  return encoded;
}

WeightsReceiver::WeightsReceiver(v1::WeightsLabel label)
    : label_(std::move(label)), encoded_label_(label_.SerializeAsString()) {}

absl::Status WeightsReceiver::Add(const v1::WeightsFrame& frame) {
  const int64_t left = static_cast<int64_t>(label_.bytes()) - received_bytes_;
  const int64_t expected = std::min(static_cast<int64_t>(kMaxFramePayloadBytes), left);
  if (frame.header().label().SerializeAsString() != encoded_label_) {
    return absl::DataLossError("a frame of other weights than were asked for");
  }
  const std::string& payload = frame.payload();
  if (frame.header().offset() != static_cast<uint64_t>(received_bytes_) || expected == 0 ||
      static_cast<int64_t>(payload.size()) != expected) {
    return absl::DataLossError(absl::StrCat("a frame of ", payload.size(), " bytes from ",
                                            frame.header().offset(), " on came after ",
                                            received_bytes_, " of ", label_.bytes()));
  }
  const grpc::Slice slice(payload.data(), payload.size(), grpc::Slice::STATIC_SLICE);
  if (Checksum(frame.header(), {slice}) != frame.header().checksum()) {
    return absl::DataLossError("a frame of weights does not match its checksum");
  }
  if (memory_ == nullptr) memory_ = NewHugeMemory(static_cast<int64_t>(label_.bytes()));
  if (memory_ == nullptr) return absl::ResourceExhaustedError("no memory for an expert's weights");
  std::memcpy(memory_.get() + received_bytes_, payload.data(), payload.size());
  received_bytes_ += expected;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const std::byte>> WeightsReceiver::Take() {
  if (memory_ == nullptr || received_bytes_ != static_cast<int64_t>(label_.bytes())) {
    return absl::DataLossError(absl::StrCat("the weights ended after ", received_bytes_, " of ",
                                            label_.bytes(), " bytes"));
  }
  return std::shared_ptr<const std::byte>(std::move(memory_));
}

}  // namespace tandem
