#include "common/transport/expert_frame.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace tandem {
namespace {

static_assert(std::endian::native == std::endian::little, "payloads are little-endian");

constexpr uint64_t kMaxRows = uint64_t{1} << 24;
constexpr uint64_t kMaxRoutes = uint64_t{1} << 26;
constexpr uint64_t kMaxHidden = uint64_t{1} << 20;
constexpr int32_t kMaxExpert = 1 << 20;

bool IsWireDtype(uint32_t dtype) {
  return dtype == static_cast<uint32_t>(Dtype::kF32) ||
         dtype == static_cast<uint32_t>(Dtype::kBF16);
}

// ---- slices -------------------------------------------------------------------------------------

// The rows of a view as one slice; copied only if they are strided.
grpc::Slice RowsSlice(const TensorView& rows, std::shared_ptr<const void> owner) {
  if (rows.row_stride == rows.width() || rows.rows() <= 1) {
    return OwnedSlice(rows.data, rows.bytes(), std::move(owner));
  }
  std::shared_ptr<std::byte[]> dense(new std::byte[rows.bytes()]);
  CopyRows(rows, dense.get());
  return OwnedSlice(dense.get(), rows.bytes(), dense);
}

uint64_t Checksum(v1::ExpertFrameHeader header, const std::vector<grpc::Slice>& payload) {
  header.set_checksum(0);
  return FrameChecksum(header.SerializeAsString(), payload);
}

// ---- encoding -----------------------------------------------------------------------------------

EncodedFrame EncodeFrame(v1::ExpertFrameHeader header, const std::vector<grpc::Slice>& payload) {
  EncodedFrame frame;
  for (const grpc::Slice& slice : payload) frame.payload_bytes += slice.size();
  header.set_checksum(Checksum(header, payload));
  const std::string header_bytes = header.SerializeAsString();
  frame.header_bytes = header_bytes.size();
  frame.buffer = EncodeRawFrame(header_bytes, payload);
  return frame;
}

// Cuts the payload into frames of kMaxFramePayloadBytes.
absl::StatusOr<std::vector<EncodedFrame>> EncodeMessage(v1::ExpertFrameHeader header,
                                                        const std::vector<grpc::Slice>& payload) {
  uint64_t total = 0;
  for (const grpc::Slice& slice : payload) total += slice.size();
  if (total > kMaxExpertMessageBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("an expert message of ", total,
                                                     " bytes is over the limit of ",
                                                     kMaxExpertMessageBytes, " bytes"));
  }
  header.set_payload_total(total);
  std::vector<EncodedFrame> frames;
  std::vector<grpc::Slice> parts;
  uint64_t offset = 0;
  size_t part_bytes = 0;
  const auto flush = [&] {
    header.set_payload_offset(offset);
    frames.push_back(EncodeFrame(header, parts));
    offset += part_bytes;
    parts.clear();
    part_bytes = 0;
  };
  for (const grpc::Slice& slice : payload) {
    for (size_t begin = 0; begin < slice.size();) {
      const size_t end = std::min(slice.size(), begin + kMaxFramePayloadBytes - part_bytes);
      parts.push_back(slice.sub(begin, end));
      part_bytes += end - begin;
      begin = end;
      if (part_bytes == kMaxFramePayloadBytes) flush();
    }
  }
  if (part_bytes > 0 || frames.empty()) flush();
  return frames;
}

v1::ExpertFrameHeader MessageHeader(v1::ExpertFrameKind kind, const DispatchId& id) {
  v1::ExpertFrameHeader header;
  header.set_kind(kind);
  header.set_incarnation(id.incarnation);
  header.set_step(id.step);
  header.set_layer(id.layer);
  header.set_part(id.part);
  header.set_attempt(id.attempt);
  return header;
}

// ---- decoding -----------------------------------------------------------------------------------

// Reads the slices of a buffer one after the other.
class SliceReader {
 public:
  explicit SliceReader(std::vector<grpc::Slice> slices) : slices_(std::move(slices)) {
    for (const grpc::Slice& slice : slices_) left_ += slice.size();
  }

  size_t left() const { return left_; }

  bool ReadByte(uint8_t* byte) {
    SkipEmpty();
    if (left_ == 0) return false;
    *byte = slices_[index_].begin()[position_];
    Advance(1);
    return true;
  }

