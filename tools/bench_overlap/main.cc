// What it gives to run one group of sequences' attention while the other's experts are away.
//
// A real deployment over a real socket, in which attention and the one expert worker are slowed as
// asked, so that the gain can be seen without a second machine: attention sleeps on the engine's
// thread, the expert worker before it computes, one request after the other.
//
//   bench_overlap --model DIR [--layer-ms 20] [--sequences 8] [--tokens 24]
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention_worker/dispatched_experts.h"
#include "attention_worker/routed_experts.h"
#include "common/checkpoint/checkpoint.h"
#include "common/command_line.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/grpc_expert_link.h"
#include "common/transport/grpc_expert_service.h"
#include "deployment/backend.h"
#include "deployment/load_attention.h"
#include "expert_worker/engine.h"
#include "expert_worker/loaded_experts.h"
#include "gateway/placement_planner.h"
#include "gateway/step_driver.h"

namespace tandem {
namespace {

// How long `rows` rows of one layer take.
struct Slowness {
  double fixed_ms = 0;
  double per_row_ms = 0;
  std::chrono::duration<double, std::milli> Of(int64_t rows) const {
    return std::chrono::duration<double, std::milli>(fixed_ms +
                                                     per_row_ms * static_cast<double>(rows));
  }
};

// An expert worker that takes its time, for one request after the other.
class SlowExperts final : public ExpertLink {
 public:
  SlowExperts(ExpertLink* inner, Slowness slowness)
      : inner_(*inner), slowness_(slowness), thread_([this] { Run(); }) {}
  ~SlowExperts() override {
    {
      MutexLock lock(mutex_);
      ended_ = true;
    }
    wake_.NotifyOne();
    thread_.join();
  }
  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
    {
      MutexLock lock(mutex_);
      waiting_.emplace_back(std::move(request), std::move(done));
    }
    wake_.NotifyOne();
  }

 private:
  void Run() {
    while (true) {
      std::pair<std::shared_ptr<const ExpertRequest>, Done> next;
      {
        MutexLock lock(mutex_);
        wake_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return ended_ || !waiting_.empty();
        });
        if (waiting_.empty()) return;
        next = std::move(waiting_.front());
        waiting_.pop_front();
      }
      std::this_thread::sleep_for(slowness_.Of(next.first->num_rows()));
      inner_.Send(std::move(next.first), std::move(next.second));
    }
  }

  ExpertLink& inner_;
  const Slowness slowness_;
  Mutex mutex_;
  CondVar wake_;
  std::deque<std::pair<std::shared_ptr<const ExpertRequest>, Done>> waiting_
      ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Attention that takes its time before each layer's experts.
class SlowAttention final : public RoutedExperts {
 public:
  SlowAttention(RoutedExperts* inner, Slowness slowness) : inner_(*inner), slowness_(slowness) {}
  std::unique_ptr<Pending> Begin(const ExpertBatch& batch, std::function<void()> changed) override {
    std::this_thread::sleep_for(slowness_.Of(batch.rows.dim(0)));
    return inner_.Begin(batch, std::move(changed));
  }
  CounterSnapshot Counters() const override { return inner_.Counters(); }

 private:
  RoutedExperts& inner_;
  const Slowness slowness_;
};

// Tokens of all jobs together, and when the first and the last of them came.
class Tally final : public JobSink {
 public:
  void OnAdmitted(int32_t) override {}
  void OnScored(const ScoredRow&, float, std::vector<float>) override {}
  void OnToken(const DrawnToken&) override {
    std::lock_guard<std::mutex> lock(mutex_);
    last_ = std::chrono::steady_clock::now();
    if (tokens_++ == 0) first_ = last_;
  }
  void OnEnd(JobEnd, absl::Status status) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!status.ok()) status_ = status;
    ++ended_;
    changed_.notify_all();
  }

  // Calls `sample` every few milliseconds until all jobs have ended.
  absl::Status Wait(int jobs, const std::function<void()>& sample) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!changed_.wait_for(lock, std::chrono::milliseconds(5), [&] { return ended_ == jobs; })) {
      sample();
    }
    return status_;
  }
  double TokensPerSecond() {
    std::lock_guard<std::mutex> lock(mutex_);
    return (tokens_ - 1) / std::chrono::duration<double>(last_ - first_).count();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::chrono::steady_clock::time_point first_, last_;
  int tokens_ = 0;
  int ended_ = 0;
  absl::Status status_;
};

struct Options {
  std::string model_dir;
  double layer_ms = 20;
  int sequences = 8;
  int tokens = 24;
};

struct Case {
  const char* name;
  Slowness attention;
  Slowness experts;
  int groups;  // SchedulerPolicy::decode_groups
  int sequences;
  int tokens;
};

class Bench {
 public:
  explicit Bench(Options options) : options_(std::move(options)) {}

  absl::Status Run() {
    TANDEM_ASSIGN_OR_RETURN(backend_, MakeBackend({}));
    TANDEM_ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(options_.model_dir));
    TANDEM_ASSIGN_OR_RETURN(
        experts_, LoadedExperts::Create(checkpoint_.get(), backend_.get(), WeightFormat::kBF16));
    placement_ = PlacementOfOne(checkpoint_->config(), {kExpertWorker, ""}, {1, 1});
    TANDEM_RETURN_IF_ERROR(experts_->Load(placement_, kExpertWorker, nullptr));

