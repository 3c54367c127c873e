#include "deployment/quantize.h"

#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/service/progress.h"
#include "common/status.h"
#include "io.h"
#include "spdlog/spdlog.h"

namespace tandem::tool {
namespace {

struct Options {
  QuantizeOptions quantize;
  bool json = false;
};

absl::Status Run(const Options& options) {
  spdlog::set_level(spdlog::level::info);  // it takes minutes
  LoadProgress progress("packing");
  QuantizeOptions quantize = options.quantize;
  quantize.progress = [&](float share) { progress.Report(share); };
  TANDEM_ASSIGN_OR_RETURN(const QuantizedWeights done, Quantize(quantize));
  if (options.json) {
    std::cout << Dump({{"dir", done.dir}, {"written", done.written}, {"were_kept", done.were_kept}})
              << std::endl;
  } else {
    std::cout << absl::StrCat(done.dir, ": ", done.written, " files written, ", done.were_kept,
                              " were there")
              << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

Command AddQuantize(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand(
      "quantize", "packs a checkpoint's weights, so that no start has to: --weights int8 or int4");
  app->AddOption("--model", options->quantize.model_dir, "checkpoint folder").Required();
  options->quantize.backend.AddTo(*app);
  app->Get("--weights").Required();
  app->AddFlag("--json", options->json, "print JSON");
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
