#include "common/transport/grpc_expert_link.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/transport/expert_frame.h"
#include "common/transport/grpc_expert_service.h"
#include "tests/common/transport/expert_link_contract.h"
#include "tests/common/transport/fake_expert.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

// An expert worker on a port of its own.
class Worker {
 public:
  explicit Worker(int port = 0, GrpcExpertServiceOptions options = {})
      : service_(&engine, options) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(service_.service());
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr);
  }
  ~Worker() { Kill(); }
  void Kill() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_ = nullptr;
    engine.set_held(false);
  }
  int port() const { return port_; }
  GrpcPeer peer() const { return {absl::StrCat("127.0.0.1:", port_), nullptr}; }
  CounterSnapshot Counters() const { return service_.Counters(); }
  int64_t connections_live() const { return Counter(Counters(), "grpc_streams_live"); }
  int64_t replies_dropped() const { return Counter(Counters(), "grpc_replies_dropped_total"); }

 private:
  int port_ = 0;

 public:
  FakeExpertLink engine;

 private:
  GrpcExpertService service_;
  std::unique_ptr<grpc::Server> server_;
};

struct GrpcTransport {
  using Worker = tandem::Worker;
  using Link = GrpcExpertLink;
  static std::unique_ptr<Link> Dial(Worker& worker, bool small) {
    GrpcExpertLinkOptions options;
    if (small) options.max_outstanding_bytes = 3000;
    return std::make_unique<Link>(worker.peer(), options);
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Grpc, ExpertLinkContract, GrpcTransport);

TEST(GrpcExpertLinkTest, CarriesMegabytesAndOnlyHeadersThroughProtobuf) {
  Worker worker;
  GrpcExpertLink link(worker.peer());
  const auto request = MakeFakeRequest(1, 640, 2048);
  const ExpertReply reply = Get(SendAsync(link, request));
  ExpectAnswers(reply, *request);
  const CounterSnapshot counters = link.Counters();
  EXPECT_EQ(Counter(counters, "payload_bytes_sent_total"), RequestPayloadBytes(*request));
  EXPECT_EQ(Counter(counters, "payload_bytes_received_total"),
            static_cast<int64_t>(reply.rows.bytes()));
  EXPECT_GT(Counter(counters, "payload_bytes_sent_total"), 5 << 20);
  EXPECT_LT(Counter(counters, "header_bytes_sent_total"),
            100 * Counter(counters, "frames_sent_total"));
  EXPECT_LT(Counter(counters, "header_bytes_received_total"),
            100 * Counter(counters, "frames_received_total"));
  const CounterSnapshot served = worker.Counters();
  EXPECT_EQ(Counter(served, "payload_bytes_received_total"),
            Counter(counters, "payload_bytes_sent_total"));
  EXPECT_EQ(Counter(served, "grpc_requests_total"), 1);
}

TEST(GrpcExpertLinkTest, AWorkerThatDiesAnswersUnavailableAtOnceAndIsFoundAgainOnItsPort) {
  auto worker = std::make_unique<Worker>();
  const int port = worker->port();
  GrpcExpertLink link(worker->peer());
  worker->engine.set_held(true);
  const auto request = MakeFakeRequest(1, 4, 64);
  std::future<ExpertReply> reply = SendAsync(link, request);
  ASSERT_TRUE(worker->engine.WaitForRequests(1));
  const auto start = std::chrono::steady_clock::now();
  worker->Kill();
  const absl::Status status = Get(std::move(reply)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.ToString(), HasSubstr(absl::StrCat("127.0.0.1:", port)));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
  // With nobody there, an answer still comes at once.
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(2, 4, 64))).status.code(),
            absl::StatusCode::kUnavailable);

  worker.reset();
  Worker again(port);
  ASSERT_EQ(again.port(), port);
  int step = 3;
  EXPECT_TRUE(
      Eventually([&] { return Get(SendAsync(link, MakeFakeRequest(step++, 4, 64))).status.ok(); }));
  EXPECT_GE(Counter(link.Counters(), "streams_total"), 2);
}

TEST(GrpcExpertLinkTest, AnAddressWhereNobodyListensIsUnavailable) {
  GrpcExpertLink link({"127.0.0.1:1", nullptr});
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(1, 4, 64))).status.code(),
            absl::StatusCode::kUnavailable);
}

