#include "common/transport/expert_frame.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <random>
#include <string>
#include <vector>

#include "tests/common/transport/fake_expert.h"

namespace tandem {
namespace {

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string out;
  for (const grpc::Slice& slice : slices) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return out;
}

// As a socket may deliver it: in pieces.
grpc::ByteBuffer Buffer(const std::string& bytes, size_t piece = 100) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < bytes.size(); i += piece) slices.emplace_back(bytes.substr(i, piece));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

// A frame with the right checksum, whatever its header says.
DecodedFrame Forge(v1::ExpertFrameHeader header, const std::string& payload) {
  header.set_checksum(0);
  const std::string hashed = header.SerializeAsString() + payload;
  header.set_checksum(XXH3_64bits(hashed.data(), hashed.size()));
  v1::ExpertFrame frame;
  *frame.mutable_header() = header;
  frame.set_payload(payload);
  absl::StatusOr<DecodedFrame> decoded = DecodeFrame(Buffer(frame.SerializeAsString(), 1 << 14));
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(decoded->intact);
  return *decoded;
}

std::vector<EncodedFrame> Encode(const std::shared_ptr<const ExpertRequest>& request) {
  absl::StatusOr<std::vector<EncodedFrame>> frames = EncodeRequest(request);
  EXPECT_TRUE(frames.ok()) << frames.status();
  return *std::move(frames);
}

// Sends the frames through an assembler.
absl::StatusOr<ExpertMessage> Receive(const std::vector<EncodedFrame>& frames) {
  ExpertMessageAssembler assembler;
  for (size_t i = 0; i < frames.size(); ++i) {
    absl::StatusOr<DecodedFrame> frame = DecodeFrame(Buffer(Bytes(frames[i].buffer), 1 << 14));
    if (!frame.ok()) return frame.status();
    EXPECT_TRUE(frame->intact);
    absl::StatusOr<std::optional<ExpertMessage>> message = assembler.Add(*frame);
    if (!message.ok()) return message.status();
    EXPECT_EQ(message->has_value(), i + 1 == frames.size());
    if (message->has_value()) return **std::move(message);
  }
  return absl::InternalError("no message");
}

void ExpectEqual(const ExpertRequest& a, const ExpertRequest& b) {
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(a.placement, b.placement);
  EXPECT_EQ(a.time_left, b.time_left);
  EXPECT_TRUE(SameBytes(a.rows, b.rows));
  EXPECT_EQ(a.route_offsets, b.route_offsets);
  EXPECT_EQ(a.route_experts, b.route_experts);
  EXPECT_EQ(a.route_weights, b.route_weights);
  EXPECT_EQ(a.combined, b.combined);
}

TEST(ExpertFrameTest, RequestsOfAnySizeComeBackAsTheyWere) {
  for (const int num_rows : {1, 3, 50, 700, 2000}) {
    const auto request = MakeFakeRequest(4, num_rows, 1024);
    const std::vector<EncodedFrame> frames = Encode(request);
    EXPECT_EQ(frames.size(),
              (RequestPayloadBytes(*request) + kMaxFramePayloadBytes - 1) / kMaxFramePayloadBytes);
    absl::StatusOr<ExpertMessage> message = Receive(frames);
    ASSERT_TRUE(message.ok()) << message.status();
    const auto decoded = DecodeRequest(*message);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ExpectEqual(**decoded, *request);
  }
}

TEST(ExpertFrameTest, TracesCrossAFewOfThemAndOnlyValidOnes) {
  const std::string begin = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333";
  std::vector<std::string> traces = {"none", begin + "1-01"};
  for (const char digit : {'2', '3', '4', '5', '6'}) traces.push_back(begin + digit + "-00");
  const auto request = MakeFakeRequest(4, 700, 1024);  // of several frames
  request->traces = std::make_shared<const std::vector<std::string>>(traces);
  absl::StatusOr<ExpertMessage> message = Receive(Encode(request));
  ASSERT_TRUE(message.ok()) << message.status();
  const auto decoded = DecodeRequest(*message);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ASSERT_NE((*decoded)->traces, nullptr);
  EXPECT_EQ(*(*decoded)->traces, std::vector<std::string>(traces.begin() + 1, traces.begin() + 5));

  message = Receive(Encode(MakeFakeRequest(4, 3, 1024)));
  ASSERT_TRUE(message.ok());
  EXPECT_EQ((*DecodeRequest(*message))->traces, nullptr);
}

