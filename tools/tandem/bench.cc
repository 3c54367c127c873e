#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench_ceilings.h"
#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/status.h"
#include "io.h"

namespace tandem::tool {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  ConnectOptions connect;
  bool ceilings = false;
  std::vector<uint32_t> prefill = {512, 2048};
  std::vector<uint32_t> batch = {1, 4, 16};
  uint32_t context = 32;
  uint32_t tokens = 48;
  int repeat = 3;
  uint64_t seed = 1;
};

// A request of random ids, of which no two are alike, that ends by its length alone.
class Requests {
 public:
  Requests(uint32_t vocabulary, uint64_t seed) : ids_(0, vocabulary - 1), random_(seed) {}
  v1::GenerateRequest Next(uint32_t prompt_tokens, uint32_t max_tokens) {
    v1::GenerateRequest request;
    for (uint32_t i = 0; i < prompt_tokens; ++i) {
      request.mutable_token_ids()->add_ids(static_cast<int32_t>(ids_(random_)));
    }
    request.mutable_sampling()->set_temperature(0);
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    return request;
  }

 private:
  std::uniform_int_distribution<uint32_t> ids_;
  std::mt19937_64 random_;
};

// When each token of an answer came.
absl::StatusOr<std::vector<Clock::time_point>> TokenTimes(Client& client,
                                                          const v1::GenerateRequest& request) {
  const auto context = client.NewContext();
  const auto reader = client.stub().Generate(context.get(), request);
  std::vector<Clock::time_point> times;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    times.insert(times.end(), response.chunk().token_ids_size(), Clock::now());
  }
  TANDEM_RETURN_IF_ERROR(client.Explain(reader->Finish()));
  if (times.size() == request.max_tokens()) return times;
  return absl::InternalError(
      absl::StrCat("asked for ", request.max_tokens(), " tokens, got ", times.size()));
}

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

absl::StatusOr<double> PrefillRate(Client& client, Requests& requests, uint32_t tokens) {
  const v1::GenerateRequest request = requests.Next(tokens, 1);
  const auto begin = Clock::now();
  TANDEM_ASSIGN_OR_RETURN(const auto times, TokenTimes(client, request));
  return tokens / Seconds(times.front() - begin);
}

