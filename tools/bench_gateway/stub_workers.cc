// Workers that compute nothing, any number of them in this process: they join a real gateway over
// real sockets, report, take placements as loaded at once, and answer steps. For bench_gateway.py.
//
//   stub_workers --gateway HOST:PORT --registry HOST:PORT --attention 64 --experts 256
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/command_line.h"
#include "common/mutex.h"
#include "common/placement.h"
#include "common/service/grpc_status.h"
#include "common/service/service_host.h"
#include "common/status.h"
#include "common/transport/attention_link.h"
#include "common/transport/grpc_attention_service.h"
#include "common/transport/grpc_peer.h"
#include "common/transport/timer_thread.h"
#include "proto/inference.grpc.pb.h"
#include "proto/registry.grpc.pb.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kHeartbeat{300'000};  // as gateway/coordinator.cc asks for

struct Options {
  std::string gateway;
  std::string registry;
  int attention = 1;
  int experts = 1;
  double step_ms = 0;
  int pages = 16384;  // of each attention worker: a million tokens, 32 GB of V2-Lite's
};

// Answers what it is given when its time has come. Destroyed after all that it was given to.
class Answerer {
 public:
  Answerer() : thread_([this] { Loop(); }) {}
  ~Answerer() {
    {
      MutexLock lock(mutex_);
      ended_ = true;
    }
    changed_.NotifyAll();
    thread_.join();
  }

  // Calls `observer` at `when`, unless Forget comes first.
  void Add(Clock::time_point when, AttentionLink::Observer* observer, StepResult result) {
    MutexLock lock(mutex_);
    const bool is_first = waiting_.empty() || when < waiting_.begin()->first;
    waiting_.emplace(when, Answer{observer, std::move(result)});
    if (is_first) changed_.NotifyAll();
  }
  // None of `observer`'s is called once this has returned.
  void Forget(AttentionLink::Observer* observer) {
    MutexLock lock(mutex_);
    std::erase_if(waiting_, [&](const auto& entry) { return entry.second.observer == observer; });
    changed_.Wait(lock,
                  [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return answering_ != observer; });
  }

 private:
  struct Answer {
    AttentionLink::Observer* observer;
    StepResult result;
  };

  void Loop() {
    MutexLock lock(mutex_);
    while (!ended_) {
      const Clock::time_point now = Clock::now();
      const Clock::time_point first =
          waiting_.empty() ? now + std::chrono::seconds(1) : waiting_.begin()->first;
      if (first > now) {
        changed_.WaitUntil(lock, first, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return ended_ || (!waiting_.empty() && waiting_.begin()->first < first);
        });
        continue;
      }
      Answer answer = std::move(waiting_.begin()->second);
      waiting_.erase(waiting_.begin());
      answering_ = answer.observer;
      lock.Unlock();
      answer.observer->OnStepResult(std::move(answer.result));
      lock.Lock();
      answering_ = nullptr;
      changed_.NotifyAll();
    }
  }

  Mutex mutex_;
  CondVar changed_;
  std::multimap<Clock::time_point, Answer> waiting_ ABSL_GUARDED_BY(mutex_);
  AttentionLink::Observer* answering_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// A session: every row that is to be drawn gets a token, one step after the other.
class StubLink final : public AttentionLink {
 public:
  StubLink(Answerer* answerer, Observer* observer, AttentionWorkerInfo info, double step_ms)
      : answerer_(*answerer),
        observer_(observer),
        info_(info),
        step_(std::chrono::duration_cast<Clock::duration>(
            std::chrono::duration<double, std::milli>(step_ms))) {}
  ~StubLink() override { answerer_.Forget(observer_); }

  AttentionWorkerInfo info() const override { return info_; }
  void OpenSequence(SequenceSpec) override {}
  void Cancel(SequenceId) override {}
  void Release(SequenceId) override {}
  void Run(Step step) override {
    StepResult result;
    result.step = step.step;
    for (NewBatch& batch : step.new_batches) batches_[batch.batch] = std::move(batch);
    for (const Advance& advance : step.advance) {
      result.batches.push_back({advance.batch, advance.end_layer});
      if (advance.end_layer == info_.num_layers) AddRows(advance.batch, &result);
    }
    if (step_ == Clock::duration::zero()) return observer_->OnStepResult(std::move(result));
    last_ = std::max(last_, Clock::now()) + step_;
    result.busy_us = std::chrono::duration_cast<std::chrono::microseconds>(step_).count();
    answerer_.Add(last_, observer_, std::move(result));
  }

