#include "deployment/worker_host.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/expert.grpc.pb.h"
#include "proto/registry.grpc.pb.h"

namespace tandem {
namespace {

using testing::HasSubstr;
using testing::UnorderedElementsAre;

constexpr absl::Duration kLimit = absl::Seconds(20);
constexpr WorkerId kSelf = 7;
constexpr char kHealthName[] = "tandem.v1.ExpertWorker";

// What happens in a test, for several threads to write and to wait for.
class Diary {
 public:
  void Write(const std::string& entry) {
    std::lock_guard lock(mutex_);
    entries_.push_back(entry);
    changed_.notify_all();
  }
  bool WaitFor(const std::string& entry) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit), [&] {
      return std::find(entries_.begin(), entries_.end(), entry) != entries_.end();
    });
  }
  std::vector<std::string> entries() const {
    std::lock_guard lock(mutex_);
    return entries_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> entries_;  // guarded by mutex_
};

// Loads when the test lets it.
class FakeRole : public WorkerRole {
 public:
  FakeRole(Diary* diary, absl::Status result) : diary_(diary), result_(std::move(result)) {}

  WorkerNames names() const override {
    return {v1::WORKER_KIND_EXPERT, "fake worker", "fakes", kHealthName, "tandem_fake"};
  }
  std::vector<grpc::Service*> services() override { return {&service_}; }
  absl::Status LoadAtStart(const std::function<void(float)>& progress) override {
    progress(0.5f);
    diary_->Write("start");
    if (!diary_->WaitFor("may start")) return absl::DeadlineExceededError("never let start");
    loaded_ = result_.ok();
    return result_;
  }
  absl::Status Load(const Placement& placement, WorkerId self, const std::function<bool()>&,
                    const std::function<void(float)>&) override {
    diary_->Write(absl::StrCat("load ", placement.version.counter, " as ", self));
    std::lock_guard lock(mutex_);
    placement_ = placement.version;
    return absl::OkStatus();
  }
  void Use(Placement placement) override {
    diary_->Write(absl::StrCat("use ", placement.version.counter));
    std::lock_guard lock(mutex_);
    placement_ = placement.version;
  }
  void Retire(PlacementVersion oldest_in_use) override {
    diary_->Write(absl::StrCat("retire below ", oldest_in_use.counter));
  }
  bool loaded() const override { return loaded_; }
  PlacementVersion placement() const override {
    std::lock_guard lock(mutex_);
    return placement_;
  }
  absl::Duration busy_for() const override { return absl::ZeroDuration(); }
  CounterSnapshot Counters() const override { return {{"fakes_total", 42}}; }
  std::shared_ptr<prometheus::Collectable> Histograms() const override {
    return std::make_shared<prometheus::Registry>();
  }

 private:
  Diary* const diary_;
  const absl::Status result_;
  v1::ExpertWorker::Service service_;
  std::atomic<bool> loaded_ = false;
  mutable std::mutex mutex_;
  PlacementVersion placement_;
};

// Takes every worker, or none, and sends it orders to load placements 1, 2 and 3 and to use 3.
class FakeRegistry : public v1::Registry::Service {
 public:
  explicit FakeRegistry(grpc::Status refusal) : refusal_(std::move(refusal)) {}

  grpc::Status Join(grpc::ServerContext*,
                    grpc::ServerReaderWriter<v1::WorkerOrder, v1::WorkerReport>* stream) override {
    v1::WorkerReport report;
    if (!stream->Read(&report)) return grpc::Status::OK;
    {
      std::lock_guard lock(mutex_);
      hello_ = report.hello();
    }
    if (!refusal_.ok()) return refusal_;
    v1::WorkerOrder accepted;
    accepted.mutable_accepted()->set_worker_id(kSelf);
    accepted.mutable_accepted()->set_heartbeat_ms(10);
    stream->Write(accepted);
    v1::WorkerOrder order;
    for (int counter = 1; counter <= 3; ++counter) {
      order.mutable_load()->set_counter(counter);
      stream->Write(order);
    }
    order.mutable_use()->set_counter(3);
    stream->Write(order);
    while (stream->Read(&report)) {
      std::lock_guard lock(mutex_);
      heartbeat_ = report.heartbeat();
      changed_.notify_all();
      if (hangs_up_) return grpc::Status::OK;
      if (!releases_) continue;
      order.mutable_released();
      stream->Write(order);
    }
    return grpc::Status::OK;
  }
  // At its next heartbeat the worker is told that it may end.
  void Release() {
    std::lock_guard lock(mutex_);
    releases_ = true;
  }
  // From its next heartbeat on the worker has no gateway.
  void HangUp() {
    std::lock_guard lock(mutex_);
    hangs_up_ = true;
  }

