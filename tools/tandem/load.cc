#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "common/status.h"
#include "interrupt.h"
#include "io.h"
#include "load_report.h"
#include "tools/workload/lengths.h"

namespace tandem::tool {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  ConnectOptions connect;
  double rate = 0;
  int streams = 16;
  int requests = 200;
  int warm_up = -1;
  int max_live = 2048;
  std::string prompt = "fixed:128";
  std::string output = "fixed:64";
  uint32_t shared_prefix = 0;
  uint64_t seed = 1;
};

// Sends requests and takes their answers, any number at a time, on gRPC's threads.
class LoadRun {
 public:
  LoadRun(Client* client, const Options& options, const LengthDistribution& prompt,
          const LengthDistribution& output, uint32_t vocabulary)
      : client_(*client),
        options_(options),
        prompt_(prompt),
        output_(output),
        vocabulary_(vocabulary),
        random_(options.seed),
        begin_(Clock::now()) {
    records_.resize(static_cast<size_t>(options.warm_up) + options.requests);
    for (uint32_t i = 0; i < options.shared_prefix; ++i) prefix_.push_back(DrawId());
  }
  LoadRun(const LoadRun&) = delete;

  // Returns when all that was sent is answered, or failed.
  void Run() {
    InterruptScope interrupt([this] { Stop(); });
    if (options_.rate > 0) {
      SendByTime();
    } else {
      for (int stream = 0; stream < options_.streams; ++stream) SendNext();
    }
    MutexLock lock(mutex_);
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return num_live_ == 0; });
    records_.resize(next_);
  }

  const std::vector<LoadRecord>& records() const { return records_; }

 private:
  // One request. Lives until LoadRun::OnDone.
  class Call : public grpc::ClientReadReactor<v1::GenerateResponse> {
   public:
    Call(LoadRun* run, LoadRecord* record, v1::GenerateRequest request)
        : run_(*run),
          record_(*record),
          request_(std::move(request)),
          context_(run->client_.NewContext()) {}
    void Start() {
      run_.client_.stub().async()->Generate(context_.get(), &request_, this);
      StartRead(&response_);
      StartCall();
    }
    void Cancel() { context_->TryCancel(); }
    void OnReadDone(bool ok) override {
      if (!ok) return;
      record_.Take(response_, run_.Now());
      StartRead(&response_);
    }
    void OnDone(const grpc::Status& status) override {
      record_.status = run_.client_.Explain(status);
      record_.end_s = run_.Now();
      run_.OnDone(this);  // deletes it
    }

   private:
    LoadRun& run_;
    LoadRecord& record_;
    const v1::GenerateRequest request_;
    const std::unique_ptr<grpc::ClientContext> context_;
    v1::GenerateResponse response_;
  };

  double Now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  int32_t DrawId() { return static_cast<int32_t>(DrawUniform(random_) * vocabulary_); }

  // An open loop: each is due at a time of its own, however late the answers are. Beyond max_live a
  // request waits to be sent, which counts as its waiting.
  void SendByTime() {
    double due = 0;
    for (size_t i = 0; i < records_.size(); ++i) {
      {
        MutexLock lock(mutex_);
        due += DrawInterval(random_, options_.rate);
        const auto until = begin_ + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(due));
        changed_.WaitUntil(lock, until,
                           [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopped_; });
        changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return stopped_ || num_live_ < options_.max_live;
        });
      }
      Send(due);
    }
  }

  void SendNext() { Send(Now()); }

  void Send(double due_s) {
    Call* call = nullptr;
    {
      MutexLock lock(mutex_);
      if (stopped_ || next_ == records_.size()) return;
      LoadRecord& record = records_[next_];
      record.measured = next_ >= static_cast<size_t>(options_.warm_up);
      record.due_s = due_s;
      ++next_;
      v1::GenerateRequest request;
      const int64_t prompt_tokens = prompt_.Draw(random_);
      auto& ids = *request.mutable_token_ids()->mutable_ids();
      const int64_t shared = std::min<int64_t>(prompt_tokens, options_.shared_prefix);
      ids.Add(prefix_.begin(), prefix_.begin() + shared);
      while (ids.size() < prompt_tokens) ids.Add(DrawId());
      record.prompt_tokens = static_cast<uint32_t>(prompt_tokens);
      record.max_tokens = static_cast<uint32_t>(output_.Draw(random_));
      request.set_max_tokens(record.max_tokens);
      request.set_ignore_eos(true);
      request.mutable_sampling()->set_temperature(0);
      call = new Call(this, &record, std::move(request));
      live_.insert(call);
      ++num_live_;
    }
    call->Start();
  }

  void OnDone(Call* call) {
    if (options_.rate == 0) SendNext();
    {
      MutexLock lock(mutex_);
      live_.erase(call);  // so that nobody cancels it any more
    }
    delete call;
    MutexLock lock(mutex_);
    --num_live_;
    changed_.NotifyAll();
  }

  void Stop() {
    MutexLock lock(mutex_);
    stopped_ = true;
    for (Call* call : live_) call->Cancel();
    changed_.NotifyAll();
  }

  Client& client_;
  const Options& options_;
  const LengthDistribution prompt_;
  const LengthDistribution output_;
  const double vocabulary_;
  std::vector<int32_t> prefix_;
  Mutex mutex_;
  CondVar changed_;
  WorkloadRandom random_;
  std::vector<LoadRecord> records_;  // each its call's while that is live
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<Call*> live_ ABSL_GUARDED_BY(mutex_);
  int num_live_ ABSL_GUARDED_BY(mutex_) = 0;  // not deleted yet
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  const Clock::time_point begin_;
};