TEST(ExpertFrameTest, StridedRowsAndEndlessTimeCross) {
  const auto request = MakeFakeRequest(4, 6, 64);
  request->rows.shape[1] = 40;  // of rows 64 apart
  request->time_left = absl::InfiniteDuration();
  absl::StatusOr<ExpertMessage> message = Receive(Encode(request));
  ASSERT_TRUE(message.ok());
  const auto decoded = DecodeRequest(*message);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ((*decoded)->time_left, absl::InfiniteDuration());
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(std::memcmp((*decoded)->rows.row(i), request->rows.row(i), 40 * 4), 0);
  }
}

TEST(ExpertFrameTest, RepliesAndErrorsComeBackAsTheyWere) {
  const auto request = MakeFakeRequest(4, 500, 1024);
  const ExpertReply reply = ComputeFakeReply(*request);
  absl::StatusOr<std::vector<EncodedFrame>> frames = EncodeReply(request->id, reply);
  ASSERT_TRUE(frames.ok());
  EXPECT_GT(frames->size(), 1u);
  absl::StatusOr<ExpertMessage> message = Receive(*frames);
  ASSERT_TRUE(message.ok());
  EXPECT_TRUE(CheckReplyHeader(message->header, *request).ok());
  EXPECT_TRUE(SameBytes(DecodeReply(*message).rows, reply.rows));

  frames = EncodeReply(request->id, {absl::NotFoundError("no \xff expert"), {}, nullptr});
  ASSERT_TRUE(frames.ok());
  message = Receive(*frames);
  ASSERT_TRUE(message.ok());
  EXPECT_TRUE(CheckReplyHeader(message->header, *request).ok());
  EXPECT_EQ(DecodeReply(*message).status, absl::NotFoundError("no ? expert"));
}

TEST(ExpertFrameTest, AFrameIsWhatProtobufWouldHaveWritten) {
  const std::string bytes = Bytes(Encode(MakeFakeRequest(4, 3, 8))[0].buffer);
  v1::ExpertFrame frame;
  ASSERT_TRUE(frame.ParseFromString(bytes));
  EXPECT_EQ(frame.SerializeAsString(), bytes);
  EXPECT_EQ(frame.header().kind(), v1::EXPERT_FRAME_KIND_REQUEST);
  const std::string keepalive = Bytes(EncodeKeepalive().buffer);
  ASSERT_TRUE(frame.ParseFromString(keepalive));
  EXPECT_EQ(frame.SerializeAsString(), keepalive);
}

TEST(ExpertFrameTest, RowsAreReferencedNotCopied) {
  const auto request = MakeFakeRequest(4, 10, 1024);
  const std::vector<EncodedFrame> frames = Encode(request);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(frames[0].buffer.Dump(&slices).ok());
  EXPECT_EQ(static_cast<const void*>(slices[1].begin()), request->rows.data);
  EXPECT_LT(frames[0].header_bytes, 128u);
  EXPECT_EQ(frames[0].payload_bytes, static_cast<size_t>(RequestPayloadBytes(*request)));
}

TEST(ExpertFrameTest, SlicesKeepTheirRequestAlive) {
  auto request = MakeFakeRequest(4, 2, 8);
  const std::weak_ptr<ExpertRequest> watch = request;
  std::vector<EncodedFrame> frames = Encode(std::move(request));
  EXPECT_FALSE(watch.expired());
  frames.clear();
  EXPECT_TRUE(watch.expired());
}

TEST(ExpertFrameTest, EveryTruncationIsRefused) {
  const std::string bytes = Bytes(Encode(MakeFakeRequest(4, 3, 8))[0].buffer);
  for (size_t n = 0; n < bytes.size(); ++n) {
    const absl::StatusOr<DecodedFrame> frame = DecodeFrame(Buffer(bytes.substr(0, n)));
    EXPECT_FALSE(frame.ok() && frame->intact) << n << " of " << bytes.size() << " bytes";
  }
  EXPECT_FALSE(DecodeFrame(Buffer(bytes + '\0')).ok());
  EXPECT_FALSE(DecodeFrame(grpc::ByteBuffer()).ok());
}

TEST(ExpertFrameTest, EveryFlippedBitIsRefused) {
  const std::string bytes = Bytes(Encode(MakeFakeRequest(4, 3, 8))[0].buffer);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const absl::StatusOr<DecodedFrame> frame = DecodeFrame(Buffer(flipped));
    EXPECT_FALSE(frame.ok() && frame->intact) << "bit " << bit;
  }
}