  // A heartbeat that is `wanted`; an empty one if none comes.
  v1::WorkerHeartbeat WaitForHeartbeat(
      const std::function<bool(const v1::WorkerHeartbeat&)>& wanted) {
    std::unique_lock lock(mutex_);
    const bool came = changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit),
                                        [&] { return wanted(heartbeat_); });
    return came ? heartbeat_ : v1::WorkerHeartbeat();
  }
  v1::WorkerHello hello() const {
    std::lock_guard lock(mutex_);
    return hello_;
  }

 private:
  const grpc::Status refusal_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  v1::WorkerHello hello_;
  v1::WorkerHeartbeat heartbeat_;
  bool releases_ = false;
  bool hangs_up_ = false;
};

// The answer of grpc.health.v1.Health/Check as bytes: field 1, then 1 for SERVING, 2 for
// NOT_SERVING.
std::string AskHealth(const std::string& address, const std::string& name = kHealthName) {
  const grpc::Slice question(
      absl::StrCat("\x0a", std::string(1, static_cast<char>(name.size())), name));
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kLimit));
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                          grpc::ByteBuffer(&question, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  EXPECT_TRUE(status.ok()) << status.error_message();
  grpc::Slice slice;
  return answer.DumpToSingleSlice(&slice).ok() ? std::string(slice.begin(), slice.end()) : "";
}

int64_t Counter(const v1::WorkerHeartbeat& heartbeat, const std::string& name) {
  const auto it = heartbeat.counters().find(name);
  return it == heartbeat.counters().end() ? -1 : it->second;
}

class WorkerHostTest : public testing::Test {
 protected:
  // Before the first thread, so that none takes the signal.
  static void SetUpTestSuite() { BlockEndSignals(); }

  void SetUp() override {
    if (!std::filesystem::exists(model_ + "/model.safetensors")) {
      GTEST_SKIP() << model_ << "/model.safetensors is missing";
    }
  }
  void TearDown() override {
    if (!served_.valid()) return;
    diary_.Write("may start");
    registry_->HangUp();
    kill(getpid(), SIGTERM);
    served_.wait();
  }

  void Start(const absl::Status& load_result, const grpc::Status& refusal = grpc::Status::OK) {
    registry_ = std::make_unique<FakeRegistry>(refusal);
    registry_host_ = *ServiceHost::Start({"127.0.0.1:0", "", false}, {registry_.get()}, {});
    WorkerOptions options;
    options.model_dir = model_;
    options.registry = registry_host_->address();
    options.dtype = "f32";
    options.backend.threads = 1;
    options.drain_limit_s = drain_limit_s_;
    host_ = std::make_unique<WorkerHost>(
        options,
        [this,
         load_result](const WorkerParts& parts) -> absl::StatusOr<std::unique_ptr<WorkerRole>> {
          digest_ = parts.digest;
          return std::make_unique<FakeRole>(&diary_, load_result);
        });
    served_ = std::async(std::launch::async, [this] { return host_->Serve(); });
  }

  // A worker that has been sent SIGTERM and waits for others to take over. Returns whether it does.
  bool StartToDrain() {
    Start(absl::OkStatus());
    diary_.Write("may start");
    if (!diary_.WaitFor("load 3 as 7")) return false;
    kill(getpid(), SIGTERM);
    const v1::WorkerHeartbeat last =
        registry_->WaitForHeartbeat([](const auto& heartbeat) { return heartbeat.draining(); });
    return last.draining() && last.drain_left_ms() <= drain_limit_s_ * 1000u;
  }
  absl::Status WaitForEndOfWorker() {
    if (served_.wait_for(absl::ToChronoNanoseconds(kLimit)) != std::future_status::ready) {
      return absl::DeadlineExceededError("the worker does not end");
    }
    return served_.get();
  }

  const std::string model_ = absl::StrCat(TANDEM_SOURCE_DIR, "/tests/golden/tiny");
  int drain_limit_s_ = 3600;
  Diary diary_;
  std::function<std::string()> digest_;  // what the role was told
  std::unique_ptr<FakeRegistry> registry_;
  std::unique_ptr<ServiceHost> registry_host_;
  std::unique_ptr<WorkerHost> host_;
  std::future<absl::Status> served_;
};

