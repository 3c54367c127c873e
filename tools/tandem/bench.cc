#include <memory>

#include "bench_ceilings.h"
#include "commands.h"

namespace tandem::tool {
namespace {

struct Options {
  bool ceilings = false;
  int threads = 0;
  bool json = false;
};

}  // namespace

Command AddBench(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("bench", "measures what this machine can do");
  app->add_flag("--ceilings", options->ceilings,
                "how fast it reads memory, and the peak rate of each instruction set")
      ->required();
  app->add_option("--threads", options->threads,
                  "default 0: one per core that this process may use")
      ->check(CLI::Range(0, 1024));
  app->add_flag("--json", options->json, "print JSON");
  return {app, [options] { return BenchCeilings(options->threads, options->json); }};
}

}  // namespace tandem::tool
