#include "common/transport/peer_weights.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/transport/grpc_weights_service.h"
#include "proto/expert.grpc.pb.h"
#include "proto/weights.grpc.pb.h"

namespace tandem {
namespace {

constexpr int kNumExperts = 4;
constexpr int kLayer = 2;
constexpr int64_t kBytes = (5 << 19) + 192;  // three frames
const WeightsOrigin kOrigin{"d1", "portable-1 int4"};
const PackedLayout kLayout{"int4 1 [48, 32]", kBytes};

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

// Of expert e, filled with e + 1.
PackedBytes WeightsOf(int64_t expert) {
  auto memory = std::shared_ptr<std::byte[]>(new std::byte[kBytes]);
  std::memset(memory.get(), static_cast<int>(expert) + 1, kBytes);
  return {kLayout, {memory, memory.get()}};
}
bool AreOf(int expert, const std::shared_ptr<const std::byte>& memory) {
  return memory != nullptr &&
         std::memcmp(memory.get(), WeightsOf(expert).memory.get(), kBytes) == 0;
}

std::unique_ptr<grpc::Server> Serve(grpc::Service* service, int* port) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), port);
  builder.RegisterService(service);
  return builder.BuildAndStart();
}

// An expert worker that has expert 0 to 2 of the layer.
class HolderProcess {
 public:
  explicit HolderProcess(GrpcWeightsServiceOptions options = {}) : service_(Fill(options)) {
    server_ = Serve(service_.service(), &port_);
  }
  ~HolderProcess() { Kill(); }

  void Kill() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_ = nullptr;
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  int64_t Count(const std::string& name) const {
    for (const auto& [counter, value] : service_.Counters()) {
      if (counter == name) return value;
    }
    ADD_FAILURE() << name;
    return -1;
  }

 private:
  static GrpcWeightsServiceOptions Fill(GrpcWeightsServiceOptions options) {
    if (!options.origin) options.origin = [] { return kOrigin; };
    if (!options.find) {
      options.find = [](int64_t layer, int32_t expert) -> absl::StatusOr<PackedBytes> {
        if (layer != kLayer || expert >= 3) return absl::NotFoundError("it is not loaded");
        return WeightsOf(expert);
      };
    }
    return options;
  }

