// Tokens per second of a whole deployment in this process: prompts alone, sequences that decode
// side by side, and one that decodes after a long prompt. Prompts are random token ids, none like
// another, so that a checkpoint needs no tokenizer and nothing is saved by what they share.
//
//   bench_engine --model DIR [--weights FORMAT] [--threads N]
//                [--prefill 512,2048] [--decode 1,4,16] [--context 16384]
//
// Without a choice of cases: --prefill 512,2048 --decode 1,4,16.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/mode.h"
#include "common/mutex.h"
#include "common/pages.h"
#include "common/status.h"
#include "common/transport/attention_link.h"
#include "deployment/embedded.h"
#include "gateway/step_driver.h"
#include "nlohmann/json.hpp"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;
using TokenTimes = std::vector<Clock::time_point>;

double Seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

// When each token of one job came.
class TokenClock final : public JobSink {
 public:
  void OnAdmitted() override {}
  void OnScored(const ScoredRow&, float, std::vector<float>) override {}
  void OnToken(int32_t, float) override {
    MutexLock lock(mutex_);
    times_.push_back(Clock::now());
  }
  void OnEnd(JobEnd, absl::Status status) override {
    MutexLock lock(mutex_);
    status_ = std::move(status);
    ended_ = true;
    changed_.NotifyAll();
  }

  // Once the job has ended.
  absl::StatusOr<TokenTimes> Wait() {
    MutexLock lock(mutex_);
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_; });
    if (!status_.ok()) return status_;
    return times_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  TokenTimes times_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

struct Options {
  EmbeddedOptions deployment;
  std::string dtype = "bf16";
  std::vector<int> prefill;  // prompts' lengths
  std::vector<int> decode;   // numbers of sequences
  std::vector<int> context;  // lengths of the prompt before one sequence decodes
  int prompt = 32;           // of each sequence of `decode`
  int tokens = 32;           // that a sequence decodes
  int repeat = 3;
  uint64_t seed = 1;
  int decode_groups = 0;
  bool json = false;
};

// `sequences` prompts of `prompt` tokens that start together and generate `tokens` each.
struct Case {
  int sequences = 1;
  int prompt = 0;
  int tokens = 1;
  int repeat = 1;
  int64_t cache_tokens() const { return sequences * kPageTokens * PagesFor(prompt + tokens); }
};

// In tokens per second, one of each run. A case of one token has no decode.
struct Rates {
  std::vector<double> prefill, decode;
};

// Of all sequences together, while all of them decode: from the last one's first token to the first
// one's last.
double DecodeRate(const std::vector<TokenTimes>& times) {
  Clock::time_point begin = times[0].front(), end = times[0].back();
  for (const TokenTimes& of_one : times) {
    begin = std::max(begin, of_one.front());
    end = std::min(end, of_one.back());
  }
  int64_t tokens = 0;
  for (const TokenTimes& of_one : times) {
    tokens += std::count_if(of_one.begin(), of_one.end(),
                            [&](Clock::time_point at) { return at > begin && at <= end; });
  }
  return tokens == 0 ? 0 : static_cast<double>(tokens) / Seconds(end - begin);
}

class Bench {
 public:
  explicit Bench(Options options) : options_(std::move(options)), random_(options_.seed) {}

  absl::Status Run() {
    const std::vector<Case> prefill = PrefillCases(), decode = DecodeCases();
    for (const std::vector<Case>& cases : {prefill, decode}) {
      for (const Case& c : cases) {
        options_.deployment.cache_tokens =
            std::max(options_.deployment.cache_tokens, c.cache_tokens());
      }
    }
    TANDEM_ASSIGN_OR_RETURN(options_.deployment.dtype, ParseMode(options_.dtype));
    SchedulerPolicy policy;
    policy.decode_groups = options_.decode_groups;
    StepDriver driver(policy);
    const auto start = Clock::now();
    TANDEM_ASSIGN_OR_RETURN(const auto deployment,
                            EmbeddedDeployment::Create(options_.deployment, &driver));
    load_s_ = Seconds(Clock::now() - start);
    config_ = &deployment->model().config;
    driver_ = &driver;
    Begin(deployment->Workers()[0].device());

    TANDEM_RETURN_IF_ERROR(Measure({1, 32, 2, 1}).status());  // threads and pages, once
    for (const Case& c : prefill) {
      TANDEM_ASSIGN_OR_RETURN(const Rates rates, Measure(c));
      Report(absl::StrCat("prefill ", c.prompt), rates.prefill);
    }
    for (const Case& c : decode) {
      TANDEM_ASSIGN_OR_RETURN(const Rates rates, Measure(c));
      if (c.prompt != options_.prompt) Report(absl::StrCat("prefill ", c.prompt), rates.prefill);
      Report(absl::StrCat("decode ", c.sequences, " after ", c.prompt), rates.decode);
    }
    End();
    return absl::OkStatus();
  }

 private:
  std::vector<Case> PrefillCases() const {
    std::vector<Case> cases;
    for (const int prompt : options_.prefill) cases.push_back({1, prompt, 1, options_.repeat});
    return cases;
  }
  std::vector<Case> DecodeCases() const {
    std::vector<Case> cases;
    for (const int sequences : options_.decode) {
      cases.push_back({sequences, options_.prompt, options_.tokens, options_.repeat});
    }
    // Once: such a prompt takes minutes.
    for (const int prompt : options_.context) cases.push_back({1, prompt, options_.tokens, 1});
    return cases;
  }