// Of all streams together, while all of them are decoding: from the last one's first token to the
// first one's last.
absl::StatusOr<double> DecodeRate(Client& client, Requests& requests, uint32_t streams,
                                  const Options& options) {
  std::vector<absl::StatusOr<std::vector<Clock::time_point>>> answers(streams);
  std::vector<std::thread> threads;
  // They begin one after the other: some more tokens than what is measured.
  const uint32_t tokens = options.tokens + (streams == 1 ? 0 : 2 * streams);
  threads.reserve(streams);
  for (auto& answer : answers) {
    threads.emplace_back([&client, &answer, request = requests.Next(options.context, tokens)] {
      answer = TokenTimes(client, request);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Clock::time_point begin = Clock::time_point::min(), end = Clock::time_point::max();
  for (const auto& answer : answers) {
    TANDEM_RETURN_IF_ERROR(answer.status());
    begin = std::max(begin, answer->front());
    end = std::min(end, answer->back());
  }
  int64_t decoded = 0;
  for (const auto& answer : answers) {
    decoded += std::count_if(answer->begin(), answer->end(),
                             [&](Clock::time_point at) { return at > begin && at <= end; });
  }
  if (decoded == 0) return absl::FailedPreconditionError("no time in which all streams decode");
  return static_cast<double>(decoded) / Seconds(end - begin);
}

struct Figure {
  std::string name;
  std::vector<double> rates;  // sorted
};

// Runs `measure` as often as asked, after once that does not count.
template <typename Fn>
absl::Status Measure(const Options& options, std::string name, std::vector<Figure>& figures,
                     Fn measure) {
  Figure figure{std::move(name), {}};
  for (int i = 0; i <= options.repeat; ++i) {
    TANDEM_ASSIGN_OR_RETURN(const double rate, measure());
    if (i > 0) figure.rates.push_back(rate);
  }
  std::sort(figure.rates.begin(), figure.rates.end());
  figures.push_back(std::move(figure));
  return absl::OkStatus();
}

void Print(const std::vector<Figure>& figures, bool json) {
  nlohmann::json all = nlohmann::json::array();
  for (const Figure& figure : figures) {
    const double best = figure.rates.back();
    const double median = figure.rates[figure.rates.size() / 2];
    if (json) {
      all.push_back({{"what", figure.name}, {"best", best}, {"median", median}});
    } else {
      std::cout << absl::StrFormat("%-34s best %8.1f  median %8.1f tokens/s\n", figure.name, best,
                                   median);
    }
  }
  if (json) std::cout << Dump(all) << "\n";
  std::cout << std::flush;
}

// Returns when no worker has weights left that it moves into huge pages while it has nothing to do,
// or after a minute.
absl::Status WaitForMovedWeights(Client& client) {
  const auto deadline = Clock::now() + std::chrono::minutes(1);
  int64_t waiting = 0;
  bool said = false;
  do {
    TANDEM_ASSIGN_OR_RETURN(const v1::GetStatusResponse status, client.GetStatus());
    waiting = 0;
    for (const auto& worker : status.workers()) {
      const auto bytes = worker.counters().find("packed_waiting_bytes");
      if (bytes != worker.counters().end()) waiting += bytes->second;
    }
    if (waiting > 0 && !said) std::cerr << "weights move into huge pages first\n";
    said = said || waiting > 0;
    if (waiting > 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  } while (waiting > 0 && Clock::now() < deadline);
  if (waiting > 0) std::cerr << "some are still in small pages: the figures are lower\n";
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  if (options.ceilings) return BenchCeilings(options.connect.backend.threads, options.connect.json);
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));
  if (options.connect.made_up_weights) {
    TANDEM_ASSIGN_OR_RETURN(const v1::GetStatusResponse status, client->GetStatus());
    std::cerr << "bench: " << status.detail() << "\n";
  }
  v1::GetModelResponse model;
  const auto context = client->NewContext();
  TANDEM_RETURN_IF_ERROR(client->Explain(client->stub().GetModel(context.get(), {}, &model)));
  TANDEM_RETURN_IF_ERROR(WaitForMovedWeights(*client));
  Requests requests(model.vocab_size(), options.seed);
  std::vector<Figure> figures;
  for (const uint32_t tokens : options.prefill) {
    TANDEM_RETURN_IF_ERROR(Measure(options, absl::StrCat("prefill ", tokens), figures,
                                   [&] { return PrefillRate(*client, requests, tokens); }));
  }
  for (const uint32_t streams : options.batch) {
    TANDEM_RETURN_IF_ERROR(
        Measure(options, absl::StrCat("decode, ", streams, " after ", options.context, " tokens"),
                figures, [&] { return DecodeRate(*client, requests, streams, options); }));
  }
  Print(figures, options.connect.json);
  return absl::OkStatus();
}

}  // namespace

Command AddBench(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand(
      "bench", "measures tokens per second: prompts of some lengths, and some streams at once");
  app->AddFlag("--ceilings", options->ceilings,
               "instead: how fast this machine reads memory, and the peak of each instruction set");
  app->AddOption("--prefill", options->prefill, "prompt lengths, each alone; 0 for none")
      .SeparatedBy(',')
      .ShowDefault();
  app->AddOption("--batch", options->batch, "streams that decode at once; 0 for none")
      .SeparatedBy(',')
      .ShowDefault();
  app->AddOption("--context", options->context, "prompt tokens of a stream that decodes")
      .Range(1, 1 << 20)
      .ShowDefault();
  app->AddOption("--tokens", options->tokens, "tokens that a stream decodes")
      .Range(2, 1 << 20)
      .ShowDefault();
  app->AddOption("--repeat", options->repeat, "runs of each, after one that does not count")
      .Range(1, 1000)
      .ShowDefault();
  options->connect.AddTo(*app);
  app->AddOption(
         "--made-up-weights", options->connect.made_up_weights,
         "with --model on a GPU: a seed from which the weights are made there; those of the "
         "checkpoint, which may be hollow, are not read")
      .Needs(app->Get("--model"));
  return {app, [options] {
            std::erase(options->prefill, 0u);
            std::erase(options->batch, 0u);
            // All streams at once, or there is nothing to measure.
            for (const uint32_t streams : options->batch) {
              options->connect.max_running =
                  std::max({options->connect.max_running, static_cast<int>(streams), 64});
            }
            return Run(*options);
          }};
}

}  // namespace tandem::tool
