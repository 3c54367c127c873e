// make_checkpoint: writes a checkpoint of synthetic weights, of any depth, for benchmarks.
//
//   make_checkpoint CONFIG.json OUT_DIR [--layers N] [--seed N] [--threads N] [--hollow | --empty]
#include <chrono>
#include <cstdio>
#include <string>

#include "common/command_line.h"
#include "common/machine.h"
#include "tools/make_checkpoint/synthetic_checkpoint.h"

int main(int argc, char** argv) {
  tandem::CommandLine app(
      "Writes a DeepSeek-V2 checkpoint of random weights that depend on the seed alone.");
  tandem::SyntheticOptions options;
  options.threads = tandem::ReadMachineLimits().cpus;
  std::string dtype = "bf16";
  app.AddOption("config", options.config_path, "a model's config.json").Required();
  app.AddOption("out", options.out_dir, "a folder without weights").Required();
  app.AddOption("--layers", options.layers, "instead of the config's").Range(1, 1000);
  app.AddOption("--seed", options.seed).ShowDefault();
  app.AddOption("--dtype", dtype, "of the weights").OneOf({"bf16"}).ShowDefault();
  app.AddFlag("--hollow", options.hollow,
              "large matrices are holes in the files: zeros that take no disk");
  app.AddFlag("--empty", options.empty,
              "all weights are holes: for tandem bench --made-up-weights");
  app.AddOption("--file-bytes", options.file_bytes, "of weights in a file")
      .Positive()
      .ShowDefault();
  app.AddOption("--threads", options.threads, "default: one per core that this process may use")
      .Range(1, 1024);
  if (const auto code = app.Parse(argc, argv)) return *code;

  const auto start = std::chrono::steady_clock::now();
  const auto summary = tandem::WriteSyntheticCheckpoint(options);
  if (!summary.ok()) {
    std::fprintf(stderr, "make_checkpoint: %s\n", std::string(summary.status().message()).c_str());
    return 1;
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  std::printf("%s: %d layers, %.3f GB in %d file%s, seed %llu; %.1f s, %.0f MB/s\n",
              options.out_dir.c_str(), summary->num_layers,
              static_cast<double>(summary->bytes) * 1e-9, summary->num_files,
              summary->num_files == 1 ? "" : "s", static_cast<unsigned long long>(options.seed),
              time.count(), static_cast<double>(summary->bytes) * 1e-6 / time.count());
  return 0;
}