  GrpcWeightsService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// Says what it likes.
class RudeHolder : public v1::ExpertWeights::Service {
 public:
  using Answer = std::function<grpc::Status(grpc::ServerContext*, const v1::WeightsLabel&,
                                            grpc::ServerWriter<v1::WeightsFrame>*)>;
  explicit RudeHolder(Answer answer) : answer_(std::move(answer)) { server_ = Serve(this, &port_); }
  ~RudeHolder() override { server_->Shutdown(std::chrono::system_clock::now()); }
  grpc::Status Fetch(grpc::ServerContext* context, const v1::WeightsLabel* label,
                     grpc::ServerWriter<v1::WeightsFrame>* writer) override {
    ++asked_;
    return answer_(context, *label, writer);
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  int asked() const { return asked_; }

 private:
  const Answer answer_;
  std::atomic<int> asked_ = 0;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// The frames of a label's weights.
std::vector<v1::WeightsFrame> Frames(const v1::WeightsLabel& label) {
  std::vector<v1::WeightsFrame> frames;
  const PackedBytes weights = WeightsOf(label.expert());
  for (int64_t offset = 0; offset < kBytes;) {
    EncodedWeights encoded = EncodeWeights(label, weights.memory, offset);
    offset += encoded.payload_bytes;
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(encoded.frame.Dump(&slices).ok());
    std::string bytes;
    for (const auto& slice : slices) {
      bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    EXPECT_TRUE(frames.emplace_back().ParseFromString(bytes));
  }
  return frames;
}

class PeerWeightsTest : public testing::Test {
 protected:
  // Asks those at the addresses, in turn, who are said to have all of the layer.
  PeerWeights Asking(const std::vector<std::string>& addresses, PeerWeightsOptions options = {}) {
    std::vector<Placement::Source> sources;
    for (const std::string& address : addresses) {
      std::vector<bool> experts((kLayer + 1) * kNumExperts, false);
      for (int i = 0; i < kNumExperts; ++i) experts[kLayer * kNumExperts + i] = true;
      sources.push_back({{static_cast<WorkerId>(sources.size() + 1), address, 1}, experts});
    }
    if (options.origin.digest.empty()) options.origin = kOrigin;
    options.num_experts = kNumExperts;
    options.counts = &counts_;
    return PeerWeights(std::move(options), sources);
  }

  PeerWeightsCounts counts_;
};

TEST_F(PeerWeightsTest, AreFetchedAsTheyLie) {
  HolderProcess holder;
  PeerWeights peers = Asking({holder.address()});
  for (const int expert : {1, 0, 2, 1}) {
    EXPECT_TRUE(AreOf(expert, peers.Fetch(kLayer, expert, kLayout)));
  }
  EXPECT_EQ(counts_.fetched, 4);
  EXPECT_EQ(counts_.fetched_bytes, 4 * kBytes);
  EXPECT_EQ(counts_.failed, 0);
  EXPECT_TRUE(Eventually([&] { return holder.Count("weights_sent_total") == 4; }));
  EXPECT_EQ(holder.Count("weights_sent_bytes_total"), 4 * kBytes);
  EXPECT_TRUE(Eventually([&] { return holder.Count("weights_transfers_live") == 0; }));
}

TEST_F(PeerWeightsTest, WhoHasNotThisOneIsAskedAgainForOthers) {
  HolderProcess holder;
  PeerWeights peers = Asking({holder.address()});
  EXPECT_EQ(peers.Fetch(kLayer, 3, kLayout), nullptr);
  EXPECT_EQ(holder.Count("weights_refused_total"), 1);
  EXPECT_TRUE(AreOf(0, peers.Fetch(kLayer, 0, kLayout)));
  EXPECT_EQ(counts_.failed, 1);
}

TEST_F(PeerWeightsTest, NobodyIsAskedWhoIsNotSaidToHaveItNorTheAskerItself) {
  HolderProcess holder;
  PeerWeightsOptions options;
  options.self = 1;
  PeerWeights itself = Asking({holder.address()}, options);
  EXPECT_EQ(itself.Fetch(kLayer, 0, kLayout), nullptr);
  PeerWeights peers = Asking({holder.address()});
  EXPECT_EQ(peers.Fetch(kLayer - 1, 0, kLayout), nullptr);
  EXPECT_EQ(peers.Fetch(kLayer + 1, 0, kLayout), nullptr);  // beyond what it says
  EXPECT_EQ(Asking({}).Fetch(kLayer, 0, kLayout), nullptr);
  EXPECT_EQ(holder.Count("weights_refused_total"), 0);
  EXPECT_EQ(counts_.failed, 0);
}

TEST_F(PeerWeightsTest, WorkIsSpreadOverWhoHasIt) {
  HolderProcess one, other;
  PeerWeights peers = Asking({one.address(), other.address()});
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(AreOf(i % 3, peers.Fetch(kLayer, i % 3, kLayout)));
  for (const HolderProcess* holder : {&one, &other}) {
    EXPECT_TRUE(Eventually([&] { return holder->Count("weights_sent_total") == 3; }));
  }
}

// Of another checkpoint, class or layout, or one that does not know its digest: refused, and asked
// no more.
TEST_F(PeerWeightsTest, WhatDoesNotFitIsRefused) {
  GrpcWeightsServiceOptions unknown;
  unknown.origin = [] { return WeightsOrigin{}; };
  HolderProcess holder, early(unknown);
  const auto refused = [&](const HolderProcess& asked, const WeightsOrigin& origin,
                           const PackedLayout& layout) {
    PeerWeightsOptions options;
    options.origin = origin;
    PeerWeights peers = Asking({asked.address()}, options);
    const int64_t before = asked.Count("weights_refused_total");
    EXPECT_EQ(peers.Fetch(kLayer, 0, layout), nullptr);
    EXPECT_EQ(peers.Fetch(kLayer, 1, layout), nullptr);
    return asked.Count("weights_refused_total") - before;
  };
  EXPECT_EQ(refused(holder, {"d2", kOrigin.numerics_class}, kLayout), 1);
  EXPECT_EQ(refused(holder, {"d1", "portable-1 int8"}, kLayout), 1);
  EXPECT_EQ(refused(holder, kOrigin, {"int4 2 [48, 32]", kBytes}), 1);
  EXPECT_EQ(refused(holder, kOrigin, {kLayout.name, kBytes - 64}), 1);
  EXPECT_EQ(refused(early, kOrigin, kLayout), 1);
}

TEST_F(PeerWeightsTest, FromOneThatDiesInTheMiddleAnotherTakesOver) {
  GrpcWeightsServiceOptions slow;
  slow.pause = [](int64_t, absl::Duration) { return absl::Seconds(60); };  // after each frame
  auto dying = std::make_unique<HolderProcess>(slow);
  HolderProcess other;
  // The turn is that of the second first.
  PeerWeightsOptions options;
  options.silence_limit = absl::Seconds(60);
  options.limit = absl::Seconds(60);
  PeerWeights peers = Asking({dying->address(), other.address()}, options);
  std::thread killer([&] {
    EXPECT_TRUE(Eventually([&] { return dying->Count("weights_sent_bytes_total") > 0; }));
    dying->Kill();
  });
  EXPECT_TRUE(AreOf(0, peers.Fetch(kLayer, 0, kLayout)));
  killer.join();
  EXPECT_EQ(counts_.failed, 1);
  EXPECT_TRUE(AreOf(1, peers.Fetch(kLayer, 1, kLayout)));
  EXPECT_EQ(counts_.failed, 1);  // it is not asked again
}

TEST_F(PeerWeightsTest, WhereNobodyListensOrKnowsOfItNothingIsFetched) {
  v1::ExpertWorker::Service exchange;
  int port = 0;
  const auto old = Serve(&exchange, &port);  // of a version that gives no weights
  PeerWeights peers = Asking({"127.0.0.1:1", absl::StrCat("127.0.0.1:", port)});
  EXPECT_EQ(peers.Fetch(kLayer, 0, kLayout), nullptr);
  EXPECT_EQ(counts_.failed, 2);
  EXPECT_EQ(peers.Fetch(kLayer, 1, kLayout), nullptr);
  EXPECT_EQ(counts_.failed, 2);
}

TEST_F(PeerWeightsTest, DamagedCutOrLongAnswersAreNotTaken) {
  using Frames_ = std::vector<v1::WeightsFrame>;
  const std::vector<std::function<void(Frames_&)>> harms = {
      [](Frames_& frames) { (*frames[1].mutable_payload())[77] ^= 1; },
      [](Frames_& frames) { frames.pop_back(); },
      [](Frames_& frames) { frames.clear(); },
      [](Frames_& frames) { std::swap(frames[0], frames[1]); },
      [](Frames_& frames) { frames.push_back(frames.back()); },
      [](Frames_& frames) { frames[2].mutable_header()->mutable_label()->set_expert(1); },
      [](Frames_& frames) { frames[0].mutable_payload()->resize(8 << 20); },
  };
  HolderProcess good;
  for (size_t i = 0; i < harms.size(); ++i) {
    RudeHolder rude([&](grpc::ServerContext*, const v1::WeightsLabel& label,
                        grpc::ServerWriter<v1::WeightsFrame>* writer) {
      Frames_ frames = Frames(label);
      harms[i](frames);
      for (const auto& frame : frames) writer->Write(frame);
      return grpc::Status::OK;
    });
    PeerWeights alone = Asking({rude.address()});
    EXPECT_EQ(alone.Fetch(kLayer, 0, kLayout), nullptr) << i;
    PeerWeights peers = Asking({rude.address(), good.address()});
    EXPECT_TRUE(AreOf(0, peers.Fetch(kLayer, 0, kLayout))) << i;
    EXPECT_EQ(rude.asked(), 2) << i;
  }
}

TEST_F(PeerWeightsTest, OneThatSaysNothingIsGivenUp) {
  std::atomic<bool> given_up = false;
  RudeHolder silent([&](grpc::ServerContext* context, const v1::WeightsLabel& label,
                        grpc::ServerWriter<v1::WeightsFrame>* writer) {
    writer->Write(Frames(label)[0]);
    given_up = Eventually([&] { return context->IsCancelled(); });
    return grpc::Status::OK;
  });
  PeerWeightsOptions options;
  options.silence_limit = absl::Milliseconds(50);
  options.limit = absl::Hours(1);
  PeerWeights peers = Asking({silent.address()}, options);
  EXPECT_EQ(peers.Fetch(kLayer, 0, kLayout), nullptr);
  EXPECT_EQ(peers.Fetch(kLayer, 0, kLayout), nullptr);
  EXPECT_EQ(silent.asked(), 1);
  EXPECT_TRUE(Eventually([&] { return given_up.load(); }));
}

TEST_F(PeerWeightsTest, WhatIsWantedNoMoreIsLeftAndNobodyBlamed) {
  GrpcWeightsServiceOptions slow;
  slow.pause = [](int64_t, absl::Duration) { return absl::Seconds(60); };
  HolderProcess holder(slow);
  PeerWeightsOptions options;
  options.silence_limit = absl::Seconds(60);
  options.wanted = [&] { return holder.Count("weights_sent_bytes_total") == 0; };
  PeerWeights peers = Asking({holder.address()}, options);
  EXPECT_EQ(peers.Fetch(kLayer, 0, kLayout), nullptr);
  EXPECT_EQ(counts_.failed, 0);
  EXPECT_TRUE(Eventually([&] { return holder.Count("weights_transfers_live") == 0; }));
  EXPECT_EQ(holder.Count("weights_sent_total"), 0);
}

// What reads nothing, on a thread of its own, until it is told to.
class Sluggard {
 public:
  explicit Sluggard(const std::string& address, int64_t bytes = kBytes)
      : stub_(v1::ExpertWeights::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        reader_(
            stub_->Fetch(&context_, MakeWeightsLabel(kOrigin, kLayer, 0, {kLayout.name, bytes}))) {}
  grpc::Status ReadAll() {
    v1::WeightsFrame frame;
    while (reader_->Read(&frame)) {
    }
    return reader_->Finish();
  }

 private:
  std::unique_ptr<v1::ExpertWeights::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::WeightsFrame>> reader_;
};

TEST_F(PeerWeightsTest, MoreTransfersThanAllowedAreRefusedAndWhoRefusesIsAskedAgain) {
  GrpcWeightsServiceOptions options;
  options.max_transfers = 1;
  absl::Notification go_on;
  options.pause = [&](int64_t, absl::Duration) {
    go_on.WaitForNotification();
    return absl::ZeroDuration();
  };
  HolderProcess holder(options);
  Sluggard first(holder.address());
  ASSERT_TRUE(Eventually([&] { return holder.Count("weights_transfers_live") == 1; }));
  PeerWeights peers = Asking({holder.address()});
  EXPECT_EQ(peers.Fetch(kLayer, 1, kLayout), nullptr);
  EXPECT_EQ(holder.Count("weights_refused_total"), 1);
  go_on.Notify();
  EXPECT_TRUE(first.ReadAll().ok());
  ASSERT_TRUE(Eventually([&] { return holder.Count("weights_transfers_live") == 0; }));
  EXPECT_TRUE(AreOf(1, peers.Fetch(kLayer, 1, kLayout)));
}

TEST_F(PeerWeightsTest, WhoDoesNotReadKeepsNobodyWaitingAndIsEndedInTheEnd) {
  // More than fits between the two ends.
  constexpr int64_t kMany = int64_t{64} << 20;
  GrpcWeightsServiceOptions options;
  options.transfer_limit = absl::Seconds(1);
  options.find = [&](int64_t, int32_t expert) -> absl::StatusOr<PackedBytes> {
    if (expert > 0) return WeightsOf(expert);
    auto memory = std::shared_ptr<std::byte[]>(new std::byte[kMany]());
    return PackedBytes{{kLayout.name, kMany}, {memory, memory.get()}};
  };
  HolderProcess holder(options);
  Sluggard sluggard(holder.address(), kMany);
  ASSERT_TRUE(Eventually([&] { return holder.Count("weights_sent_bytes_total") > 0; }));
  PeerWeights peers = Asking({holder.address()});
  EXPECT_TRUE(AreOf(1, peers.Fetch(kLayer, 1, kLayout)));
  EXPECT_TRUE(Eventually([&] { return holder.Count("weights_transfers_live") == 0; }));
  EXPECT_EQ(holder.Count("weights_sent_total"), 1);
  EXPECT_FALSE(sluggard.ReadAll().ok());
}

TEST_F(PeerWeightsTest, PausesAreAskedForAfterEachFrame) {
  std::atomic<int64_t> frames = 0, bytes = 0;
  GrpcWeightsServiceOptions options;
  options.pause = [&](int64_t of_frame, absl::Duration passed) {
    EXPECT_GE(passed, absl::ZeroDuration());
    ++frames;
    bytes += of_frame;
    return absl::ZeroDuration();
  };
  HolderProcess holder(options);
  PeerWeights peers = Asking({holder.address()});
  EXPECT_TRUE(AreOf(2, peers.Fetch(kLayer, 2, kLayout)));
  EXPECT_TRUE(Eventually([&] { return frames == 3 && bytes == kBytes; }));
}

}  // namespace
}  // namespace tandem
