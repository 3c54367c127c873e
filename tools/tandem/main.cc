// tandem: the person's tool. Exit codes: 0 done; 1 the request failed; 2 the command line is wrong.

#include <cstdio>

#include "commands.h"
#include "common/command_line.h"
#include "common/version.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

int main(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("tandem"));
  spdlog::set_level(spdlog::level::warn);
  tandem::CommandLine root(
      "Asks a Tandem server, or runs a checkpoint in this process with --model.");
  root.AddVersionFlag(tandem::Version());
  root.RequireSubcommand();
  using namespace tandem::tool;  // NOLINT: the commands of this very program
  const std::vector<Command> commands = {
      AddGenerate(root),   AddChat(root),     AddEval(root),   AddScore(root), AddTokenize(root),
      AddDetokenize(root), AddStatus(root),   AddDoctor(root), AddDrain(root), AddBench(root),
      AddLoad(root),       AddQuantize(root), AddPlan(root)};
  if (const auto code = root.Parse(argc, argv)) return *code;
  for (const Command& command : commands) {
    if (!command.app->given()) continue;
    const absl::Status status = command.run();
    if (status.ok()) return 0;
    std::fprintf(stderr, "tandem: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
                 std::string(status.message()).c_str());
    return 1;
  }
  return 2;
}
