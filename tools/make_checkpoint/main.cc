// make_checkpoint: writes a checkpoint of synthetic weights, of any depth, for benchmarks.
//
//   make_checkpoint CONFIG.json OUT_DIR [--layers N] [--seed N] [--threads N] [--hollow | --empty]
#include <chrono>
#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "common/machine.h"
#include "tools/make_checkpoint/synthetic_checkpoint.h"

int main(int argc, char** argv) {
  CLI::App app("Writes a DeepSeek-V2 checkpoint of random weights that depend on the seed alone.");
  tandem::SyntheticOptions options;
  options.threads = tandem::ReadMachineLimits().cpus;
  std::string dtype = "bf16";
  app.add_option("config", options.config_path, "a model's config.json")->required();
  app.add_option("out", options.out_dir, "a folder without weights")->required();
  app.add_option("--layers", options.layers, "instead of the config's")->check(CLI::Range(1, 1000));
  app.add_option("--seed", options.seed)->capture_default_str();
  app.add_option("--dtype", dtype, "of the weights")
      ->check(CLI::IsMember({"bf16"}))
      ->capture_default_str();
  app.add_flag("--hollow", options.hollow,
               "large matrices are holes in the files: zeros that take no disk");
  app.add_flag("--empty", options.empty,
               "all weights are holes: for tandem bench --made-up-weights");
  app.add_option("--file-bytes", options.file_bytes, "of weights in a file")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--threads", options.threads, "default: one per core that this process may use")
      ->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);

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