TEST(ExpertFrameTest, GarbageIsNeverIntact) {
  std::mt19937_64 random(1);
  const std::string bytes = Bytes(Encode(MakeFakeRequest(4, 3, 8))[0].buffer);
  for (int round = 0; round < 20000; ++round) {
    std::string garbage;
    if (round % 2 == 0) {
      garbage.resize(random() % 200);
      for (char& c : garbage) c = static_cast<char>(random());
      if (!garbage.empty()) garbage[0] = 0x0A;
    } else {
      garbage = bytes;
      for (uint64_t n = random() % 8 + 1; n > 0; --n) {
        garbage[random() % garbage.size()] = static_cast<char>(random());
      }
      if (garbage == bytes) continue;
    }
    const absl::StatusOr<DecodedFrame> frame = DecodeFrame(Buffer(garbage));
    EXPECT_FALSE(frame.ok() && frame->intact);
  }
}

// Right checksums with senseless contents: what a broken or hostile peer may send.
TEST(ExpertFrameTest, ForgedRequestsAreRefusedWithoutHarm) {
  const auto request = MakeFakeRequest(4, 3, 8);
  v1::ExpertFrame good;
  ASSERT_TRUE(good.ParseFromString(Bytes(Encode(request)[0].buffer)));
  std::mt19937_64 random(2);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    v1::ExpertFrameHeader header = good.header();
    std::string payload = good.payload();
    const uint32_t value = static_cast<uint32_t>(random()) >> (random() % 32);
    switch (random() % 8) {
      case 0:
        header.set_num_rows(value);
        break;
      case 1:
        header.set_num_routes(value);
        break;
      case 2:
        header.set_hidden(value);
        break;
      case 3:
        header.set_dtype(value);
        break;
      case 4:
        header.set_payload_total(value);
        break;
      case 5:
        header.set_payload_offset(value);
        break;
      case 6:
        header.set_num_rows(value);
        header.set_hidden(static_cast<uint32_t>(random()));
        break;
      default:
        for (int n = 0; n < 4; ++n)
          payload[payload.size() - 1 - random() % 60] ^= 1 << random() % 8;
    }
    const DecodedFrame frame = Forge(header, payload);
    if (!CheckRequestHeader(frame.header).ok()) continue;
    ExpertMessageAssembler assembler;
    const auto message = assembler.Add(frame);
    if (!message.ok() || !message->has_value()) continue;
    const auto decoded = DecodeRequest(**message);
    if (!decoded.ok()) continue;
    ++accepted;  // weights may be anything
    EXPECT_EQ((*decoded)->route_offsets.back(), (*decoded)->num_routes());
    EXPECT_LE((*decoded)->num_output_rows(), (*decoded)->num_routes());
  }
  EXPECT_LT(accepted, 10000);
}

TEST(ExpertFrameTest, RoutesOutOfRangeAreRefused) {
  const auto refused = [](auto change) {
    const auto request = MakeFakeRequest(4, 3, 8);
    change(*request);
    absl::StatusOr<ExpertMessage> message = Receive(Encode(request));
    EXPECT_TRUE(message.ok());
    return DecodeRequest(*message).status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused([](ExpertRequest&) {}));
  EXPECT_TRUE(refused([](ExpertRequest& r) { r.route_offsets[0] = 1; }));
  EXPECT_TRUE(refused([](ExpertRequest& r) { r.route_offsets[1] = -5; }));
  EXPECT_TRUE(refused([](ExpertRequest& r) { r.route_offsets[1] = r.route_offsets[2]; }));
  EXPECT_TRUE(refused([](ExpertRequest& r) { r.route_offsets[2] = 1 << 30; }));
  EXPECT_TRUE(refused([](ExpertRequest& r) { r.route_offsets.back() += 1; }));
  EXPECT_TRUE(refused([](ExpertRequest& r) { r.route_experts[0] = -1; }));
  EXPECT_TRUE(refused([](ExpertRequest& r) { r.combined[0] = 2; }));
}