  // A varint in its shortest form.
  bool ReadVarint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 35; shift += 7) {
      uint8_t byte = 0;
      if (!ReadByte(&byte)) return false;
      *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return shift == 0 || byte != 0;
    }
    return false;
  }

  // Requires bytes <= left().
  std::vector<grpc::Slice> ReadSlices(size_t bytes) {
    std::vector<grpc::Slice> out;
    while (bytes > 0) {
      SkipEmpty();
      const size_t n = std::min(bytes, slices_[index_].size() - position_);
      out.push_back(slices_[index_].sub(position_, position_ + n));
      Advance(n);
      bytes -= n;
    }
    return out;
  }

 private:
  void SkipEmpty() {
    while (index_ < slices_.size() && position_ == slices_[index_].size()) {
      ++index_;
      position_ = 0;
    }
  }
  void Advance(size_t bytes) {
    position_ += bytes;
    left_ -= bytes;
  }

  std::vector<grpc::Slice> slices_;
  size_t index_ = 0;
  size_t position_ = 0;  // in slices_[index_]
  size_t left_ = 0;
};

absl::Status NotAFrame(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("not an expert frame: ", why));
}

std::shared_ptr<std::byte> AllocatePayload(size_t bytes) {
  constexpr std::align_val_t kAlign{64};
  void* memory = ::operator new(std::max<size_t>(bytes, 1), kAlign, std::nothrow);
  if (memory == nullptr) return nullptr;
  return std::shared_ptr<std::byte>(static_cast<std::byte*>(memory),
                                    [](std::byte* p) { ::operator delete(p, kAlign); });
}

// What all frames of a message have in common.
std::string CommonHeader(v1::ExpertFrameHeader header) {
  header.set_payload_offset(0);
  header.set_checksum(0);
  return header.SerializeAsString();
}

uint64_t RequestBytes(uint64_t rows, uint64_t routes, uint64_t hidden, size_t element_bytes) {
  return rows * hidden * element_bytes + 4 * (rows + 1) + 8 * routes + rows;
}

}  // namespace

std::string PrintableMessage(absl::string_view text) {
  std::string out(text.substr(0, 1024));
  for (char& c : out) {
    if (c < 0x20 || c > 0x7E) c = '?';
  }
  return out;
}

int64_t RequestPayloadBytes(const ExpertRequest& request) {
  return static_cast<int64_t>(RequestBytes(request.num_rows(), request.num_routes(),
                                           request.rows.width(), DtypeBytes(request.rows.dtype)));
}

void CopyRows(const TensorView& rows, std::byte* to) {
  if (rows.row_stride == rows.width() || rows.rows() <= 1) {
    std::memcpy(to, rows.data, rows.bytes());
    return;
  }
  const size_t row_bytes = static_cast<size_t>(rows.width()) * DtypeBytes(rows.dtype);
  for (int64_t i = 0; i < rows.rows(); ++i) {
    std::memcpy(to + i * row_bytes, rows.row(i), row_bytes);
  }
}

void CopyRequestPayload(const ExpertRequest& request, std::byte* to) {
  CopyRows(request.rows, to);
  to += request.rows.bytes();
  const auto copy = [&to](const auto& values) {
    const size_t bytes = values.size() * sizeof(values[0]);
    std::memcpy(to, values.data(), bytes);
    to += bytes;
  };
  copy(request.route_offsets);
  copy(request.route_experts);
  copy(request.route_weights);
  copy(request.combined);
}

v1::ExpertFrameHeader RequestHeader(const ExpertRequest& request) {
  v1::ExpertFrameHeader header = MessageHeader(v1::EXPERT_FRAME_KIND_REQUEST, request.id);
  header.set_placement_epoch(request.placement.epoch);
  header.set_placement_counter(request.placement.counter);
  header.set_num_rows(request.num_rows());
  header.set_num_routes(request.num_routes());
  header.set_hidden(static_cast<uint32_t>(request.rows.width()));
  header.set_dtype(static_cast<uint32_t>(request.rows.dtype));
  header.set_time_left_us(std::max<int64_t>(absl::ToInt64Microseconds(request.time_left), 0));
  if (request.traces != nullptr) {
    for (const std::string& trace : *request.traces) header.add_traceparents(trace);
  }
  return header;
}

