#include "common/transport/weights_frame.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace tandem {
namespace {

constexpr int64_t kBytes = (5 << 19) + 192;  // three frames

const WeightsOrigin kOrigin{"d1", "portable-1 int4"};
const PackedLayout kLayout{"int4 1 [48, 32]", kBytes};

std::shared_ptr<const std::byte> Bytes() {
  auto memory = std::shared_ptr<std::byte[]>(new std::byte[kBytes]);
  for (int64_t i = 0; i < kBytes; ++i) memory[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  return {memory, memory.get()};
}

// As it comes out of gRPC.
v1::WeightsFrame Received(const grpc::ByteBuffer& sent) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(sent.Dump(&slices).ok());
  std::string bytes;
  for (const auto& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  v1::WeightsFrame frame;
  EXPECT_TRUE(frame.ParseFromString(bytes));
  EXPECT_EQ(frame.SerializeAsString(), bytes);  // protobuf's own encoding
  return frame;
}

class WeightsFrameTest : public testing::Test {
 protected:
  WeightsFrameTest() {
    for (int64_t offset = 0; offset < kBytes;) {
      const EncodedWeights encoded = EncodeWeights(label_, memory_, offset);
      frames_.push_back(Received(encoded.frame));
      offset += encoded.payload_bytes;
    }
  }

  const v1::WeightsLabel label_ = MakeWeightsLabel(kOrigin, 3, 17, kLayout);
  const std::shared_ptr<const std::byte> memory_ = Bytes();
  std::vector<v1::WeightsFrame> frames_;
};

TEST_F(WeightsFrameTest, ComeOutAsTheyWentIn) {
  ASSERT_EQ(frames_.size(), 3);
  WeightsReceiver receiver(label_);
  for (const auto& frame : frames_) {
    EXPECT_LE(frame.payload().size(), size_t{1} << 20);
    ASSERT_TRUE(receiver.Add(frame).ok());
  }
  EXPECT_EQ(receiver.received_bytes(), kBytes);
  const auto taken = receiver.Take();
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(std::memcmp(taken->get(), memory_.get(), kBytes), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(taken->get()) % 4096, 0);
}

TEST_F(WeightsFrameTest, NoChangedByteIsTaken) {
  const std::string sent = frames_[2].SerializeAsString();
  // Every byte of the header, and some of the payload.
  for (size_t i = 0; i < sent.size(); i += i < 200 ? 1 : 4099) {
    std::string changed = sent;
    changed[i] = static_cast<char>(changed[i] ^ 0x10);
    v1::WeightsFrame frame;
    if (!frame.ParseFromString(changed)) continue;
    WeightsReceiver receiver(label_);
    ASSERT_TRUE(receiver.Add(frames_[0]).ok() && receiver.Add(frames_[1]).ok());
    EXPECT_EQ(receiver.Add(frame).code(), absl::StatusCode::kDataLoss) << "byte " << i;
    EXPECT_FALSE(receiver.Take().ok());
  }
}

TEST_F(WeightsFrameTest, OnlyTheNextFrameOfWhatWasAskedForIsTaken) {
  const auto refuses = [](v1::WeightsLabel label, std::vector<v1::WeightsFrame> frames) {
    WeightsReceiver receiver(std::move(label));
    for (size_t i = 0; i + 1 < frames.size(); ++i) EXPECT_TRUE(receiver.Add(frames[i]).ok());
    return receiver.Add(frames.back()).code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refuses(label_, {frames_[1]}));
  EXPECT_TRUE(refuses(label_, {frames_[0], frames_[0]}));
  EXPECT_TRUE(refuses(label_, {frames_[0], frames_[2]}));
  EXPECT_TRUE(refuses(label_, {frames_[0], frames_[1], frames_[2], frames_[2]}));
  EXPECT_TRUE(refuses(MakeWeightsLabel(kOrigin, 3, 18, kLayout), {frames_[0]}));
  EXPECT_TRUE(
      refuses(MakeWeightsLabel({"d2", kOrigin.numerics_class}, 3, 17, kLayout), {frames_[0]}));
  EXPECT_TRUE(refuses(label_, {v1::WeightsFrame()}));
}

TEST_F(WeightsFrameTest, WhatEndsEarlyIsNotTaken) {
  WeightsReceiver none(label_);
  EXPECT_EQ(none.Take().status().code(), absl::StatusCode::kDataLoss);
  WeightsReceiver some(label_);
  ASSERT_TRUE(some.Add(frames_[0]).ok());
  EXPECT_EQ(some.Take().status().message(), "the weights ended after 1048576 of 2621632 bytes");
}

TEST(WeightsLabelTest, IsDecodedIfItIsOne) {
  const auto decode = [](const std::string& bytes) {
    const grpc::Slice slice(bytes);
    return DecodeWeightsLabel(grpc::ByteBuffer(&slice, 1));
  };
  v1::WeightsLabel label = MakeWeightsLabel(kOrigin, 3, 17, kLayout);
  ASSERT_TRUE(decode(label.SerializeAsString()).ok());
  EXPECT_EQ(decode(label.SerializeAsString())->SerializeAsString(), label.SerializeAsString());
  EXPECT_EQ(decode("\xff\xff").status().code(), absl::StatusCode::kInvalidArgument);
  label.set_layout(std::string(4096, 'x'));
  EXPECT_EQ(decode(label.SerializeAsString()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DecodeWeightsLabel({}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(WeightsLabelTest, FitsOnlyItsEqual) {
  const v1::WeightsLabel ours = MakeWeightsLabel(kOrigin, 3, 17, kLayout);
  EXPECT_TRUE(CheckWeightsLabel(ours, ours).ok());
  const auto refused = [&](const WeightsOrigin& origin, const PackedLayout& layout) {
    const absl::Status status = CheckWeightsLabel(MakeWeightsLabel(origin, 3, 17, layout), ours);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_EQ(refused({"d2", kOrigin.numerics_class}, kLayout),
            "asked for weights of the checkpoint digest \"d2\", and this worker's are of \"d1\"");
  EXPECT_EQ(refused({"d1", "portable-1 int8"}, kLayout),
            "asked for weights of the numerics class \"portable-1 int8\", and this worker's are of "
            "\"portable-1 int4\"");
  EXPECT_EQ(refused(kOrigin, {"int4 2 [48, 32]", kBytes}),
            "asked for weights of the layout \"int4 2 [48, 32], 2621632 bytes\", and this worker's "
            "are of \"int4 1 [48, 32], 2621632 bytes\"");
  refused(kOrigin, {kLayout.name, kBytes + 1});
}

}  // namespace
}  // namespace tandem
