#include "common/transport/grpc_attention_link.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/transport/grpc_attention_service.h"
#include "proto/attention.grpc.pb.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What happened, as words, in order; to be waited for.
class Log {
 public:
  void Add(std::string event) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      events_.push_back(std::move(event));
    }
    changed_.notify_all();
  }
  std::vector<std::string> events() const {
    std::lock_guard<std::mutex> lock(mu_);
    return events_;
  }
  bool WaitFor(size_t count) {
    std::unique_lock<std::mutex> lock(mu_);
    return changed_.wait_for(lock, std::chrono::seconds(20),
                             [&] { return events_.size() >= count; });
  }

 private:
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::vector<std::string> events_;
};

// A session that logs what it is told and answers a step at once: one row per output.
class FakeAttentionLink : public AttentionLink {
 public:
  FakeAttentionLink(Log* log, Observer* observer) : log_(log), observer_(observer) {}
  ~FakeAttentionLink() override { log_->Add("closed"); }
  AttentionWorkerInfo info() const override { return {27, 1000, 5}; }
  void OpenSequence(SequenceSpec spec) override {
    std::string absorbed;
    for (const PageRange& range : spec.absorbed_pages) {
      absl::StrAppend(&absorbed, " [", range.first, ", ", range.end, ")");
    }
    log_->Add(absl::StrCat("open ", spec.sequence, " of ", spec.token_ids.size(), " tokens, last ",
                           spec.token_ids.back(), ", expanded ", spec.expanded_length, " but",
                           absorbed, ", pages ", absl::StrJoin(spec.pages, " "), ", top_p ",
                           spec.sampling.top_p, ", seed ", spec.sampling.seed, ", mask ",
                           spec.mask_ids_without_token, ", request ", spec.tag.request_id,
                           ", trace ", spec.tag.traceparent, " ", spec.tag.tracestate));
    last_spec = spec;
  }
  void Run(Step step) override {
    std::string pages;
    for (const NewBatch& batch : step.new_batches) {
      absl::StrAppend(&pages, ", pages ", absl::StrJoin(batch.pages, " "));
    }
    log_->Add(absl::StrCat("step ", step.step, pages));
    StepResult result;
    result.step = step.step;
    if (step.new_batches.empty()) {
      result.status = absl::FailedPreconditionError("nothing to do");
    }
    for (const NewBatch& batch : step.new_batches) {
      for (const RowOutput& output : batch.outputs) {
        RowResult& row = result.rows.emplace_back();
        row.sequence = batch.runs[0].sequence;
        row.position = batch.runs[0].first_position + output.row;
        row.kind = output.kind;
        row.token = output.target + 1;
        row.log_prob = -0.25f;
        if (output.kind == RowOutputKind::kSample) row.top = {{102399, -0.5f}, {0, -1e-40f}};
        if (output.kind == RowOutputKind::kLogits) row.logits = {0, -1, 2.5f, -0.0f, 1e-40f};
      }
    }
    for (const Advance& advance : step.advance) {
      result.batches.push_back({advance.batch, advance.end_layer});
    }
    result.busy_us = 345;
    result.wait_us = 12;
    observer_->OnStepResult(std::move(result));
  }
  void Cancel(SequenceId sequence) override { log_->Add(absl::StrCat("cancel ", sequence)); }
  void Release(SequenceId sequence) override { log_->Add(absl::StrCat("release ", sequence)); }

  static SequenceSpec
      last_spec;  // that any of them was told; read behind what follows it in the log

 private:
  Log* const log_;
  Observer* const observer_;
};

SequenceSpec FakeAttentionLink::last_spec;

class Gateway : public AttentionLink::Observer {
 public:
  void OnStepResult(StepResult result) override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      results_.push_back(std::move(result));
    }
    log.Add("result");
  }
  void OnSilent(bool silent) override {
    if (hears_silence) log.Add(silent ? "silent" : "not silent");
  }
  void OnDown(absl::Status status) override {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    log.Add(absl::StrCat("down: ", status.message()));
  }
  std::vector<StepResult> results() const {
    std::lock_guard<std::mutex> lock(mu_);
    return results_;
  }
  Log log;
  bool hears_silence = false;  // others' tests may run slowly

 private:
  mutable std::mutex mu_;
  std::vector<StepResult> results_;
};

