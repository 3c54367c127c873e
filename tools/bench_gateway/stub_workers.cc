// Workers that compute nothing, any number of them in this process: they join a real gateway over
// real sockets, report, take placements as loaded at once, and answer steps. For bench_gateway.py.
//
//   stub_workers --gateway HOST:PORT --registry HOST:PORT --attention 64 --experts 256
#include <grpcpp/grpcpp.h>

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
#include "common/service/grpc_status.h"
#include "common/service/registry_client.h"
#include "common/service/service_host.h"
#include "common/status.h"
#include "common/transport/attention_link.h"
#include "common/transport/grpc_attention_service.h"
#include "common/transport/grpc_peer.h"
#include "proto/inference.grpc.pb.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string gateway;
  std::string registry;
  int attention = 1;
  int experts = 1;
  double step_ms = 0;
  int pages = 1 << 20;
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
    {
      MutexLock lock(mutex_);
      waiting_.emplace(when, Answer{observer, std::move(result)});
    }
    changed_.NotifyAll();
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
      if (waiting_.empty()) {
        changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return ended_ || !waiting_.empty();
        });
        continue;
      }
      const auto first = waiting_.begin();
      if (first->first > Clock::now()) {
        const Clock::time_point until = first->first;
        changed_.WaitUntil(lock, until, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return ended_ || (!waiting_.empty() && waiting_.begin()->first < until);
        });
        continue;
      }
      Answer answer = std::move(first->second);
      waiting_.erase(first);
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
    MutexLock lock(mutex_);
    for (NewBatch& batch : step.new_batches) batches_[batch.batch] = std::move(batch);
    for (const Advance& advance : step.advance) {
      result.batches.push_back({advance.batch, advance.end_layer});
      if (advance.end_layer == info_.num_layers) AddRows(advance.batch, &result);
    }
    last_ = std::max(last_, Clock::now()) + step_;
    result.busy_us = std::chrono::duration_cast<std::chrono::microseconds>(step_).count();
    answerer_.Add(last_, observer_, std::move(result));
  }

 private:
  static constexpr int32_t kFirstToken = 1000;  // of which none ends a sequence

  void AddRows(BatchId id, StepResult* result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
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
  Mutex mutex_;
  std::map<BatchId, NewBatch> batches_ ABSL_GUARDED_BY(mutex_);
  Clock::time_point last_ ABSL_GUARDED_BY(mutex_);  // step's answer
};

// One worker's membership.
class StubMember {
 public:
  StubMember(const std::string& registry, const v1::WorkerHello& hello) : hello_(hello) {
    RegistryClient::Callbacks callbacks;
    callbacks.hello = [this] { return hello_; };
    callbacks.health = [this] { return Health(); };
    callbacks.on_accepted = [](WorkerId, uint64_t) {};
    callbacks.on_lost = [] {};
    callbacks.on_drain = [] {};
    callbacks.on_released = [] {};
    callbacks.on_load = [this](const Placement& placement) { Take(placement); };
    callbacks.on_use = [this](const Placement& placement) {
      if (hello_.kind() == v1::WORKER_KIND_ATTENTION) Take(placement);
    };
    callbacks.on_refused = [](const absl::Status& status) {
      spdlog::error("{}", std::string(status.message()));
    };
    client_ = std::make_unique<RegistryClient>(registry, std::move(callbacks));
  }

 private:
  static constexpr int kCounters = 40;  // about as many as a worker reports

  WorkerHealth Health() {
    WorkerHealth health;
    health.ready = true;
    health.loaded = 1;
    for (int i = 0; i < kCounters; ++i) {
      health.counters.emplace_back(absl::StrCat("a_counter_of_a_worker_", i), ++told_);
    }
    MutexLock lock(mutex_);
    health.placement = placement_;
    return health;
  }
  void Take(const Placement& placement) {
    {
      MutexLock lock(mutex_);
      placement_ = placement.version;
    }
    if (client_ != nullptr) client_->ReportNow();
  }

  const v1::WorkerHello hello_;
  int64_t told_ = 0;  // of the thread that asks for the health
  Mutex mutex_;
  PlacementVersion placement_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<RegistryClient> client_;
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
  std::vector<std::unique_ptr<GrpcAttentionService>> services;
  std::vector<std::unique_ptr<ServiceHost>> hosts;
  std::vector<std::unique_ptr<StubMember>> members;
  for (int i = 0; i < options.attention; ++i) {
    services.push_back(std::make_unique<GrpcAttentionService>(
        [&](AttentionLink::Observer* observer) {
          return std::make_unique<StubLink>(&answerer, observer, info, options.step_ms);
        },
        GrpcAttentionServiceOptions{[digest = model.digest()] { return digest; }}));
    TANDEM_ASSIGN_OR_RETURN(auto host, ServiceHost::Start({"127.0.0.1:0", "", false},
                                                          {services.back()->service()}, {}));
    hello.set_kind(v1::WORKER_KIND_ATTENTION);
    hello.set_address(host->address());
    hello.set_incarnation(static_cast<uint64_t>(i) + 1);
    hosts.push_back(std::move(host));
    members.push_back(std::make_unique<StubMember>(options.registry, hello));
  }
  for (int i = 0; i < options.experts; ++i) {
    hello.set_kind(v1::WORKER_KIND_EXPERT);
    hello.set_address(absl::StrCat("127.0.0.1:", i + 1));  // nobody dials it
    hello.set_incarnation(static_cast<uint64_t>(options.attention + i) + 1);
    hello.set_expert_capacity(1 << 20);
    members.push_back(std::make_unique<StubMember>(options.registry, hello));
  }
  std::printf("%d attention and %d expert workers\n", options.attention, options.experts);
  std::fflush(stdout);
  WaitForEnd([] { return false; });
  members.clear();
  for (const auto& host : hosts) host->Shutdown(absl::ZeroDuration());
  return absl::OkStatus();
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