v1::ExpertFrameHeader ReplyHeader(const DispatchId& id, const ExpertReply& reply) {
  v1::ExpertFrameHeader header = MessageHeader(v1::EXPERT_FRAME_KIND_REPLY, id);
  if (!reply.status.ok()) {
    header.set_status_code(static_cast<int32_t>(reply.status.code()));
    header.set_status_message(PrintableMessage(reply.status.message()));
    return header;
  }
  header.set_num_rows(static_cast<uint32_t>(reply.rows.rows()));
  header.set_hidden(static_cast<uint32_t>(reply.rows.width()));
  header.set_dtype(static_cast<uint32_t>(reply.rows.dtype));
  return header;
}

absl::StatusOr<std::vector<EncodedFrame>> EncodeRequest(
    std::shared_ptr<const ExpertRequest> request) {
  const auto slice_of = [&request](const auto& values) {
    return OwnedSlice(values.data(), values.size() * sizeof(values[0]), request);
  };
  return EncodeMessage(RequestHeader(*request),
                       {RowsSlice(request->rows, request), slice_of(request->route_offsets),
                        slice_of(request->route_experts), slice_of(request->route_weights),
                        slice_of(request->combined)});
}

absl::StatusOr<std::vector<EncodedFrame>> EncodeReply(const DispatchId& id,
                                                      const ExpertReply& reply) {
  if (!reply.status.ok()) return EncodeMessage(ReplyHeader(id, reply), {});
  return EncodeMessage(ReplyHeader(id, reply), {RowsSlice(reply.rows, reply.owner)});
}

EncodedFrame EncodeKeepalive() {
  v1::ExpertFrameHeader header;
  header.set_kind(v1::EXPERT_FRAME_KIND_KEEPALIVE);
  return EncodeFrame(std::move(header), {});
}

absl::StatusOr<DecodedFrame> DecodeFrame(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return NotAFrame("it cannot be read");
  SliceReader reader(std::move(slices));
  uint8_t tag = 0;
  uint64_t header_bytes = 0;
  if (!reader.ReadByte(&tag) || tag != kFrameHeaderTag) return NotAFrame("no header comes first");
  if (!reader.ReadVarint(&header_bytes) || header_bytes > reader.left()) {
    return NotAFrame("the header is cut off");
  }
  if (header_bytes > kMaxFrameHeaderBytes) return NotAFrame("the header is too long");
  std::string encoded;
  for (const grpc::Slice& slice : reader.ReadSlices(header_bytes)) {
    encoded.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  DecodedFrame frame;
  frame.header_bytes = header_bytes;
  if (!frame.header.ParseFromString(encoded)) return NotAFrame("the header cannot be decoded");
  if (frame.header.SerializeAsString() != encoded) return NotAFrame("the header is not canonical");
  if (reader.left() > 0) {
    uint64_t payload_bytes = 0;
    if (!reader.ReadByte(&tag) || tag != kFramePayloadTag) return NotAFrame("no payload follows");
    if (!reader.ReadVarint(&payload_bytes) || payload_bytes != reader.left() ||
        payload_bytes == 0) {
      return NotAFrame("the payload's length is wrong");
    }
    if (payload_bytes > kMaxFramePayloadBytes) return NotAFrame("the payload is too long");
    frame.payload_bytes = payload_bytes;
    frame.payload = reader.ReadSlices(payload_bytes);
  }
  frame.intact = Checksum(frame.header, frame.payload) == frame.header.checksum();
  return frame;
}

DispatchId IdOf(const v1::ExpertFrameHeader& header) {
  return {header.incarnation(), header.step(), header.layer(), header.part(), header.attempt()};
}

absl::Status CheckRequestHeader(const v1::ExpertFrameHeader& header) {
  if (header.kind() != v1::EXPERT_FRAME_KIND_REQUEST) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of kind ", header.kind(), " is not an expert request"));
  }
  if (!IsWireDtype(header.dtype())) {
    return absl::InvalidArgumentError(
        absl::StrCat("an expert request of the unknown dtype ", header.dtype()));
  }
  if (header.num_rows() < 1 || header.num_rows() > kMaxRows || header.num_routes() < 1 ||
      header.num_routes() > kMaxRoutes || header.hidden() < 1 || header.hidden() > kMaxHidden) {
    return absl::InvalidArgumentError(
        absl::StrCat("an expert request of ", header.num_rows(), " rows, ", header.num_routes(),
                     " routes and ", header.hidden(), " values per row is out of range"));
  }
  const uint64_t expected = RequestBytes(header.num_rows(), header.num_routes(), header.hidden(),
                                         DtypeBytes(static_cast<Dtype>(header.dtype())));
  if (header.payload_total() != expected) {
    return absl::InvalidArgumentError(absl::StrCat("an expert request of ", header.payload_total(),
                                                   " bytes should have ", expected));
  }
  return absl::OkStatus();
}