class GrpcAttentionLinkTest : public ::testing::Test {
 protected:
  GrpcAttentionLinkTest() { StartServer("digest-a"); }
  ~GrpcAttentionLinkTest() override { StopServer(); }

  void StartServer(const std::string& digest, absl::Duration silence_limit = absl::Seconds(10)) {
    StopServer();
    service_ = std::make_unique<GrpcAttentionService>(
        [this](AttentionLink::Observer* observer) -> std::unique_ptr<AttentionLink> {
          if (!ready_) return nullptr;
          worker_observer_ = observer;
          return std::make_unique<FakeAttentionLink>(&worker_log_, observer);
        },
        GrpcAttentionServiceOptions{[digest] { return digest; }, silence_limit});
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_->service());
    server_ = builder.BuildAndStart();
    peer_.address = absl::StrCat("127.0.0.1:", port);
  }
  void StopServer() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_ = nullptr;
    service_ = nullptr;
  }
  GrpcAttentionLinkOptions Options() const {
    GrpcAttentionLinkOptions options;
    options.gateway_incarnation = 4;
    options.digest = "digest-a";
    return options;
  }
  std::unique_ptr<GrpcAttentionLink> Connect() {
    auto link = GrpcAttentionLink::Connect(peer_, &gateway_, Options());
    EXPECT_TRUE(link.ok()) << link.status();
    return link.ok() ? *std::move(link) : nullptr;
  }
  int64_t ServiceCounter(const std::string& name) const {
    for (const auto& [key, value] : service_->Counters()) {
      if (key == name) return value;
    }
    return -1;
  }

  Log worker_log_;
  Gateway gateway_;
  bool ready_ = true;
  AttentionLink::Observer* worker_observer_ = nullptr;
  GrpcPeer peer_;
  std::unique_ptr<GrpcAttentionService> service_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(GrpcAttentionLinkTest, EverythingArrivesInOrderAndAsItWas) {
  auto link = Connect();
  ASSERT_NE(link, nullptr);
  EXPECT_EQ(link->info().num_layers, 27);
  EXPECT_EQ(link->info().total_pages, 1000);
  EXPECT_EQ(link->info().vocab_size, 5);
  SequenceSpec spec;
  spec.sequence = 11;
  spec.token_ids.assign(100, 7);
  spec.token_ids.back() = 102399;
  spec.expanded_length = 64;
  spec.absorbed_pages = {{1, 3}, {5, 6}};
  spec.pages = {7, 0, 999};
  spec.sampling.top_p = 0.5f;
  spec.sampling.seed = ~uint64_t{0};
  spec.mask_ids_without_token = false;
  spec.tag = {"7f31", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1"};
  link->OpenSequence(spec);
  Step step;
  step.step = 1;
  step.new_batches.push_back({21,
                              {{11, 0, 100, false}},
                              {4, 2},
                              {{97, RowOutputKind::kLogProb, 3},
                               {98, RowOutputKind::kLogits, 0},
                               {99, RowOutputKind::kSample, 0}}});
  step.advance.push_back({21, 0, 27});
  link->Run(step);
  link->Cancel(11);
  link->Release(12);
  Step empty;
  empty.step = 2;
  link->Run(empty);
  ASSERT_TRUE(gateway_.log.WaitFor(2));
  EXPECT_THAT(worker_log_.events(),
              ElementsAre(HasSubstr("open 11 of 100 tokens, last 102399, expanded 64 but [1, 3) "
                                    "[5, 6), pages 7 0 999, top_p 0.5, seed 18446744073709551615, "
                                    "mask 0, request 7f31, trace "
                                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 a=1"),
                          "step 1, pages 4 2", "cancel 11", "release 12", "step 2"));
  const std::vector<StepResult> results = gateway_.results();
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].step, 1u);
  EXPECT_TRUE(results[0].status.ok());
  ASSERT_EQ(results[0].rows.size(), 3u);
  EXPECT_EQ(results[0].rows[0].kind, RowOutputKind::kLogProb);
  EXPECT_EQ(results[0].rows[0].token, 4);
  EXPECT_EQ(results[0].rows[0].log_prob, -0.25f);
  EXPECT_EQ(results[0].rows[1].position, 98);
  EXPECT_EQ(results[0].rows[1].logits, (std::vector<float>{0, -1, 2.5f, -0.0f, 1e-40f}));
  EXPECT_EQ(results[0].rows[2].kind, RowOutputKind::kSample);
  EXPECT_THAT(results[0].rows[0].top, ::testing::IsEmpty());
  EXPECT_THAT(results[0].rows[2].top,
              ElementsAre(TokenLogProb{102399, -0.5f}, TokenLogProb{0, -1e-40f}));
  ASSERT_EQ(results[0].batches.size(), 1u);
  EXPECT_EQ(results[0].batches[0].next_layer, 27);
  EXPECT_EQ(results[0].busy_us, 345);
  EXPECT_EQ(results[0].wait_us, 12);
  EXPECT_EQ(results[1].status, absl::FailedPreconditionError("nothing to do"));
}

