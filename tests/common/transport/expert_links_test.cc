#include "common/transport/expert_links.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "common/transport/grpc_expert_service.h"
#include "common/transport/shm_expert_service.h"
#include "tests/common/transport/fake_expert.h"
#include "tests/common/transport/link_checks.h"

namespace tandem {
namespace {

// An expert worker that is reached in both ways, until one is taken away.
class Worker {
 public:
  Worker() : grpc_service_(&engine) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(grpc_service_.service());
    server_ = builder.BuildAndStart();
    auto service = ShmExpertService::Start(incarnation_, &engine);
    EXPECT_TRUE(service.ok()) << service.status();
    shm_service_ = *std::move(service);
  }
  ~Worker() { server_->Shutdown(std::chrono::system_clock::now()); }
  Placement::Worker placed() const { return {1, absl::StrCat("127.0.0.1:", port_), incarnation_}; }
  int64_t grpc_requests() const { return Counter(grpc_service_.Counters(), "grpc_requests_total"); }
  int64_t streams_live() const { return Counter(grpc_service_.Counters(), "grpc_streams_live"); }
  int64_t shm_requests() const { return Counter(shm_service_->Counters(), "shm_requests_total"); }
  int64_t sessions_live() const { return Counter(shm_service_->Counters(), "shm_sessions_live"); }
  void EndShm() { shm_service_.reset(); }

  FakeExpertLink engine;

 private:
  const uint64_t incarnation_ = static_cast<uint64_t>(getpid()) << 32 | 0xE11;
  int port_ = 0;
  GrpcExpertService grpc_service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ShmExpertService> shm_service_;
};

void Ask(ExpertLink& link, uint64_t step) {
  const auto request = MakeFakeRequest(step, 8, 64);
  ExpectAnswers(Get(SendAsync(link, request)), *request);
}

TEST(ExpertLinksTest, SharedMemoryIsChosenByItself) {
  Worker worker;
  ExpertLinks links(ExpertLinkKind::kAuto);
  const auto link = links.Dial(worker.placed());
  Ask(*link, 1);
  EXPECT_EQ(worker.shm_requests(), 1);
  EXPECT_EQ(worker.grpc_requests(), 0);
  EXPECT_EQ(Counter(links.Counters(), "expert_links_shm"), 1);
}

TEST(ExpertLinksTest, GrpcIsTakenWhereItIsWantedOrNothingElseIsThere) {
  Worker worker;
  ExpertLinks grpc_links(ExpertLinkKind::kGrpc);
  Ask(*grpc_links.Dial(worker.placed()), 1);
  ExpertLinks links(ExpertLinkKind::kAuto);
  Placement::Worker elsewhere = worker.placed();
  elsewhere.incarnation += 1;
  const auto link = links.Dial(elsewhere);
  Ask(*link, 2);
  EXPECT_EQ(Counter(links.Counters(), "expert_links_shm"), 0);
  EXPECT_EQ(worker.shm_requests(), 0);
  EXPECT_EQ(worker.grpc_requests(), 2);
}

TEST(ExpertLinksTest, GrpcGoesOnWhenSharedMemoryHasBroken) {
  Worker worker;
  ExpertLinks links(ExpertLinkKind::kAuto);
  const auto link = links.Dial(worker.placed());
  Ask(*link, 1);
  worker.EndShm();
  EXPECT_TRUE(Eventually([&] { return Counter(links.Counters(), "expert_links_shm") == 0; }));
  Ask(*link, 2);
  EXPECT_EQ(worker.grpc_requests(), 1);
}

TEST(ExpertLinksTest, ALinkThatIsLetGoIsClosedElsewhereAndStaysCounted) {
  for (const ExpertLinkKind kind : {ExpertLinkKind::kAuto, ExpertLinkKind::kGrpc}) {
    Worker worker;
    ExpertLinks links(kind);
    const auto sent = [&] { return Counter(links.Counters(), "expert_payload_bytes_sent_total"); };
    auto link = links.Dial(worker.placed());
    Ask(*link, 1);
    const int64_t bytes = sent();
    EXPECT_GT(bytes, 0);
    EXPECT_EQ(Counter(links.Counters(), "expert_links_live"), 1);

    // Let go by the callback of an answer: the link's own thread, which must not wait for the end.
    worker.engine.set_held(true);
    std::promise<void> let_go;
    ExpertLink* const raw = link.get();
    raw->Send(MakeFakeRequest(2, 8, 64), [&, held = std::move(link)](ExpertReply) mutable {
      held.reset();
      let_go.set_value();
    });
    ASSERT_TRUE(worker.engine.WaitForRequests(2));
    worker.engine.set_held(false);
    let_go.get_future().wait();
    EXPECT_EQ(Counter(links.Counters(), "expert_links_live"), 0);
    EXPECT_TRUE(
        Eventually([&] { return worker.streams_live() == 0 && worker.sessions_live() == 0; }));
    EXPECT_GT(sent(), bytes);
    const int64_t all = sent();
    const auto second = links.Dial(worker.placed());
    EXPECT_EQ(sent(), all);
  }
}

}  // namespace
}  // namespace tandem