 private:
  static constexpr int32_t kFirstToken = 1000;  // of which none ends a sequence

  void AddRows(BatchId id, StepResult* result) {
    const auto it = batches_.find(id);
    if (it == batches_.end()) return;
    int32_t first_row = 0;
    size_t next = 0;
    for (const RowRun& run : it->second.runs) {
      const std::vector<RowOutput>& outputs = it->second.outputs;
      for (; next < outputs.size() && outputs[next].row < first_row + run.count; ++next) {
        if (outputs[next].kind != RowOutputKind::kSample) continue;
        RowResult& row = result->rows.emplace_back();
        row.sequence = run.sequence;
        row.position = run.first_position + outputs[next].row - first_row;
        row.token = kFirstToken + row.position % 1000;
        row.log_prob = -1;
      }
      first_row += run.count;
    }
    batches_.erase(it);
  }

  Answerer& answerer_;
  Observer* const observer_;
  const AttentionWorkerInfo info_;
  const Clock::duration step_;
  // Of the session's reads, which come one after the other.
  std::map<BatchId, NewBatch> batches_;
  Clock::time_point last_;  // step's answer
};

// One worker's membership, over a connection of its own, without threads of its own.
class StubMember : public grpc::ClientBidiReactor<v1::WorkerReport, v1::WorkerOrder> {
 public:
  StubMember(const std::string& registry, const v1::WorkerHello& hello, std::atomic<bool>* lost)
      : lost_(*lost),
        channel_(CreatePeerChannel({registry, nullptr})),
        stub_(v1::Registry::NewStub(channel_)) {
    constexpr int kCounters = 40;  // about as many as a worker reports
    v1::WorkerHeartbeat& heartbeat = *report_.mutable_heartbeat();
    heartbeat.set_ready(true);
    heartbeat.set_loaded(1);
    for (int i = 0; i < kCounters; ++i) {
      (*heartbeat.mutable_counters())[absl::StrCat("a_counter_of_a_worker_", i)] = i;
    }
    *hello_.mutable_hello() = hello;
    MutexLock lock(mutex_);
    writing_ = true;
    stub_->async()->Join(&context_, this);
    AddHold();  // for the heartbeats
    StartWrite(&hello_);
    StartRead(&order_);
    StartCall();
  }
  ~StubMember() override {
    MutexLock lock(mutex_);
    leaving_ = true;
    Break();
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return done_; });
  }

  // Says how it is, unless it is saying something.
  void Beat() {
    MutexLock lock(mutex_);
    if (!accepted_ || writing_ || broken_) return;
    writing_ = true;
    v1::WorkerHeartbeat& heartbeat = *report_.mutable_heartbeat();
    heartbeat.set_placement_epoch(placement_.epoch);
    heartbeat.set_placement_counter(placement_.counter);
    (*heartbeat.mutable_counters())["reports_total"] = ++reports_;
    StartWrite(&report_);
  }

  void OnWriteDone(bool) override {
    MutexLock lock(mutex_);
    writing_ = false;
  }
  void OnReadDone(bool ok) override {
    MutexLock lock(mutex_);
    if (!ok) return Break();
    if (order_.has_accepted()) accepted_ = true;
    // What is to be loaded or used is so from the next heartbeat on.
    if (order_.has_load()) placement_ = {order_.load().epoch(), order_.load().counter()};
    if (order_.has_use()) placement_ = {order_.use().epoch(), order_.use().counter()};
    if (!broken_) StartRead(&order_);
  }
  void OnDone(const grpc::Status& status) override {
    MutexLock lock(mutex_);
    done_ = true;
    if (!leaving_) {
      spdlog::error("a membership has ended: {}", status.error_message());
      lost_ = true;
    }
    changed_.NotifyAll();
  }

 private:
  void Break() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (std::exchange(broken_, true)) return;
    context_.TryCancel();
    RemoveHold();
  }

  std::atomic<bool>& lost_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Registry::Stub> stub_;
  grpc::ClientContext context_;
  v1::WorkerReport hello_;
  v1::WorkerReport report_;  // not changed while it is being written
  v1::WorkerOrder order_;

  Mutex mutex_;
  CondVar changed_;
  PlacementVersion placement_ ABSL_GUARDED_BY(mutex_);
  int64_t reports_ ABSL_GUARDED_BY(mutex_) = 0;
  bool accepted_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