TEST_F(GrpcAttentionLinkTest, SamplingArrivesAsItWas) {
  auto link = Connect();
  ASSERT_NE(link, nullptr);
  for (const bool all : {true, false}) {
    SequenceSpec spec;
    spec.sequence = all ? 1 : 2;
    spec.token_ids = {1, 2, 3};
    if (all) {
      spec.num_prompt_tokens = 2;
      spec.top_logprobs = 20;
      spec.sampling = {.min_tokens = 4,
                       .end_ids = {2, 1},
                       .logit_bias = {{0, -100.0f}, {102399, 0.25f}},
                       .repetition_penalty = 1.5f,
                       .frequency_penalty = -2.0f,
                       .presence_penalty = 0.125f,
                       .temperature = 0.5f,
                       .min_p = 0.0625f,
                       .top_k = 7,
                       .top_p = 0.75f,
                       .seed = 8,
                       .choice = 3};
    }
    link->OpenSequence(spec);
    link->Cancel(spec.sequence);
    ASSERT_TRUE(worker_log_.WaitFor(all ? 2 : 4));
    const SequenceSpec& got = FakeAttentionLink::last_spec;
    EXPECT_EQ(got.sequence, spec.sequence);
    EXPECT_EQ(got.num_prompt_tokens, spec.num_prompt_tokens);
    EXPECT_EQ(got.top_logprobs, spec.top_logprobs);
    EXPECT_EQ(got.sampling, spec.sampling);
  }
}

TEST_F(GrpcAttentionLinkTest, DestroyingTheLinkFreesTheSessionAndSaysNothing) {
  auto link = Connect();
  ASSERT_NE(link, nullptr);
  link.reset();
  ASSERT_TRUE(worker_log_.WaitFor(1));
  EXPECT_THAT(worker_log_.events(), ElementsAre("closed"));
  EXPECT_TRUE(gateway_.log.events().empty());
  StopServer();  // waits for the session to be gone
}

TEST_F(GrpcAttentionLinkTest, TwoSessionsLiveSideBySide) {
  Gateway other;
  auto link = Connect();
  auto second = GrpcAttentionLink::Connect(peer_, &other, Options());
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(ServiceCounter("sessions_live"), 2);
  Step step;
  step.step = 1;
  (*second)->Run(step);
  EXPECT_TRUE(other.log.WaitFor(1));
  EXPECT_TRUE(gateway_.log.events().empty());
}

TEST_F(GrpcAttentionLinkTest, AWorkerThatDiesIsSaidOnceToBeDown) {
  auto link = Connect();
  ASSERT_NE(link, nullptr);
  StopServer();
  ASSERT_TRUE(gateway_.log.WaitFor(1));
  EXPECT_THAT(gateway_.log.events(), ElementsAre(HasSubstr(absl::StrCat("down: the connection to "
                                                                        "attention worker ",
                                                                        peer_.address))));
  link->Cancel(1);  // ignored
  link.reset();
  EXPECT_EQ(gateway_.log.events().size(), 1u);
  EXPECT_THAT(worker_log_.events(), ElementsAre("closed"));
}

TEST_F(GrpcAttentionLinkTest, AnEngineThatGoesDownEndsTheStream) {
  auto link = Connect();
  ASSERT_NE(link, nullptr);
  worker_observer_->OnDown(absl::InternalError("the engine has stopped"));
  ASSERT_TRUE(gateway_.log.WaitFor(1));
  EXPECT_THAT(gateway_.log.events(), ElementsAre(HasSubstr("the engine has stopped")));
  ASSERT_TRUE(worker_log_.WaitFor(1));
  EXPECT_THAT(worker_log_.events(), ElementsAre("closed"));
}