absl::Status Run(Options options) {
  TANDEM_ASSIGN_OR_RETURN(const LengthDistribution prompt,
                          LengthDistribution::Parse(options.prompt));
  TANDEM_ASSIGN_OR_RETURN(const LengthDistribution output,
                          LengthDistribution::Parse(options.output));
  if (options.warm_up < 0)
    options.warm_up = options.rate > 0 ? options.requests / 10 : options.streams;
  options.connect.max_running = std::max(options.streams, 64);
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));
  v1::GetModelResponse model;
  const auto context = client->NewContext();
  TANDEM_RETURN_IF_ERROR(client->Explain(client->stub().GetModel(context.get(), {}, &model)));
  LoadRun run(client.get(), options, prompt, output, model.vocab_size());
  run.Run();
  const LoadReport report = Report(run.records());
  std::cout << (options.connect.json ? Dump(ToJson(report)) + "\n" : ToText(report)) << std::flush;
  if (report.failed == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(report.failed, " of ", report.sent,
                                          " requests failed or were not answered whole"));
}

}  // namespace

Command AddLoad(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand(
      "load", "sends many requests, measures their times, and checks that each answer is whole");
  const Option streams =
      app->AddOption("--streams", options->streams,
                     "closed loop: so many at once, each the next one as it ends")
          .Range(1, 65536)
          .ShowDefault();
  app->AddOption("--rate", options->rate, "instead: requests per second, a Poisson process")
      .Range(0.001, 1e6)
      .Excludes(streams);
  app->AddOption("--requests", options->requests, "that are measured")
      .Range(1, 10'000'000)
      .ShowDefault();
  app->AddOption("--warm-up", options->warm_up,
                 "requests before them; default: one per stream, with --rate a tenth")
      .Range(0, 10'000'000);
  app->AddOption("--max-live", options->max_live, "with --rate: that are out at once at most")
      .Range(1, 65536)
      .ShowDefault();
  app->AddOption("--prompt", options->prompt,
                 "tokens of a prompt, random ids: N, uniform:LOW:HIGH, exponential:MEAN or "
                 "lognormal:MEDIAN:SIGMA[:MAX]")
      .ShowDefault();
  app->AddOption("--output", options->output, "tokens of an answer, likewise").ShowDefault();
  app->AddOption("--shared-prefix", options->shared_prefix,
                 "tokens with which all prompts begin, as far as they are so long")
      .Range(0, 1 << 20)
      .ShowDefault();
  app->AddOption("--seed", options->seed, "of lengths, ids and times").ShowDefault();
  options->connect.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
