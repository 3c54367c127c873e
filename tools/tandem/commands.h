// The tool's commands. Each adds a subcommand with its flags; what it runs returns the status that
// becomes the exit code.
#ifndef TANDEM_TOOLS_TANDEM_COMMANDS_H_
#define TANDEM_TOOLS_TANDEM_COMMANDS_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"

namespace CLI {
class App;
}  // namespace CLI

namespace tandem::tool {

struct Command {
  CLI::App* app = nullptr;
  std::function<absl::Status()> run;
};

Command AddGenerate(CLI::App& root);
Command AddChat(CLI::App& root);
Command AddEval(CLI::App& root);
Command AddScore(CLI::App& root);
Command AddTokenize(CLI::App& root);
Command AddDetokenize(CLI::App& root);
Command AddStatus(CLI::App& root);
Command AddDoctor(CLI::App& root);
Command AddDrain(CLI::App& root);
Command AddBench(CLI::App& root);
Command AddPlan(CLI::App& root);
Command AddLoad(CLI::App& root);
Command AddQuantize(CLI::App& root);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_COMMANDS_H_