    const Slowness fixed{options_.layer_ms, 0};
    const int n = options_.sequences;
    const Slowness by_row{0, options_.layer_ms / (2 * n)};
    const int t = options_.tokens;
    std::printf("%-58s %6s %9s %10s\n", "case", "seqs", "tokens/s", "two groups");
    TANDEM_ASSIGN_OR_RETURN(const double one, Measure({"a step's layer costs the same: one group",
                                                       fixed, fixed, 1, n, t}));
    TANDEM_ASSIGN_OR_RETURN(const double two, Measure({"the same, two groups of as many sequences",
                                                       fixed, fixed, 2, 2 * n, t}));
    std::printf("  two groups give %.2f times one group's throughput\n", two / one);
    TANDEM_ASSIGN_OR_RETURN(const double rows_one, Measure({"a row costs the same: one group",
                                                            by_row, by_row, 1, 2 * n, t}));
    TANDEM_ASSIGN_OR_RETURN(const double rows_two, Measure({"the same sequences in two groups",
                                                            by_row, by_row, 2, 2 * n, t}));
    std::printf("  two groups give %.2f times one group's throughput\n", rows_two / rows_one);
    TANDEM_RETURN_IF_ERROR(
        Measure({"the same, as the scheduler chooses", by_row, by_row, 0, 2 * n, 8 * t}).status());
    TANDEM_RETURN_IF_ERROR(
        Measure({"nothing slowed, as the scheduler chooses", {}, {}, 0, 2 * n, 40 * t}).status());
    return absl::OkStatus();
  }

 private:
  static constexpr WorkerId kExpertWorker = 2;

  absl::StatusOr<double> Measure(const Case& c) {
    ExpertEngine engine(backend_.get(), &checkpoint_->config(), experts_.get(), {});
    SlowExperts slow(&engine, c.experts);
    GrpcExpertService service(&slow);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service.service());
    const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    if (server == nullptr) return absl::InternalError("no port is free on this machine");
    const std::string address = absl::StrCat("127.0.0.1:", port);

    ExpertDispatcher dispatcher(1, {}, [&](const Placement::Worker&) {
      return std::make_shared<GrpcExpertLink>(GrpcPeer{address, nullptr});
    });
    dispatcher.SetPlacement(placement_);
    DispatchedExperts dispatched(backend_.get(), checkpoint_->config().experts_per_token,
                                 &dispatcher);
    SlowAttention attention(&dispatched, c.attention);
    TANDEM_ASSIGN_OR_RETURN(const LoadedAttention worker,
                            LoadAttention({backend_.get(), checkpoint_.get(), nullptr, &attention,
                                           Dtype::kBF16, WeightFormat::kBF16, 64 * 1024},
                                          [](float) {}));
    SchedulerPolicy policy;
    policy.decode_groups = c.groups;
    const auto tally = std::make_shared<Tally>();
    StepDriver driver(policy);
    TANDEM_RETURN_IF_ERROR(driver.AddWorker(
        1,
        [&](AttentionLink::Observer* observer) -> absl::StatusOr<std::unique_ptr<AttentionLink>> {
          return worker.engine->Connect(observer);
        }));
    for (int i = 0; i < c.sequences; ++i) {
      Job job;
      job.prompt = {1, 2, i + 3};
      job.max_new_tokens = c.tokens;
      TANDEM_RETURN_IF_ERROR(driver.Submit(std::move(job), tally).status());
    }
    int samples = 0, with_two = 0;
    TANDEM_RETURN_IF_ERROR(tally->Wait(c.sequences, [&] {
      for (const auto& [name, value] : driver.Counters()) {
        if (name != "decode_groups") continue;
        ++samples;
        with_two += value == 2 ? 1 : 0;
      }
    }));
    driver.RemoveWorker(1);
    server->Shutdown(std::chrono::system_clock::now());
    const double rate = tally->TokensPerSecond();
    std::printf("%-58s %6d %9.1f %9.0f%%\n", c.name, c.sequences, rate,
                100.0 * with_two / std::max(samples, 1));
    return rate;
  }

  const Options options_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<LoadedExperts> experts_;
  Placement placement_;
};

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  tandem::CommandLine app(
      "Times decoding in one and in two groups beside slowed attention and experts.");
  tandem::Options options;
  app.AddOption("--model", options.model_dir, "checkpoint folder").Required();
  app.AddOption("--layer-ms", options.layer_ms, "what attention, and what experts take per layer")
      .Range(0.0, 1000.0)
      .ShowDefault();
  app.AddOption("--sequences", options.sequences, "in a group").Range(1, 30).ShowDefault();
  app.AddOption("--tokens", options.tokens, "per sequence").Range(2, 100).ShowDefault();
  if (const auto code = app.Parse(argc, argv)) return *code;
  const absl::Status status = tandem::Bench(options).Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}