TEST(GrpcExpertLinkTest, AWorkerRefusesMoreThanItsBound) {
  GrpcExpertServiceOptions options;
  options.max_outstanding_bytes = 1000;
  Worker worker(0, options);
  GrpcExpertLink link(worker.peer());
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(2, 80, 64))).status.code(),
            absl::StatusCode::kResourceExhausted);
  const auto small = MakeFakeRequest(3, 1, 8);
  ExpectAnswers(Get(SendAsync(link, small)), *small);
}

TEST(GrpcExpertLinkTest, KeepalivesGoBothWaysWhileNothingElseDoes) {
  Worker worker;
  GrpcExpertLinkOptions options;
  options.keepalive_interval = absl::Milliseconds(10);
  GrpcExpertLink link(worker.peer(), options);
  ASSERT_TRUE(Get(SendAsync(link, MakeFakeRequest(1, 1, 8))).status.ok());
  EXPECT_TRUE(Eventually([&] { return Counter(link.Counters(), "frames_received_total") >= 5; }));
  EXPECT_EQ(Counter(worker.Counters(), "grpc_requests_total"), 1);
}

// A port that accepts and then says something that is not gRPC, or nothing at all.
class OddPort {
 public:
  // `says` at once, and `answers` once a call has begun.
  explicit OddPort(std::string says, std::string answers = "") {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, says = std::move(says), answers = std::move(answers)] {
      std::vector<int> peers;
      for (int fd; (fd = accept(listener_, nullptr, nullptr)) >= 0;) {
        peers.push_back(fd);
        if (!says.empty()) send(fd, says.data(), says.size(), MSG_NOSIGNAL);
        if (answers.empty() || !WaitForCall(fd)) continue;
        send(fd, answers.data(), answers.size(), MSG_NOSIGNAL);
      }
      for (const int fd : peers) close(fd);
    });
  }
  ~OddPort() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }
  GrpcPeer peer() const { return {absl::StrCat("127.0.0.1:", port_), nullptr}; }

 private:
  // Reads HTTP/2 until the HEADERS of a call.
  static bool WaitForCall(int fd) {
    const auto read = [fd](size_t bytes) {
      std::string data(bytes, '\0');
      return recv(fd, data.data(), bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes) ? data : "";
    };
    constexpr size_t kPrefaceBytes = 24, kFrameHeaderBytes = 9;
    if (read(kPrefaceBytes).empty()) return false;
    for (;;) {
      const std::string header = read(kFrameHeaderBytes);
      if (header.empty()) return false;
      const auto byte = [&](int i) { return static_cast<uint8_t>(header[i]); };
      const size_t bytes = byte(0) << 16 | byte(1) << 8 | byte(2);
      if (bytes > 0 && read(bytes).empty()) return false;
      if (byte(3) == 1) return true;
    }
  }

  int listener_ = -1;
  int port_ = 0;
  std::thread thread_;
};

// An HTTP/2 frame; `header` is literal header fields of names and values shorter than 127 bytes.
std::string Http2Frame(char type, char flags, char stream,
                       const std::vector<std::pair<std::string, std::string>>& header) {
  std::string body;
  for (const auto& [name, value] : header) {
    body += '\0';
    body += static_cast<char>(name.size()) + name;
    body += static_cast<char>(value.size()) + value;
  }
  const char start[] = {0, 0, static_cast<char>(body.size()), type, flags, 0, 0, 0, stream};
  return std::string(start, sizeof(start)) + body;
}

TEST(GrpcExpertLinkTest, TrailersWithoutAStatusAreUnavailable) {
  constexpr char kHeaders = 1, kSettings = 4, kEndStream = 1, kEndHeaders = 4;
  OddPort port(Http2Frame(kSettings, 0, 0, {}),
               Http2Frame(kHeaders, kEndHeaders, 1,
                          {{":status", "200"}, {"content-type", "application/grpc"}}) +
                   Http2Frame(kHeaders, kEndHeaders | kEndStream, 1, {{"grpc-statu5", "0"}}));
  GrpcExpertLink link(port.peer());
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(1, 1, 8))).status.code(),
            absl::StatusCode::kUnavailable);
}

TEST(GrpcExpertLinkTest, APortThatDoesNotSpeakGrpcIsUnavailable) {
  OddPort port("HTTP/1.1 200 OK\r\n\r\nhello");
  GrpcExpertLink link(port.peer());
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(1, 1, 8))).status.code(),
            absl::StatusCode::kUnavailable);
}

