// What deployments larger than any test machine would give: the gateway's own scheduler and planner
// and the dispatcher's choice of holders against a cost model of workers and links. docs/scaling.md
// says what is in it and what came out.
//
//   simulate serve --attention 1,16,64 --experts 1,4,16,64,256 --csv serve.csv
//   simulate plan --workers 1,2,4,16,64,256
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/command_line.h"
#include "common/status.h"
#include "tools/simulate/plan_table.h"
#include "tools/simulate/report.h"
#include "tools/simulate/simulation.h"

namespace tandem::simulate {
namespace {

struct Options {
  std::string model_config;
  SimulationOptions base;
  std::string prompt = "fixed:512";
  std::string output = "fixed:128";
  std::vector<int> attention = {1};
  std::vector<int> experts = {1};
  int64_t streams_per_worker = 16;
  double rate = 0;
  std::string csv;
  std::vector<int> plan_workers = {1, 2, 4, 8, 16, 32, 64, 128, 256};
};

void AddConstants(CommandLine& app, CostConstants& constants) {
  const auto add = [&](const char* name, double& value, const char* what) {
    app.AddOption(name, value, what).NonNegative().ShowDefault().Group("Constants");
  };
  add("--bytes-per-weight", constants.bytes_per_weight, "of the weights' format");
  add("--weight-gb-per-s", constants.weight_gb_per_s, "at which a worker reads weights");
  add("--matrix-tflop-per-s", constants.matrix_tflop_per_s, "of matrices with many rows");
  add("--absorbed-tflop-per-s", constants.absorbed_tflop_per_s, "of attention as in decoding");
  add("--expanded-tflop-per-s", constants.expanded_tflop_per_s, "of attention as in prefill");
  add("--cache-gb-per-s", constants.cache_gb_per_s, "at which the latent cache is read");
  add("--cache-bytes-per-value", constants.cache_bytes_per_value, "of the latent cache");
  add("--layer-us", constants.layer_us, "that a layer takes an attention worker besides");
  add("--expert-call-us", constants.expert_call_us, "that a call takes an expert worker besides");
  add("--sample-us", constants.sample_us, "that a draw takes");
  add("--latency-us", constants.latency_us, "between attention and expert worker, one way");
  add("--link-gb-per-s", constants.link_gb_per_s, "of a worker's port, each way");
  add("--message-us", constants.message_us, "that a message takes of a port besides its bytes");
  add("--row-bytes-per-value", constants.row_bytes_per_value, "of rows on the wire");
  add("--gateway-step-us", constants.gateway_step_us, "of the gateway's thread for a step");
  add("--gateway-token-us", constants.gateway_token_us, "of it for a token");
  add("--gateway-request-us", constants.gateway_request_us, "of it for a request");
  add("--gateway-latency-us", constants.gateway_latency_us, "to an attention worker, one way");
}

absl::Status Serve(Options& options) {
  TANDEM_ASSIGN_OR_RETURN(options.base.load.prompt, LengthDistribution::Parse(options.prompt));
  TANDEM_ASSIGN_OR_RETURN(options.base.load.output, LengthDistribution::Parse(options.output));
  std::ofstream csv;
  if (!options.csv.empty()) {
    csv.open(options.csv);
    if (!csv) return absl::InvalidArgumentError(absl::StrCat("cannot write ", options.csv));
    csv << CsvHeader() << "\n";
  }
  std::printf("%s\n", TableHeader().c_str());
  for (const int attention : options.attention) {
    for (const int experts : options.experts) {
      SimulationOptions run = options.base;
      run.attention_workers = attention;
      run.expert_workers = experts;
      run.load.requests_per_s = options.rate * attention;
      run.load.streams = options.rate > 0 ? 0 : options.streams_per_worker * attention;
      // A closed loop is never refused.
      if (options.rate == 0) {
        run.policy.max_waiting = static_cast<int>(run.load.streams);
      }
      TANDEM_ASSIGN_OR_RETURN(const SimulationReport report, Simulate(run));
      std::printf("%s\n", TableLine(run, report).c_str());
      std::fflush(stdout);
      if (csv.is_open()) csv << CsvLine(run, report) << "\n" << std::flush;
    }
  }
  return absl::OkStatus();
}

absl::Status PrintPlans(const Options& options) {
  PlanTableOptions table{options.base.model, options.plan_workers, options.base.copies,
                         options.base.skew, options.base.seed};
  std::printf("%7s %8s %9s | %14s %12s %8s | %17s %6s %8s\n", "workers", "plan ms", "one more",
              "experts each", "uneven: layer", "all", "moved: join, fair", "leave", "nothing");
  for (const int workers : table.workers) {
    TANDEM_ASSIGN_OR_RETURN(const PlanRow row, PlanFor(table, workers));
    std::cout << absl::StrFormat("%7d %8.2f %9.2f | %6d to %4d %13.2f %8.2f | %11d, %4d %6d %8d\n",
                                 row.workers, row.plan_ms, row.replan_ms, row.least_experts,
                                 row.most_experts, row.busiest_share, row.busiest_in_all,
                                 row.join_moves, row.fair_moves, row.leave_moves, row.idle_moves)
              << std::flush;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace tandem::simulate

int main(int argc, char** argv) {
  using namespace tandem::simulate;  // NOLINT: the parts of this very program
  tandem::CommandLine app("Simulates deployments of any size.");
  app.AddConfigFlag("--hardware", "a file with constants, as tools/simulate/*.toml");
  app.RequireSubcommand();
  app.TakeFlagsAfterSubcommand();
  Options options;
  SimulationOptions& base = options.base;
  app.AddOption("--model-config", options.model_config, "config.json of a model")
      .Required()
      .ExistingFile();
  app.AddOption("--copies", base.copies, "of an expert at most").Range(1, 16).ShowDefault();
  app.AddOption("--skew", base.skew,
                "the expert of rank r in its layer is chosen like (r + 1)^-skew")
      .Range(0.0, 4.0)
      .ShowDefault();
  app.AddOption("--seed", base.seed, "the same seed gives the same figures").ShowDefault();
  AddConstants(app, base.constants);

  tandem::CommandLine* const serve = app.AddSubcommand("serve", "runs load against deployments");
  serve->AddOption("--attention", options.attention, "numbers of attention workers")
      .SeparatedBy(',')
      .Range(1, 1024)
      .ShowDefault();
  serve->AddOption("--experts", options.experts, "numbers of expert workers, each with each")
      .SeparatedBy(',')
      .Range(1, 1024)
      .ShowDefault();
  serve->AddOption("--streams", options.streams_per_worker, "per attention worker, closed loop")
      .Range(1, 4096)
      .ShowDefault();
  serve
      ->AddOption("--rate", options.rate,
                  "instead: requests per second and attention worker, a Poisson process")
      .NonNegative();
  serve->AddOption("--requests", base.open_loop_requests, "that come, with --rate")
      .Range(10, 10'000'000)
      .ShowDefault();
  serve->AddOption("--tokens", base.tokens_per_stream, "that are measured, without --rate")
      .Range(1, 100'000)
      .ShowDefault();
  serve
      ->AddOption("--prompt", options.prompt,
                  "tokens: N, uniform:LOW:HIGH, exponential:MEAN or "
                  "lognormal:MEDIAN:SIGMA[:MAX]")
      .ShowDefault();
  serve->AddOption("--output", options.output, "tokens of an answer, likewise").ShowDefault();
  serve
      ->AddOption("--shared-prefix", base.load.shared_prefix, "tokens with which all prompts begin")
      .Range(0, 1 << 20)
      .ShowDefault();
  serve->AddOption("--cache-pages", base.cache_pages, "of 64 tokens, of an attention worker")
      .Range(1, 1 << 30)
      .ShowDefault();
  serve
      ->AddOption("--expert-capacity", base.expert_capacity,
                  "experts, over all layers, that an expert worker's memory holds; 0: any number")
      .NonNegative()
      .ShowDefault();
  serve
      ->AddOption("--max-running", base.policy.max_running_per_worker,
                  "requests per attention worker")
      .Range(1, 4096)
      .ShowDefault();
  serve->AddOption("--batch-rows", base.policy.max_batch_rows, "of prefill in a step")
      .Range(1, 1 << 20)
      .ShowDefault();
  serve->AddOption("--layers-per-step", base.policy.max_layers_per_step, "of prefill; 0: all")
      .Range(0, 1024)
      .ShowDefault();
  serve->AddOption("--prefill-step-target", base.policy.prefill_step_target, "as of the gateway")
      .Range(0.0, 1000.0)
      .ShowDefault();
  serve->AddOption("--decode-groups", base.policy.decode_groups, "as of the gateway")
      .Range(0, 2)
      .ShowDefault();
  serve->AddOption("--csv", options.csv, "also write all figures to this file");

  tandem::CommandLine* const plan = app.AddSubcommand("plan", "plans placements, and changes them");
  plan->AddOption("--workers", options.plan_workers, "numbers of expert workers")
      .SeparatedBy(',')
      .Range(1, 1024)
      .ShowDefault();
  if (const auto code = app.Parse(argc, argv)) return *code;

  std::ifstream file(options.model_config);
  const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  absl::StatusOr<tandem::ModelConfig> model = tandem::ParseModelConfig(json, options.model_config);
  absl::Status status = model.status();
  if (status.ok()) {
    base.model = *std::move(model);
    status = serve->given() ? Serve(options) : PrintPlans(options);
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "simulate: %s\n", std::string(status.message()).c_str());
  return 1;
}