  Job RandomJob(const Case& c) {
    Job job;
    std::uniform_int_distribution<int32_t> id(0, config_->vocab_size - 1);
    for (int i = 0; i < c.prompt; ++i) job.prompt.push_back(id(random_));
    job.expanded_length = SequenceSpec::ExpandedLength(c.prompt);
    job.max_new_tokens = c.tokens;
    return job;
  }

  absl::StatusOr<Rates> Measure(const Case& c) {
    if (c.prompt + c.tokens > config_->max_position_embeddings) {
      return absl::InvalidArgumentError(
          absl::StrCat(c.prompt, " and ", c.tokens, " tokens are more than the model's context of ",
                       config_->max_position_embeddings));
    }
    Rates rates;
    for (int run = 0; run < c.repeat; ++run) {
      std::vector<Job> jobs;
      for (int i = 0; i < c.sequences; ++i) jobs.push_back(RandomJob(c));
      std::vector<std::shared_ptr<TokenClock>> clocks;
      const auto start = Clock::now();
      for (Job& job : jobs) {
        clocks.push_back(std::make_shared<TokenClock>());
        TANDEM_RETURN_IF_ERROR(driver_->Submit(std::move(job), clocks.back()).status());
      }
      std::vector<TokenTimes> times;
      for (const auto& clock : clocks) {
        TANDEM_ASSIGN_OR_RETURN(times.emplace_back(), clock->Wait());
      }
      rates.prefill.push_back(c.prompt / Seconds(times[0].front() - start));
      if (c.tokens > 1) rates.decode.push_back(DecodeRate(times));
    }
    std::sort(rates.prefill.begin(), rates.prefill.end());
    std::sort(rates.decode.begin(), rates.decode.end());
    return rates;
  }

  static double PeakRssBytes() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) * 1024;
  }

  void Begin(const std::string& device) {
    const std::string weights = WeightsName();
    json_ = {{"model", options_.deployment.model_dir},
             {"device", device},
             {"dtype", options_.dtype},
             {"weights", weights},
             {"layers", config_->num_layers},
             {"load_s", load_s_},
             {"rates", nlohmann::json::array()}};
    if (options_.json) return;
    std::printf("%s, %d layers, %s with %s weights; %s\n", options_.deployment.model_dir.c_str(),
                config_->num_layers, options_.dtype.c_str(), weights.c_str(), device.c_str());
    std::printf("loaded in %.2f s, peak RSS %.3f GB\n", load_s_, PeakRssBytes() * 1e-9);
    std::printf("%-24s %9s %9s  tokens/s\n", "", "best", "median");
    std::fflush(stdout);
  }
  void Report(const std::string& name, const std::vector<double>& rates) {
    const double best = rates.back(), median = rates[rates.size() / 2];
    json_["rates"].push_back({{"case", name}, {"best", best}, {"median", median}});
    if (options_.json) return;
    std::printf("%-24s %9.2f %9.2f\n", name.c_str(), best, median);
    std::fflush(stdout);
  }
  void End() {
    json_["peak_rss_bytes"] = PeakRssBytes();
    if (options_.json) {
      std::cout << json_.dump() << "\n";
    } else {
      std::printf("peak RSS %.3f GB\n", PeakRssBytes() * 1e-9);
    }
  }
  std::string WeightsName() const {
    const std::string& weights = options_.deployment.backend.weights;
    return weights.empty() ? options_.dtype : weights;
  }

  Options options_;
  std::mt19937_64 random_;
  StepDriver* driver_ = nullptr;
  const ModelConfig* config_ = nullptr;
  double load_s_ = 0;
  nlohmann::json json_;
};

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("bench_engine"));
  spdlog::set_level(spdlog::level::warn);
  CLI::App app("Times prompts and decoding of a deployment in this process.");
  tandem::Options options;
  options.deployment.cache_tokens = 0;  // as much as the cases need
  const CLI::Range lengths(1, 1 << 20), counts(1, 1024);
  app.add_option("--model", options.deployment.model_dir, "checkpoint folder")->required();
  app.add_option("--dtype", options.dtype, "mode: f32 or bf16")->capture_default_str();
  options.deployment.backend.AddTo(app);
  app.add_option("--prefill", options.prefill, "lengths of prompts, each alone")
      ->delimiter(',')
      ->check(lengths);
  app.add_option("--decode", options.decode, "numbers of sequences that decode at once")
      ->delimiter(',')
      ->check(CLI::Range(1, 64));
  app.add_option("--context", options.context, "lengths of a prompt after which one decodes; once")
      ->delimiter(',')
      ->check(lengths);
  app.add_option("--prompt", options.prompt, "tokens of a prompt of --decode")
      ->check(lengths)
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "that each sequence decodes")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--repeat", options.repeat, "runs of each case")
      ->check(counts)
      ->capture_default_str();
  app.add_option("--decode-groups", options.decode_groups, "as of tandem-gateway")
      ->check(CLI::Range(0, 2))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the prompts")->capture_default_str();
  app.add_flag("--json", options.json, "print JSON");
  CLI11_PARSE(app, argc, argv);
  if (options.prefill.empty() && options.decode.empty() && options.context.empty()) {
    options.prefill = {512, 2048};
    options.decode = {1, 4, 16};
  }
  const absl::Status status = tandem::Bench(std::move(options)).Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "bench_engine: %s\n", std::string(status.message()).c_str());
  return 1;
}