TEST_F(GrpcAttentionLinkTest, AnotherCheckpointIsRefusedByName) {
  StartServer("digest-b");
  const auto link = GrpcAttentionLink::Connect(peer_, &gateway_, Options());
  EXPECT_EQ(link.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(link.status().ToString(), AllOf(HasSubstr("digest-a"), HasSubstr("digest-b")));
  EXPECT_EQ(ServiceCounter("sessions_refused_total"), 1);
  EXPECT_TRUE(gateway_.log.events().empty());
}

TEST_F(GrpcAttentionLinkTest, AWorkerThatIsNotReadyIsUnavailable) {
  ready_ = false;
  EXPECT_EQ(GrpcAttentionLink::Connect(peer_, &gateway_, Options()).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(GrpcAttentionLinkTest, AnAddressWhereNobodyListensIsUnavailable) {
  EXPECT_EQ(
      GrpcAttentionLink::Connect({"127.0.0.1:1", nullptr}, &gateway_, Options()).status().code(),
      absl::StatusCode::kUnavailable);
}

TEST_F(GrpcAttentionLinkTest, KeepalivesGoBothWays) {
  GrpcAttentionLinkOptions options = Options();
  options.keepalive_interval = absl::Milliseconds(10);
  auto link = GrpcAttentionLink::Connect(peer_, &gateway_, options);
  ASSERT_TRUE(link.ok());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  int64_t received = 0;
  while (received < 5 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
    for (const auto& [name, value] : (*link)->Counters()) {
      if (name == "messages_received_total") received = value;
    }
  }
  EXPECT_GE(received, 5);
  EXPECT_TRUE(gateway_.log.events().empty());
}

TEST_F(GrpcAttentionLinkTest, AGatewayThatFallsSilentLosesItsSession) {
  StartServer("digest-a", absl::Milliseconds(100));
  GrpcAttentionLinkOptions options = Options();
  options.keepalive_interval = absl::Hours(1);
  auto link = GrpcAttentionLink::Connect(peer_, &gateway_, options);
  ASSERT_TRUE(link.ok());
  ASSERT_TRUE(worker_log_.WaitFor(1));
  EXPECT_THAT(worker_log_.events(), ElementsAre("closed"));
  EXPECT_TRUE(gateway_.log.WaitFor(1));
}

// Says welcome, then nothing until it is told to.
class QuietWorker : public v1::AttentionWorker::Service {
 public:
  grpc::Status Run(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::AttentionReply, v1::AttentionRequest>* stream) override {
    v1::AttentionReply reply;
    reply.mutable_welcome()->set_num_layers(1);
    stream->Write(reply);
    speak_.get_future().wait();
    reply.mutable_keepalive();
    stream->Write(reply);
    v1::AttentionRequest request;
    while (stream->Read(&request)) {
    }
    return grpc::Status::OK;
  }
  void Speak() { speak_.set_value(); }

 private:
  std::promise<void> speak_;
};

TEST_F(GrpcAttentionLinkTest, ASilentWorkerIsToldToBeUntilItSpeaks) {
  QuietWorker worker;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&worker);
  const auto server = builder.BuildAndStart();
  gateway_.hears_silence = true;
  GrpcAttentionLinkOptions options = Options();
  options.suspect_after = absl::Milliseconds(50);
  options.silence_limit = absl::Hours(1);
  auto link =
      GrpcAttentionLink::Connect({absl::StrCat("127.0.0.1:", port), nullptr}, &gateway_, options);
  ASSERT_TRUE(link.ok());
  ASSERT_TRUE(gateway_.log.WaitFor(1));
  EXPECT_EQ(gateway_.log.events()[0], "silent");
  worker.Speak();
  ASSERT_TRUE(gateway_.log.WaitFor(2));
  EXPECT_EQ(gateway_.log.events()[1], "not silent");
  link->reset();
}

TEST_F(GrpcAttentionLinkTest, AWorkerThatFallsSilentIsDown) {
  GrpcAttentionLinkOptions options = Options();
  options.keepalive_interval = absl::Milliseconds(500);
  options.silence_limit = absl::Milliseconds(100);
  auto link = GrpcAttentionLink::Connect(peer_, &gateway_, options);
  ASSERT_TRUE(link.ok());
  ASSERT_TRUE(gateway_.log.WaitFor(1));
  EXPECT_THAT(gateway_.log.events(), ElementsAre(HasSubstr("said nothing for 100ms")));
}

}  // namespace
}  // namespace tandem
