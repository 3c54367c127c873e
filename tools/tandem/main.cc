// tandem: the person's tool. Exit codes: 0 done; 1 the request failed; 2 the command line is wrong.

#include <cstdio>

#include "CLI/CLI.hpp"
#include "commands.h"
#include "common/version.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

int main(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("tandem"));
  spdlog::set_level(spdlog::level::warn);
  CLI::App root("Asks a Tandem server, or runs a checkpoint in this process with --model.");
  root.set_version_flag("--version", tandem::Version());
  root.require_subcommand(1);
  root.option_defaults()->always_capture_default(false);
  using namespace tandem::tool;  // NOLINT: the commands of this very program
  const std::vector<Command> commands = {
      AddGenerate(root),   AddChat(root),     AddEval(root),   AddScore(root), AddTokenize(root),
      AddDetokenize(root), AddStatus(root),   AddDoctor(root), AddDrain(root), AddBench(root),
      AddLoad(root),       AddQuantize(root), AddPlan(root)};
  try {
    root.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return root.exit(error) == 0 ? 0 : 2;
  }
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const absl::Status status = command.run();
    if (status.ok()) return 0;
    std::fprintf(stderr, "tandem: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
                 std::string(status.message()).c_str());
    return 1;
  }
  return 2;
}
