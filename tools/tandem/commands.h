// The tool's commands. Each adds a subcommand with its flags; what it runs returns the status that
// becomes the exit code.
#ifndef TANDEM_TOOLS_TANDEM_COMMANDS_H_
#define TANDEM_TOOLS_TANDEM_COMMANDS_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "common/command_line.h"

namespace tandem::tool {

struct Command {
  CommandLine* app = nullptr;
  std::function<absl::Status()> run;
};

Command AddGenerate(CommandLine& root);
Command AddChat(CommandLine& root);
Command AddEval(CommandLine& root);
Command AddScore(CommandLine& root);
Command AddTokenize(CommandLine& root);
Command AddDetokenize(CommandLine& root);
Command AddStatus(CommandLine& root);
Command AddDoctor(CommandLine& root);
Command AddDrain(CommandLine& root);
Command AddBench(CommandLine& root);
Command AddPlan(CommandLine& root);
Command AddLoad(CommandLine& root);
Command AddQuantize(CommandLine& root);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_COMMANDS_H_