TEST_F(WorkerHostTest, AnswersWhileItLoadsAndThenCarriesOutTheNewestOrderOnly) {
  Start(absl::OkStatus());
  ASSERT_TRUE(diary_.WaitFor("start"));
  ASSERT_TRUE(diary_.WaitFor("use 3"));
  const v1::WorkerHello hello = registry_->hello();
  EXPECT_EQ(hello.kind(), v1::WORKER_KIND_EXPERT);
  EXPECT_EQ(hello.dtype(), "f32");
  EXPECT_FALSE(hello.digest().empty());
  EXPECT_EQ(AskHealth(hello.address()), "\x08\x02");
  EXPECT_EQ(AskHealth(hello.address(), kAliveHealthName), "\x08\x01");
  // It has a placement to use, as an attention worker has, but not its weights.
  const v1::WorkerHeartbeat loading = registry_->WaitForHeartbeat([](const auto& heartbeat) {
    return heartbeat.loaded() > 0 && heartbeat.placement_counter() > 0;
  });
  EXPECT_FALSE(loading.ready());
  EXPECT_EQ(loading.loaded(), 0.5f);
  EXPECT_EQ(Counter(loading, "fakes_total"), 42);
  EXPECT_EQ(Counter(loading, "digest_percent"), 100);
  for (const char* name :
       {"memory_limit_bytes", "memory_available_bytes", "memory_resident_bytes", "unix_time_ms"}) {
    EXPECT_GT(Counter(loading, name), 1 << 20) << name;
  }
  EXPECT_EQ(Counter(loading, "loaded_percent"), 50);
  // It does not get on.
  EXPECT_GT(registry_->WaitForHeartbeat([](const auto& h) { return h.load_idle_ms() > 50; })
                .load_idle_ms(),
            50u);

  diary_.Write("may start");
  ASSERT_TRUE(diary_.WaitFor("load 3 as 7"));
  ASSERT_TRUE(diary_.WaitFor("retire below 3"));
  const v1::WorkerHeartbeat ready =
      registry_->WaitForHeartbeat([](const auto& heartbeat) { return heartbeat.ready(); });
  EXPECT_EQ(ready.loaded(), 1.0f);
  EXPECT_EQ(ready.placement_counter(), 3u);
  EXPECT_TRUE(
      registry_->WaitForHeartbeat([](const auto& h) { return h.load_idle_ms() == 0; }).ready());
  EXPECT_EQ(AskHealth(hello.address()), "\x08\x01");
  EXPECT_THAT(diary_.entries(),
              UnorderedElementsAre("start", "use 3", "may start", "retire below 3", "load 3 as 7"));

  registry_->Release();
  kill(getpid(), SIGTERM);
  EXPECT_TRUE(WaitForEndOfWorker().ok());
  EXPECT_EQ(hello.digest(), digest_());
}

TEST_F(WorkerHostTest, EndsWithTheSentenceOfALoadThatFails) {
  Start(absl::DataLossError("the disk is on fire"));
  diary_.Write("may start");
  EXPECT_EQ(WaitForEndOfWorker(), absl::DataLossError("the disk is on fire"));
}

TEST_F(WorkerHostTest, EndsWithTheReasonOfARefusal) {
  Start(absl::OkStatus(), {grpc::StatusCode::FAILED_PRECONDITION, "not one of us"});
  diary_.Write("may start");
  EXPECT_EQ(WaitForEndOfWorker(), absl::FailedPreconditionError("not one of us"));
}

TEST_F(WorkerHostTest, GoesOnWhileItDrainsUntilItIsReleased) {
  ASSERT_TRUE(StartToDrain());
  EXPECT_EQ(AskHealth(registry_->hello().address()), "\x08\x01");
  registry_->Release();
  EXPECT_TRUE(WaitForEndOfWorker().ok());
}

TEST_F(WorkerHostTest, DrainsForItsLimitAtMost) {
  drain_limit_s_ = 1;
  ASSERT_TRUE(StartToDrain());
  EXPECT_TRUE(WaitForEndOfWorker().ok());
}

TEST_F(WorkerHostTest, WithoutAGatewayThereIsNobodyToWaitFor) {
  ASSERT_TRUE(StartToDrain());
  registry_->HangUp();
  EXPECT_TRUE(WaitForEndOfWorker().ok());
}

TEST_F(WorkerHostTest, ASecondSignalEndsItAtOnce) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto signal_twice = [this] {
    if (StartToDrain()) kill(getpid(), SIGTERM);
    served_.wait();
  };
  EXPECT_EXIT(signal_twice(), testing::KilledBySignal(SIGTERM), "");
}

TEST_F(WorkerHostTest, RefusesAWrongModeBeforeItListens) {
  WorkerOptions options;
  options.dtype = "f64";
  WorkerHost host(options, nullptr);
  EXPECT_THAT(std::string(host.Serve().message()), HasSubstr("f64"));
}

}  // namespace
}  // namespace tandem
