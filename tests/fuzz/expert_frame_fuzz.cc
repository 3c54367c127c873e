// Frames as they come to an expert worker, and replies as they come to an attention worker. A frame
// is its length in two bytes, then so many bytes. Whoever attacks can compute checksums, so a wrong
// one ends nothing here.

#include <grpcpp/support/byte_buffer.h>

#include <memory>

#include "common/transport/expert_frame.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace tandem;

void CheckRequest(const ExpertRequest& request) {
  TANDEM_CHECK(request.rows.bytes() <= kMaxExpertMessageBytes);
  // Reads all that it is made of.
  const int64_t bytes = RequestPayloadBytes(request);
  std::unique_ptr<std::byte[]> copy(new std::byte[static_cast<size_t>(bytes)]);
  CopyRequestPayload(request, copy.get());
  TANDEM_CHECK(EncodeRequest(std::make_shared<const ExpertRequest>(request)).ok());
}

void CheckReply(const ExpertRequest& request, const ExpertReply& reply) {
  if (!reply.status.ok()) return;
  TANDEM_CHECK(reply.rows.rows() == request.num_output_rows());
  std::unique_ptr<std::byte[]> copy(new std::byte[static_cast<size_t>(reply.rows.bytes())]);
  CopyRows(reply.rows, copy.get());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  ExpertMessageAssembler assembler(
      {.max_messages = 4, .max_bytes = uint64_t{1} << 20, .max_message_bytes = uint64_t{1} << 18});
  std::shared_ptr<const ExpertRequest> asked;  // the last good one, which replies answer
  while (!input.empty()) {
    const absl::string_view bytes = input.Take(input.Number());
    const grpc::Slice slice(bytes.data(), bytes.size());
    auto frame = DecodeFrame(grpc::ByteBuffer(&slice, 1));
    if (!frame.ok()) continue;
    frame->intact = true;
    const bool is_request = CheckRequestHeader(frame->header).ok();
    const bool is_reply = asked != nullptr && CheckReplyHeader(frame->header, *asked).ok();
    const auto message = assembler.Add(*frame);
    TANDEM_CHECK(assembler.num_messages() <= 4);
    if (!message.ok() || !message->has_value()) continue;
    if (is_request) {
      const auto request = DecodeRequest(**message);
      if (!request.ok()) continue;
      CheckRequest(**request);
      asked = *request;
    } else if (is_reply) {
      CheckReply(*asked, DecodeReply(**message));
    }
  }
  return 0;
}
