#include "common/transport/shm_expert_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "common/transport/expert_frame.h"
#include "common/transport/local_socket.h"
#include "common/transport/shared_memory.h"
#include "common/transport/shm_expert_protocol.h"
#include "common/transport/shm_expert_service.h"
#include "tests/common/transport/expert_link_contract.h"
#include "tests/common/transport/fake_expert.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

uint64_t NextIncarnation() {
  static uint64_t count = 0;
  return static_cast<uint64_t>(getpid()) << 32 | ++count;
}

class Worker {
 public:
  Worker() {
    auto service = ShmExpertService::Start(incarnation, &engine);
    EXPECT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }
  ~Worker() { Kill(); }
  // Connections end before the engine has answered.
  void Kill() {
    if (service_ == nullptr) return;
    const int64_t sessions = Counter(Counters(), "shm_sessions_total");
    const auto last = ShmExpertLink::Dial(incarnation);  // they end in the order in which they came
    ASSERT_TRUE(last.ok()) << last.status();
    EXPECT_TRUE(Eventually([&] { return Counter(Counters(), "shm_sessions_total") > sessions; }));
    std::thread ending([this] { service_.reset(); });
    EXPECT_TRUE(Eventually([&] { return (*last)->broken(); }));
    engine.set_held(false);
    ending.join();
  }
  CounterSnapshot Counters() const { return service_->Counters(); }
  int64_t connections_live() const { return Counter(Counters(), "shm_sessions_live"); }
  int64_t replies_dropped() const { return Counter(Counters(), "shm_replies_dropped_total"); }

  const uint64_t incarnation = NextIncarnation();
  FakeExpertLink engine;

 private:
  std::unique_ptr<ShmExpertService> service_;
};

std::unique_ptr<ShmExpertLink> Dial(uint64_t incarnation, ShmExpertLinkOptions options = {}) {
  auto link = ShmExpertLink::Dial(incarnation, options);
  EXPECT_TRUE(link.ok()) << link.status();
  return *std::move(link);
}