TEST(GrpcExpertLinkTest, APortThatSaysNothingEndsWithTheRequestsTime) {
  OddPort port("");
  GrpcExpertLink link(port.peer());
  const auto request = MakeFakeRequest(1, 1, 8);
  request->time_left = absl::Milliseconds(100);
  const absl::StatusCode code = Get(SendAsync(link, request)).status.code();
  EXPECT_TRUE(code == absl::StatusCode::kDeadlineExceeded ||
              code == absl::StatusCode::kUnavailable);
}

TEST(GrpcExpertLinkTest, APortThatNeverSpeaksGrpcIsGivenUpBeforeTheRequestsTime) {
  OddPort port("");
  GrpcExpertLinkOptions options;
  options.silence_limit = absl::Milliseconds(100);
  GrpcExpertLink link(port.peer(), options);
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(1, 1, 8))).status.code(),
            absl::StatusCode::kUnavailable);
}

// A peer that takes every stream and every frame, and never says anything: alive to the network,
// hung to its callers.
class MuteWorker {
 public:
  MuteWorker() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterCallbackGenericService(&service_);
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr);
  }
  ~MuteWorker() { server_->Shutdown(std::chrono::system_clock::now()); }
  GrpcPeer peer() const { return {absl::StrCat("127.0.0.1:", port_), nullptr}; }
  bool WaitForFrames(int count) {
    return Eventually([&] { return frames_ >= count; });
  }

 private:
  class Stream : public grpc::ServerGenericBidiReactor {
   public:
    explicit Stream(std::atomic<int>* frames) : frames_(frames) { StartRead(&frame_); }
    void OnReadDone(bool ok) override {
      if (!ok) return Finish(grpc::Status::OK);
      ++*frames_;
      StartRead(&frame_);
    }
    void OnDone() override { delete this; }

   private:
    std::atomic<int>* const frames_;
    grpc::ByteBuffer frame_;
  };
  class Service : public grpc::CallbackGenericService {
   public:
    explicit Service(std::atomic<int>* frames) : frames_(frames) {}
    grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
      return new Stream(frames_);
    }

   private:
    std::atomic<int>* const frames_;
  };

  int port_ = 0;
  std::atomic<int> frames_ = 0;
  Service service_{&frames_};
  std::unique_ptr<grpc::Server> server_;
};

TEST(GrpcExpertLinkTest, APeerThatTakesFramesButSaysNothingIsGivenUpLongBeforeTheRequestsTime) {
  MuteWorker mute;
  GrpcExpertLinkOptions options;
  options.keepalive_interval = absl::Milliseconds(10);
  options.silence_limit = absl::Milliseconds(200);
  GrpcExpertLink link(mute.peer(), options);
  std::future<ExpertReply> reply = SendAsync(link, MakeFakeRequest(1, 1, 8));
  EXPECT_TRUE(mute.WaitForFrames(1));
  const absl::Status status = Get(std::move(reply)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.ToString(), HasSubstr("it said nothing for 200ms"));
  // The next request dials anew.
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(2, 1, 8))).status.code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(Counter(link.Counters(), "streams_total"), 2);
}