absl::Status CheckReplyHeader(const v1::ExpertFrameHeader& header, const ExpertRequest& request) {
  if (header.kind() != v1::EXPERT_FRAME_KIND_REPLY) {
    return absl::DataLossError("an expert request was answered by something else than a reply");
  }
  if (header.status_code() != 0) {
    if (header.payload_total() != 0) return absl::DataLossError("an error reply carries rows");
    return absl::OkStatus();
  }
  const uint64_t num_rows = request.num_output_rows();
  const uint64_t hidden = request.rows.width();
  if (header.num_rows() != num_rows || header.hidden() != hidden ||
      header.dtype() != static_cast<uint32_t>(request.rows.dtype) ||
      header.payload_total() != num_rows * hidden * DtypeBytes(request.rows.dtype)) {
    return absl::DataLossError(absl::StrCat(
        "a reply of ", header.num_rows(), " rows of ", header.hidden(), " values of dtype ",
        header.dtype(), " does not answer a request for ", num_rows, " rows of ", hidden,
        " values of dtype ", static_cast<int>(request.rows.dtype)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<ExpertMessage>> ExpertMessageAssembler::Add(
    const DecodedFrame& frame) {
  TANDEM_CHECK(frame.intact);
  const v1::ExpertFrameHeader& header = frame.header;
  const DispatchId id = IdOf(header);
  const auto refuse = [&](absl::Status status) {
    Drop(id);
    return status;
  };
  auto it = partial_.find(id);
  if (header.payload_offset() == 0) {
    if (it != partial_.end()) return refuse(absl::InvalidArgumentError("a message starts twice"));
    if (header.payload_total() > limits_.max_message_bytes ||
        header.payload_total() + partial_bytes_ > limits_.max_bytes ||
        partial_.size() >= limits_.max_messages) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a message of ", header.payload_total(), " bytes cannot be received beside ",
                       partial_.size(), " others of ", partial_bytes_, " bytes"));
    }
    Partial partial;
    partial.message.header = header;
    partial.message.payload_bytes = header.payload_total();
    partial.message.payload = AllocatePayload(header.payload_total());
    if (partial.message.payload == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a message of ", header.payload_total(), " bytes"));
    }
    partial.common_header = CommonHeader(header);
    partial_bytes_ += header.payload_total();
    it = partial_.emplace(id, std::move(partial)).first;
  } else if (it == partial_.end()) {
    return absl::InvalidArgumentError("a frame of a message whose start is missing");
  } else if (it->second.common_header != CommonHeader(header)) {
    return refuse(absl::InvalidArgumentError("the frames of a message contradict each other"));
  }
  Partial& partial = it->second;
  if (header.payload_offset() != partial.received_bytes ||
      frame.payload_bytes > partial.message.payload_bytes - partial.received_bytes ||
      (frame.payload_bytes == 0 && partial.message.payload_bytes > 0)) {
    return refuse(absl::InvalidArgumentError(absl::StrCat(
        "a frame with bytes ", header.payload_offset(), " to ",
        header.payload_offset() + frame.payload_bytes, " of ", partial.message.payload_bytes,
        " came after ", partial.received_bytes, " bytes")));
  }
  for (const grpc::Slice& slice : frame.payload) {
    std::memcpy(partial.message.payload.get() + partial.received_bytes, slice.begin(),
                slice.size());
    partial.received_bytes += slice.size();
  }
  if (partial.received_bytes < partial.message.payload_bytes) return std::nullopt;
  ExpertMessage message = std::move(partial.message);
  partial_bytes_ -= message.payload_bytes;
  partial_.erase(it);
  return std::optional<ExpertMessage>(std::move(message));
}

void ExpertMessageAssembler::Drop(const DispatchId& id) {
  const auto it = partial_.find(id);
  if (it == partial_.end()) return;
  partial_bytes_ -= it->second.message.payload_bytes;
  partial_.erase(it);
}

namespace {

TracesOfPart TracesOf(const v1::ExpertFrameHeader& header) {
  std::vector<std::string> traces;
  for (const std::string& trace : header.traceparents()) {
    if (traces.size() < kMaxTraces && IsTraceparent(trace)) traces.push_back(trace);
  }
  if (traces.empty()) return nullptr;
  return std::make_shared<const std::vector<std::string>>(std::move(traces));
}

absl::Status CheckRoutes(const ExpertRequest& request) {
  const int num_rows = request.num_rows();
  if (request.route_offsets[0] != 0 ||
      request.route_offsets[num_rows] != static_cast<int32_t>(request.route_experts.size())) {
    return absl::InvalidArgumentError("an expert request's routes do not cover its offsets");
  }
  for (int i = 0; i < num_rows; ++i) {
    if (request.route_offsets[i + 1] <= request.route_offsets[i]) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", i, " of an expert request has no route"));
    }
    if (request.combined[i] > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", i, " of an expert request is flagged ", request.combined[i]));
    }
  }
  for (const int32_t expert : request.route_experts) {
    if (expert < 0 || expert > kMaxExpert) {
      return absl::InvalidArgumentError(absl::StrCat("an expert request names expert ", expert));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ExpertRequest>> DecodeRequest(const ExpertMessage& message) {
  const v1::ExpertFrameHeader& header = message.header;
  TANDEM_RETURN_IF_ERROR(CheckRequestHeader(header));
  TANDEM_CHECK(message.payload_bytes == header.payload_total());
  auto request = std::make_shared<ExpertRequest>();
  request->id = IdOf(header);
  request->placement = {header.placement_epoch(), header.placement_counter()};
  request->time_left =
      header.time_left_us() >= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
          ? absl::InfiniteDuration()
          : absl::Microseconds(static_cast<int64_t>(header.time_left_us()));
  request->rows = TensorView(message.payload.get(), static_cast<Dtype>(header.dtype()),
                             {header.num_rows(), header.hidden()});
  request->rows_owner = message.payload;
  const std::byte* next = message.payload.get() + request->rows.bytes();
  const auto read = [&next](size_t count, auto* values) {
    values->resize(count);
    const size_t bytes = count * sizeof((*values)[0]);
    std::memcpy(values->data(), next, bytes);
    next += bytes;
  };
  read(header.num_rows() + 1, &request->route_offsets);
  read(header.num_routes(), &request->route_experts);
  read(header.num_routes(), &request->route_weights);
  read(header.num_rows(), &request->combined);
  request->traces = TracesOf(header);
  TANDEM_RETURN_IF_ERROR(CheckRoutes(*request));
  return std::shared_ptr<const ExpertRequest>(std::move(request));
}

ExpertReply DecodeReply(const ExpertMessage& message) {
  const v1::ExpertFrameHeader& header = message.header;
  ExpertReply reply;
  if (header.status_code() != 0) {
    const bool known = header.status_code() > 0 &&
                       header.status_code() <= static_cast<int>(absl::StatusCode::kUnauthenticated);
    reply.status = absl::Status(
        known ? static_cast<absl::StatusCode>(header.status_code()) : absl::StatusCode::kUnknown,
        header.status_message());
    return reply;
  }
  reply.rows = TensorView(message.payload.get(), static_cast<Dtype>(header.dtype()),
                          {header.num_rows(), header.hidden()});
  reply.owner = message.payload;
  return reply;
}

void FrameCounters::AddSent(const EncodedFrame& frame) {
  sent_.frames.fetch_add(1, std::memory_order_relaxed);
  sent_.header_bytes.fetch_add(frame.header_bytes, std::memory_order_relaxed);
  sent_.payload_bytes.fetch_add(frame.payload_bytes, std::memory_order_relaxed);
}

void FrameCounters::AddReceived(const DecodedFrame& frame) {
  received_.frames.fetch_add(1, std::memory_order_relaxed);
  received_.header_bytes.fetch_add(frame.header_bytes, std::memory_order_relaxed);
  received_.payload_bytes.fetch_add(frame.payload_bytes, std::memory_order_relaxed);
}

void FrameCounters::AppendTo(CounterSnapshot* snapshot) const {
  snapshot->emplace_back("frames_sent_total", sent_.frames.load());
  snapshot->emplace_back("header_bytes_sent_total", sent_.header_bytes.load());
  snapshot->emplace_back("payload_bytes_sent_total", sent_.payload_bytes.load());
  snapshot->emplace_back("frames_received_total", received_.frames.load());
  snapshot->emplace_back("header_bytes_received_total", received_.header_bytes.load());
  snapshot->emplace_back("payload_bytes_received_total", received_.payload_bytes.load());
}

}  // namespace tandem