absl::StatusOr<v1::GetModelResponse> AskForModel(const std::string& gateway) {
  const auto stub = v1::Inference::NewStub(CreatePeerChannel({gateway, nullptr}));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  v1::GetModelResponse model;
  TANDEM_RETURN_IF_ERROR(FromGrpc(stub->GetModel(&context, {}, &model)));
  return model;
}

absl::Status Run(const Options& options) {
  TANDEM_ASSIGN_OR_RETURN(const v1::GetModelResponse model, AskForModel(options.gateway));
  v1::WorkerHello hello;
  hello.set_digest(model.digest());
  hello.set_dtype(model.dtype());
  hello.set_numerics_class("none");
  hello.set_device("a stub");
  const AttentionWorkerInfo info{static_cast<int32_t>(model.num_layers()), options.pages,
                                 static_cast<int32_t>(model.vocab_size())};
  Answerer answerer;
  GrpcAttentionService service(
      [&](AttentionLink::Observer* observer) {
        return std::make_unique<StubLink>(&answerer, observer, info, options.step_ms);
      },
      GrpcAttentionServiceOptions{[digest = model.digest()] { return digest; }});
  // One server with a port for each attention worker.
  grpc::ServerBuilder builder;
  std::vector<int> ports(static_cast<size_t>(options.attention));
  for (int& port : ports) {
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  }
  const std::unique_ptr<grpc::Server> server =
      builder.RegisterService(service.service()).BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("no ports");
  std::atomic<bool> lost = false;  // a membership
  std::vector<std::unique_ptr<StubMember>> members;
  hello.set_kind(v1::WORKER_KIND_ATTENTION);
  for (const int port : ports) {
    hello.set_address(absl::StrCat("127.0.0.1:", port));
    hello.set_incarnation(members.size() + 1);
    members.push_back(std::make_unique<StubMember>(options.registry, hello, &lost));
  }
  hello.set_kind(v1::WORKER_KIND_EXPERT);
  hello.set_expert_capacity(1 << 20);
  for (int i = 0; i < options.experts; ++i) {
    hello.set_address(absl::StrCat("127.0.0.1:", i + 1));  // nobody dials it
    hello.set_incarnation(members.size() + 1);
    members.push_back(std::make_unique<StubMember>(options.registry, hello, &lost));
  }
  std::printf("%d attention and %d expert workers\n", options.attention, options.experts);
  std::fflush(stdout);
  size_t next = 0;
  Clock::time_point due = Clock::now();
  auto beats = std::make_unique<TimerThread>([&] {
    // One after the other; all that are due, where this thread has not had its turn.
    for (; due <= Clock::now(); due += kHeartbeat / members.size()) {
      members[next++ % members.size()]->Beat();
    }
    return due;
  });
  WaitForEnd([&] { return lost.load(); });
  beats.reset();
  members.clear();
  server->Shutdown(std::chrono::system_clock::now());
  return lost ? absl::UnavailableError("not all are members any more") : absl::OkStatus();
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  tandem::BlockEndSignals();
  tandem::CommandLine app("Joins a gateway as any number of workers that compute nothing.");
  tandem::Options options;
  app.AddOption("--gateway", options.gateway, "host:port").Required();
  app.AddOption("--registry", options.registry, "host:port").Required();
  app.AddOption("--attention", options.attention, "how many attention workers")
      .Range(1, 1024)
      .ShowDefault();
  app.AddOption("--experts", options.experts, "how many expert workers")
      .Range(0, 1024)
      .ShowDefault();
  app.AddOption("--step-ms", options.step_ms, "that a step takes an attention worker")
      .Range(0.0, 10'000.0)
      .ShowDefault();
  if (const auto code = app.Parse(argc, argv)) return *code;
  return tandem::ExitCode(tandem::Run(options));
}