// Between a link and a worker: carries bytes, until it swallows all that come from the link on
// connections that are there then.
class Relay {
 public:
  explicit Relay(int target) : target_(target) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    threads_.emplace_back([this] { Accept(); });
  }
  ~Relay() {
    shutdown(listener_, SHUT_RDWR);
    threads_.front().join();
    for (const int fd : sockets_) shutdown(fd, SHUT_RDWR);
    for (size_t i = 1; i < threads_.size(); ++i) threads_[i].join();
    for (const int fd : sockets_) close(fd);
    close(listener_);
  }
  GrpcPeer peer() const { return {absl::StrCat("127.0.0.1:", port_), nullptr}; }
  void SwallowWhatIsThere() { swallow_below_ = connections_.load(); }

 private:
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  void Accept() {
    for (int from; (from = accept(listener_, nullptr, nullptr)) >= 0;) {
      const int to = socket(AF_INET, SOCK_STREAM, 0);
      const sockaddr_in address = Loopback(target_);
      EXPECT_EQ(connect(to, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
      sockets_.insert(sockets_.end(), {from, to});
      const int number = connections_++;
      threads_.emplace_back([=, this] { Pump(from, to, number); });
      threads_.emplace_back([=, this] { Pump(to, from, INT_MAX); });
    }
  }
  void Pump(int from, int to, int number) {
    char bytes[4096];
    for (ssize_t n; (n = recv(from, bytes, sizeof(bytes), 0)) > 0;) {
      if (number >= swallow_below_) send(to, bytes, n, MSG_NOSIGNAL);
    }
    shutdown(to, SHUT_WR);
  }

  const int target_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<int> connections_ = 0;
  std::atomic<int> swallow_below_ = 0;
  std::vector<int> sockets_;          // of the first thread, until it has ended
  std::vector<std::thread> threads_;  // likewise; the first accepts
};

// gRPC itself keeps a connection for as long as TCP does.
TEST(GrpcExpertLinkTest, ASilentConnectionIsLeftForAnother) {
  Worker worker;
  Relay relay(worker.port());
  GrpcExpertLinkOptions options;
  options.keepalive_interval = absl::Milliseconds(10);
  options.silence_limit = absl::Milliseconds(300);
  GrpcExpertLink link(relay.peer(), options);
  const auto first = MakeFakeRequest(1, 4, 64);
  ExpectAnswers(Get(SendAsync(link, first)), *first);
  relay.SwallowWhatIsThere();
  EXPECT_EQ(Get(SendAsync(link, MakeFakeRequest(2, 4, 64))).status.code(),
            absl::StatusCode::kUnavailable);
  const auto third = MakeFakeRequest(3, 4, 64);
  ExpectAnswers(Get(SendAsync(link, third)), *third);
}

TEST(GrpcExpertLinkTest, APeerThatComputesForLongIsNotSilent) {
  Worker worker;
  GrpcExpertLinkOptions options;
  options.keepalive_interval = absl::Milliseconds(10);
  options.silence_limit = absl::Seconds(1);
  GrpcExpertLink link(worker.peer(), options);
  worker.engine.set_held(true);
  const auto request = MakeFakeRequest(1, 4, 64);
  std::future<ExpertReply> reply = SendAsync(link, request);
  // Longer than the limit: its keepalives are all that it says.
  EXPECT_EQ(reply.wait_for(std::chrono::milliseconds(1500)), std::future_status::timeout);
  worker.engine.set_held(false);
  ExpectAnswers(Get(std::move(reply)), *request);
  EXPECT_EQ(Counter(link.Counters(), "streams_total"), 1);
}

// Speaks to an expert worker in raw messages.
class RawClient : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RawClient(const Worker& worker)
      : stub_(grpc::CreateChannel(worker.peer().address, grpc::InsecureChannelCredentials())) {
    stub_.PrepareBidiStreamingCall(&context_, "/tandem.v1.ExpertWorker/Exchange", {}, this);
    AddHold();
    StartRead(&read_);
    StartCall();
  }
  void Write(const grpc::ByteBuffer& message) {
    written_ = message;
    StartWrite(&written_);
  }
  // The first reply, or how the stream ended instead.
  absl::StatusOr<DecodedFrame> Reply() {
    const bool got = reply_.get_future().get();
    if (!got) {
      RemoveHold();
      return absl::Status(static_cast<absl::StatusCode>(end_.get_future().get().error_code()),
                          "ended");
    }
    absl::StatusOr<DecodedFrame> frame = DecodeFrame(read_);
    context_.TryCancel();
    RemoveHold();
    end_.get_future().wait();
    return frame;
  }
  void OnReadDone(bool ok) override { reply_.set_value(ok); }
  void OnDone(const grpc::Status& status) override { end_.set_value(status); }

 private:
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer read_, written_;
  std::promise<bool> reply_;
  std::promise<grpc::Status> end_;
};

TEST(GrpcExpertServiceTest, GarbageOnAStreamEndsItWithAStatus) {
  Worker worker;
  RawClient client(worker);
  const grpc::Slice garbage("this is not a frame");
  client.Write(grpc::ByteBuffer(&garbage, 1));
  EXPECT_EQ(client.Reply().status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Counter(worker.Counters(), "grpc_refused_total"), 1);
  GrpcExpertLink link(worker.peer());
  const auto request = MakeFakeRequest(1, 1, 8);
  ExpectAnswers(Get(SendAsync(link, request)), *request);
}

TEST(GrpcExpertServiceTest, ADamagedPayloadIsAnsweredWithDataLoss) {
  Worker worker;
  RawClient client(worker);
  const auto frames = EncodeRequest(MakeFakeRequest(1, 4, 8));
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(frames->at(0).buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  bytes[bytes.size() - 40] ^= 4;
  const grpc::Slice damaged(bytes);
  client.Write(grpc::ByteBuffer(&damaged, 1));
  const absl::StatusOr<DecodedFrame> reply = client.Reply();
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->header.status_code(), static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(IdOf(reply->header), MakeFakeRequest(1, 4, 8)->id);
}

}  // namespace
}  // namespace tandem