struct ShmTransport {
  using Worker = tandem::Worker;
  using Link = ShmExpertLink;
  static std::unique_ptr<Link> Dial(Worker& worker, bool small) {
    ShmExpertLinkOptions options;
    if (small) options.memory_bytes = 8192;
    return tandem::Dial(worker.incarnation, options);
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Shm, ExpertLinkContract, ShmTransport);

TEST(ShmExpertLinkTest, NobodyThereIsSaidWhenDialling) {
  const auto link = ShmExpertLink::Dial(NextIncarnation());
  EXPECT_EQ(link.status().code(), absl::StatusCode::kUnavailable) << link.status();
}

TEST(ShmExpertLinkTest, ALinkKnowsOneLifeOfAWorkerOnly) {
  auto first = std::make_unique<Worker>();
  const auto link = Dial(first->incarnation);
  const auto request = MakeFakeRequest(1, 4, 64);
  ExpectAnswers(Get(SendAsync(*link, request)), *request);
  EXPECT_FALSE(link->broken());
  const uint64_t old = first->incarnation;
  first.reset();
  Worker second;
  EXPECT_TRUE(Eventually([&] { return link->broken(); }));
  EXPECT_EQ(Get(SendAsync(*link, MakeFakeRequest(2, 4, 64))).status.code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(ShmExpertLink::Dial(old).ok());
  EXPECT_EQ(second.engine.received(), 0);
}

TEST(ShmExpertLinkTest, ATimedOutRequestKeepsItsMemoryUntilTheWorkerIsDoneWithIt) {
  Worker worker;
  const auto link = Dial(worker.incarnation);
  worker.engine.set_held(true);
  const auto slow = MakeFakeRequest(1, 4, 64, 1);
  slow->time_left = absl::Milliseconds(20);
  EXPECT_EQ(Get(SendAsync(*link, slow)).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GT(Counter(link->Counters(), "outstanding_bytes"), 0);
  // The next one lies elsewhere: the worker's late rows do not get into it.
  const auto next = MakeFakeRequest(2, 4, 64, 2);
  std::future<ExpertReply> reply = SendAsync(*link, next);
  worker.engine.set_held(false);
  ExpectAnswers(Get(std::move(reply)), *next);
  EXPECT_TRUE(Eventually([&] { return Counter(link->Counters(), "outstanding_bytes") == 0; }));
}

TEST(ShmExpertLinkTest, AWorkerKilledWithinARequestIsNoticedAtOnce) {
  const uint64_t incarnation = NextIncarnation();
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    FakeExpertLink engine;
    engine.set_held(true);
    const auto service = ShmExpertService::Start(incarnation, &engine);
    char byte = service.ok() ? 1 : 0;
    if (write(pipe_ends[1], &byte, 1) != 1 || !service.ok()) _exit(1);
    engine.WaitForRequests(1);
    if (write(pipe_ends[1], &byte, 1) != 1) _exit(1);
    while (true) pause();
  }
  char byte = 0;
  ASSERT_EQ(read(pipe_ends[0], &byte, 1), 1);
  ASSERT_EQ(byte, 1);
  const auto link = Dial(incarnation);
  std::future<ExpertReply> reply = SendAsync(*link, MakeFakeRequest(1, 4, 64));
  ASSERT_EQ(read(pipe_ends[0], &byte, 1), 1);
  kill(child, SIGKILL);
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = Get(std::move(reply)).status;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(link->broken());
  waitpid(child, nullptr, 0);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

// ---- a worker and what else may dial it ---------------------------------------------------------

// An attention worker that says what it likes.
class RawClient {
 public:
  explicit RawClient(const Worker& worker)
      : socket_(*LocalSocket::Connect(ShmSocketName(worker.incarnation))),
        memory_(*SharedMemory::Create(1 << 16)) {}

  void Hello() { ASSERT_TRUE(socket_.Send(kShmHello, memory_->fd()).ok()); }
  void Say(const std::string& bytes, int file = -1) { ASSERT_TRUE(socket_.Send(bytes, file).ok()); }
  void Say(const v1::ExpertFrameHeader& header) { Say(header.SerializeAsString()); }
  // The code of the next reply; UNAVAILABLE once the worker has ended the connection.
  absl::StatusCode Reply() {
    const auto message = socket_.Receive();
    if (!message.ok()) return message.status().code();
    v1::ExpertFrameHeader header;
    EXPECT_TRUE(header.ParseFromString(message->bytes));
    return static_cast<absl::StatusCode>(header.status_code());
  }
  std::byte* data() { return memory_->data(); }

  // A request's header, its payload at `offset`.
  v1::ExpertFrameHeader Put(const ExpertRequest& request, uint64_t offset) {
    v1::ExpertFrameHeader header = RequestHeader(request);
    header.set_payload_offset(offset);
    header.set_payload_total(static_cast<uint64_t>(RequestPayloadBytes(request)));
    if (offset <= memory_->bytes() && header.payload_total() <= memory_->bytes() - offset) {
      CopyRequestPayload(request, data() + offset);
    }
    return header;
  }

 private:
  const LocalSocket socket_;
  const std::shared_ptr<SharedMemory> memory_;
};

class ShmExpertServiceTest : public testing::Test {
 protected:
  // Whatever a client has done, others are served.
  void TearDown() override {
    const auto link = Dial(worker_.incarnation);
    const auto request = MakeFakeRequest(99, 4, 64);
    ExpectAnswers(Get(SendAsync(*link, request)), *request);
  }
  Worker worker_;
};

TEST_F(ShmExpertServiceTest, AnHonestRequestAtTheEndOfTheMemoryIsAnswered) {
  RawClient client(worker_);
  client.Hello();
  const auto request = MakeFakeRequest(1, 1, 16);
  const uint64_t bytes = ShmReplyOffset(RequestPayloadBytes(*request)) + ShmReplyBytes(*request);
  const uint64_t offset = ((1 << 16) - bytes) / 64 * 64;
  client.Say(client.Put(*request, offset));
  EXPECT_EQ(client.Reply(), absl::StatusCode::kOk);
  EXPECT_EQ(std::memcmp(client.data() + offset + ShmReplyOffset(RequestPayloadBytes(*request)),
                        ComputeFakeReply(*request).rows.data, ShmReplyBytes(*request)),
            0);
}

TEST_F(ShmExpertServiceTest, WhatLiesOutsideOfTheMemoryIsRefused) {
  RawClient client(worker_);
  client.Hello();
  const auto request = MakeFakeRequest(1, 1, 16);
  const uint64_t request_bytes = RequestPayloadBytes(*request);
  const uint64_t end = 1 << 16;
  for (const uint64_t offset :
       {end, end - 64, end - ShmReplyOffset(request_bytes), end + (uint64_t{1} << 40),
        std::numeric_limits<uint64_t>::max() / 64 * 64, uint64_t{1} << 63, uint64_t{4}}) {
    client.Say(client.Put(*request, offset));
    EXPECT_EQ(client.Reply(), absl::StatusCode::kInvalidArgument) << offset;
  }
  EXPECT_EQ(worker_.engine.received(), 0);
  client.Say(client.Put(*request, 0));
  EXPECT_EQ(client.Reply(), absl::StatusCode::kOk);
}

TEST_F(ShmExpertServiceTest, ADamagedHeaderIsRefused) {
  RawClient client(worker_);
  client.Hello();
  const auto request = MakeFakeRequest(1, 4, 16);
  using Header = v1::ExpertFrameHeader;
  const std::vector<std::function<void(Header*)>> damages = {
      [](Header* h) { h->set_num_rows(1u << 31); },
      [](Header* h) { h->set_num_routes(0); },
      [](Header* h) { h->set_hidden(1u << 30); },
      [](Header* h) { h->set_dtype(77); },
      [](Header* h) { h->set_payload_total(std::numeric_limits<uint64_t>::max()); },
      [](Header* h) { h->set_kind(v1::EXPERT_FRAME_KIND_REPLY); },
  };
  for (const auto& damage : damages) {
    Header header = client.Put(*request, 0);
    damage(&header);
    client.Say(header);
    EXPECT_EQ(client.Reply(), absl::StatusCode::kInvalidArgument) << header.DebugString();
  }
  EXPECT_EQ(worker_.engine.received(), 0);
}

TEST_F(ShmExpertServiceTest, DamagedRoutesAreRefused) {
  RawClient client(worker_);
  client.Hello();
  const auto request = MakeFakeRequest(1, 4, 16);
  const size_t routes = request->rows.bytes();
  for (size_t i = 0; i < 5; ++i) {  // each of the offsets
    const v1::ExpertFrameHeader header = client.Put(*request, 0);
    const int32_t damage = i % 2 == 0 ? 1 << 30 : -1;
    std::memcpy(client.data() + routes + 4 * i, &damage, 4);
    client.Say(header);
    EXPECT_EQ(client.Reply(), absl::StatusCode::kInvalidArgument) << i;
  }
  EXPECT_EQ(worker_.engine.received(), 0);
}

TEST_F(ShmExpertServiceTest, MoreThanTheMemoryHasRoomForIsRefused) {
  RawClient client(worker_);
  client.Hello();
  worker_.engine.set_held(true);
  // All at one place, which no honest client does.
  const auto request = MakeFakeRequest(1, 100, 64);
  client.Say(client.Put(*request, 0));
  client.Say(client.Put(*request, 0));
  EXPECT_EQ(client.Reply(), absl::StatusCode::kResourceExhausted);
  worker_.engine.set_held(false);
  EXPECT_EQ(client.Reply(), absl::StatusCode::kOk);
}

TEST_F(ShmExpertServiceTest, GarbageEndsTheConnection) {
  RawClient client(worker_);
  client.Hello();
  client.Say("this is no header");
  EXPECT_EQ(client.Reply(), absl::StatusCode::kUnavailable);
  RawClient long_one(worker_);
  long_one.Hello();
  long_one.Say(std::string(LocalSocket::kMaxMessageBytes + 1, 'x'));
  EXPECT_EQ(long_one.Reply(), absl::StatusCode::kUnavailable);
}

TEST_F(ShmExpertServiceTest, AHelloThatIsNoneEndsTheConnection) {
  RawClient other_version(worker_);
  const Descriptor memory(memfd_create("test", MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(memory.get(), 4096), 0);
  other_version.Say("tandem expert rows, version 0", memory.get());
  EXPECT_EQ(other_version.Reply(), absl::StatusCode::kUnavailable);
  RawClient no_memory(worker_);
  no_memory.Say(std::string(kShmHello));
  EXPECT_EQ(no_memory.Reply(), absl::StatusCode::kUnavailable);
  RawClient can_shrink(worker_);
  can_shrink.Say(std::string(kShmHello), memory.get());
  EXPECT_EQ(can_shrink.Reply(), absl::StatusCode::kUnavailable);
  RawClient no_file(worker_);
  const Descriptor ends(dup(0));
  no_file.Say(std::string(kShmHello), ends.get());
  EXPECT_EQ(no_file.Reply(), absl::StatusCode::kUnavailable);
}

// ---- a link and what else may answer it ---------------------------------------------------------

// An expert worker that answers each request with what it is given, until it has gone.
class RawWorker {
 public:
  using Answer = std::function<std::string(const v1::ExpertFrameHeader&)>;
  explicit RawWorker(Answer answer)
      : listener_(*LocalSocket::Listen(ShmSocketName(incarnation))),
        thread_([this, answer = std::move(answer)] {
          absl::StatusOr<LocalSocket> client = absl::UnavailableError("none yet");
          Eventually([&] { return (client = listener_.Accept()).ok(); });
          if (!client.ok() || !client->Receive().ok()) return;
          while (true) {
            const auto message = client->Receive();
            v1::ExpertFrameHeader header;
            if (!message.ok() || !header.ParseFromString(message->bytes)) return;
            if (!client->Send(answer(header)).ok()) return;
          }
        }) {}
  ~RawWorker() { thread_.join(); }

  const uint64_t incarnation = NextIncarnation();

 private:
  const LocalSocket listener_;
  std::thread thread_;
};

TEST(ShmExpertLinkTest, AnAnswerThatDoesNotFitItsRequestIsDataLossAndTheLinkGoesOn) {
  int answers = 0;
  RawWorker worker([&answers](const v1::ExpertFrameHeader& request) {
    v1::ExpertFrameHeader reply = request;
    reply.set_kind(v1::EXPERT_FRAME_KIND_REPLY);
    if (answers++ == 0) {
      reply.set_num_rows(1u << 31);
      reply.set_payload_total(uint64_t{1} << 45);
    } else {
      reply.set_status_code(static_cast<int>(absl::StatusCode::kNotFound));
      reply.set_payload_total(0);
    }
    return reply.SerializeAsString();
  });
  const auto link = Dial(worker.incarnation);
  EXPECT_EQ(Get(SendAsync(*link, MakeFakeRequest(1, 4, 64))).status.code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(Get(SendAsync(*link, MakeFakeRequest(2, 4, 64))).status.code(),
            absl::StatusCode::kNotFound);
}

TEST(ShmExpertLinkTest, AnAnswerToNothingBreaksTheLink) {
  for (const bool garbage : {true, false}) {
    RawWorker worker([garbage](v1::ExpertFrameHeader header) {
      if (garbage) return std::string("this is no header");
      header.set_step(header.step() + 1);
      return header.SerializeAsString();
    });
    const auto link = Dial(worker.incarnation);
    const absl::Status status = Get(SendAsync(*link, MakeFakeRequest(1, 4, 64))).status;
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(status.ToString(), HasSubstr("broke"));
    EXPECT_TRUE(link->broken());
  }
}

}  // namespace
}  // namespace tandem
