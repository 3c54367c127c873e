#include <sys/stat.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "commands.h"
#include "common/checkpoint/read_file.h"
#include "common/command_line.h"
#include "common/status.h"
#include "deployment/sizing.h"
#include "nlohmann/json.hpp"

namespace tandem::tool {
namespace {

struct Options {
  std::string model;
  std::string dtype = "bf16";
  std::string weights;
  SizingRequest request;
  double node_gb_per_s = 30;
  double disk_mb_per_s = 200;
  bool json = false;
};

absl::StatusOr<ModelConfig> ReadConfig(const std::string& path) {
  constexpr size_t kMaxConfigBytes = 1 << 20;
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return LoadModelConfig(path);
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxConfigBytes));
  return ParseModelConfig(text, path);
}

double Gib(int64_t bytes) { return static_cast<double>(bytes) / (int64_t{1} << 30); }

void PrintTable(const Sizing& sizing) {
  std::printf("%-10s %8s %12s %12s %12s %12s %10s\n", "", "replicas", "memory each", "weights",
              "cache", "passes", "startup");
  for (const auto& [name, workers] :
       {std::pair{"attention", &sizing.attention}, std::pair{"expert", &sizing.expert}}) {
    std::printf("%-10s %8d %8.2f GiB %8.2f GiB %8.2f GiB %8.2f GiB %8lld s\n", name,
                workers->replicas, Gib(workers->memory_bytes), Gib(workers->weight_bytes),
                Gib(workers->cache_bytes), Gib(workers->pass_bytes),
                static_cast<long long>(workers->startup_s));
  }
  std::printf("\n");
  for (const std::string& why : sizing.why) std::printf("%s\n", why.c_str());
  std::printf("decoding: at most %.0f tokens per second, by what is read\n\n",
              sizing.most_tokens_per_s);
  std::printf("tandem-gateway --attention-workers 1 --expert-workers %d --expert-copies %d\n",
              sizing.expert.replicas, sizing.expert_copies);
  std::printf("tandem-attention-worker --cache-tokens %lld\n",
              static_cast<long long>(sizing.cache_tokens));
  std::printf("tandem-expert-worker --expert-memory %lldMiB --drain-limit %lld\n",
              static_cast<long long>(sizing.expert_memory_bytes >> 20),
              static_cast<long long>(sizing.drain_limit_s));
}

nlohmann::ordered_json ToJson(const WorkerSizing& workers) {
  return {{"replicas", workers.replicas},         {"memory_bytes", workers.memory_bytes},
          {"weight_bytes", workers.weight_bytes}, {"cache_bytes", workers.cache_bytes},
          {"pass_bytes", workers.pass_bytes},     {"startup_s", workers.startup_s}};
}

void PrintJson(const Sizing& sizing) {
  const nlohmann::ordered_json json = {{"attention", ToJson(sizing.attention)},
                                       {"expert", ToJson(sizing.expert)},
                                       {"cache_tokens", sizing.cache_tokens},
                                       {"experts_each", sizing.experts_each},
                                       {"expert_memory_bytes", sizing.expert_memory_bytes},
                                       {"expert_copies", sizing.expert_copies},
                                       {"expert_nodes", sizing.expert_nodes},
                                       {"drain_limit_s", sizing.drain_limit_s},
                                       {"most_tokens_per_s", sizing.most_tokens_per_s},
                                       {"why", sizing.why}};
  std::printf("%s\n", json.dump().c_str());
}

absl::Status Run(Options options) {
  SizingRequest& request = options.request;
  TANDEM_ASSIGN_OR_RETURN(request.config, ReadConfig(options.model));
  TANDEM_ASSIGN_OR_RETURN(request.mode, ParseMode(options.dtype));
  TANDEM_ASSIGN_OR_RETURN(request.format, ParseWeightFormat(options.weights, request.mode));
  request.node_bytes_per_s = options.node_gb_per_s * 1e9;
  request.disk_bytes_per_s = options.disk_mb_per_s * 1e6;
  TANDEM_ASSIGN_OR_RETURN(const Sizing sizing, PlanSizing(request));
  options.json ? PrintJson(sizing) : PrintTable(sizing);
  return absl::OkStatus();
}

}  // namespace

Command AddPlan(CommandLine& root) {
  auto options = std::make_shared<Options>();
  SizingRequest& request = options->request;
  CommandLine* app = root.AddSubcommand(
      "plan", "how many workers of which memory a load needs, and why (docs/sizing.md)");
  app->AddOption("--model", options->model, "checkpoint folder, or a config.json alone").Required();
  app->AddOption("--dtype", options->dtype, "f32 or bf16").ShowDefault();
  app->AddOption("--weights", options->weights, "their format; default: the mode's");
  app->AddOption("--streams", request.streams, "answers that are written at the same time")
      .Range(int64_t{1}, int64_t{65536})
      .ShowDefault();
  app->AddOption("--context", request.stream_tokens, "tokens of one: prompt and answer")
      .Range(int64_t{1}, int64_t{1} << 24)
      .ShowDefault();
  app->AddOption("--tokens-per-second", request.tokens_per_s, "that all streams get together");
  app->AddOption("--expert-copies", request.expert_copies,
                 "workers that hold the same expert, if memory allows")
      .Range(1, 16)
      .ShowDefault();
  app->AddOption("--nodes", request.nodes, "").Range(1, 1024).ShowDefault();
  app->AddOption("--node-memory", request.node_memory_bytes, "of each, such as 64GiB")
      .Required()
      .ByteSize()
      .Range(int64_t{1}, int64_t{1} << 50);
  app->AddOption("--node-gbps", options->node_gb_per_s,
                 "GB/s that a node's cores read: tandem bench --ceilings")
      .Positive()
      .ShowDefault();
  app->AddOption("--disk-mbps", options->disk_mb_per_s,
                 "MB/s at which checkpoints are read from where they lie")
      .Positive()
      .ShowDefault();
  app->AddFlag("--json", options->json, "print JSON");
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