TEST(ExpertFrameTest, AReplyThatDoesNotAnswerTheRequestIsDataLoss) {
  const auto request = MakeFakeRequest(4, 3, 8);
  const auto check = [&](auto change) {
    ExpertReply reply = ComputeFakeReply(*request);
    change(reply);
    v1::ExpertFrame frame;
    EXPECT_TRUE(frame.ParseFromString(Bytes(EncodeReply(request->id, reply)->at(0).buffer)));
    return CheckReplyHeader(frame.header(), *request).code();
  };
  EXPECT_EQ(check([](ExpertReply&) {}), absl::StatusCode::kOk);
  EXPECT_EQ(check([](ExpertReply& r) { r.rows = r.rows.slice_rows(0, 2); }),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(check([](ExpertReply& r) { r.rows.dtype = Dtype::kBF16; }),
            absl::StatusCode::kDataLoss);
  v1::ExpertFrame frame;
  ASSERT_TRUE(frame.ParseFromString(Bytes(Encode(request)[0].buffer)));
  EXPECT_EQ(CheckReplyHeader(frame.header(), *request).code(), absl::StatusCode::kDataLoss);
}

// ---- the assembler ------------------------------------------------------------------------------

v1::ExpertFrameHeader PartHeader(uint64_t step, uint64_t offset, uint64_t total) {
  v1::ExpertFrameHeader header;
  header.set_kind(v1::EXPERT_FRAME_KIND_REQUEST);
  header.set_step(step);
  header.set_payload_offset(offset);
  header.set_payload_total(total);
  return header;
}

TEST(ExpertMessageAssemblerTest, InterleavedMessagesComeOutWhole) {
  ExpertMessageAssembler assembler;
  ASSERT_FALSE(assembler.Add(Forge(PartHeader(1, 0, 4), "ab"))->has_value());
  ASSERT_FALSE(assembler.Add(Forge(PartHeader(2, 0, 4), "AB"))->has_value());
  const auto first = assembler.Add(Forge(PartHeader(1, 2, 4), "cd"));
  ASSERT_TRUE(first.ok() && first->has_value());
  EXPECT_EQ(std::memcmp((*first)->payload.get(), "abcd", 4), 0);
  const auto second = assembler.Add(Forge(PartHeader(2, 2, 4), "CD"));
  ASSERT_TRUE(second.ok() && second->has_value());
  EXPECT_EQ(std::memcmp((*second)->payload.get(), "ABCD", 4), 0);
  EXPECT_EQ(assembler.num_messages(), 0u);
}

TEST(ExpertMessageAssemblerTest, FramesOutOfSequenceEndTheirMessageOnly) {
  const auto add_second = [](const v1::ExpertFrameHeader& header, const std::string& payload) {
    ExpertMessageAssembler assembler;
    EXPECT_TRUE(assembler.Add(Forge(PartHeader(9, 0, 8), "other")).ok());
    EXPECT_TRUE(assembler.Add(Forge(PartHeader(1, 0, 8), "abc")).ok());
    const auto result = assembler.Add(Forge(header, payload));
    EXPECT_EQ(assembler.num_messages(), result.ok() ? 2u : 1u);
    return result.status().code();
  };
  EXPECT_EQ(add_second(PartHeader(1, 3, 8), "d"), absl::StatusCode::kOk);
  EXPECT_EQ(add_second(PartHeader(1, 4, 8), "d"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(add_second(PartHeader(1, 2, 8), "d"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(add_second(PartHeader(1, 0, 8), "abc"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(add_second(PartHeader(1, 3, 8), "defghi"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(add_second(PartHeader(1, 3, 8), ""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(add_second(PartHeader(1, 3, 9), "d"), absl::StatusCode::kInvalidArgument);
  v1::ExpertFrameHeader contradicting = PartHeader(1, 3, 8);
  contradicting.set_hidden(7);
  EXPECT_EQ(add_second(contradicting, "d"), absl::StatusCode::kInvalidArgument);
}

TEST(ExpertMessageAssemblerTest, HoldsNoMoreThanItsLimits) {
  ExpertMessageAssembler::Limits limits;
  limits.max_messages = 2;
  limits.max_bytes = 100;
  limits.max_message_bytes = 80;
  ExpertMessageAssembler assembler(limits);
  const auto code = [&assembler](uint64_t step, uint64_t total) {
    return assembler.Add(Forge(PartHeader(step, 0, total), "x")).status().code();
  };
  EXPECT_EQ(code(1, 81), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(1, ~uint64_t{0}), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(1, 80), absl::StatusCode::kOk);
  EXPECT_EQ(code(2, 21), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(2, 10), absl::StatusCode::kOk);
  EXPECT_EQ(code(3, 10), absl::StatusCode::kResourceExhausted);
  assembler.Drop({0, 1, 0, 0, 0});
  EXPECT_EQ(code(3, 80), absl::StatusCode::kOk);
}

TEST(ExpertMessageAssemblerTest, AMessageMustBeginAtItsBeginning) {
  ExpertMessageAssembler assembler;
  EXPECT_EQ(assembler.Add(Forge(PartHeader(1, 3, 8), "d")).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tandem
