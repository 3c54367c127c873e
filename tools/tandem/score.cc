#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/status.h"
#include "io.h"

namespace tandem::tool {
namespace {

struct Options {
  ConnectOptions connect;
  std::string text;
  std::string ids_file;
  std::string positions;
  std::string logits;
  std::string path;
  std::optional<bool> add_bos;
};

absl::Status FillPath(const std::string& path, v1::ScoreRequest& request) {
  absl::string_view rest = path;
  uint32_t chunk_tokens = 0;
  if (path.empty()) return absl::OkStatus();
  if (path == "prefill") {
    request.set_path(v1::SCORE_PATH_PREFILL);
  } else if (path == "decode") {
    request.set_path(v1::SCORE_PATH_DECODE);
  } else if (absl::ConsumePrefix(&rest, "chunk=") && absl::SimpleAtoi(rest, &chunk_tokens)) {
    request.set_path(v1::SCORE_PATH_CHUNK);
    request.set_chunk_tokens(chunk_tokens);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("--path is \"", path, "\", but must be prefill, decode or chunk=N"));
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  v1::ScoreRequest request;
  if (!options.ids_file.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const auto ids, ReadIdsFile(options.ids_file));
    request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  } else {
    request.set_text(options.text);
  }
  if (options.add_bos) request.set_add_bos(*options.add_bos);
  TANDEM_ASSIGN_OR_RETURN(const auto wanted, ParsePositions(options.positions));
  request.mutable_positions()->Add(wanted.begin(), wanted.end());
  request.set_logits(!options.logits.empty());
  TANDEM_RETURN_IF_ERROR(FillPath(options.path, request));

  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));
  const auto context = client->NewContext();
  const auto stream = client->stub().Score(context.get(), request);
  std::vector<uint32_t> positions;
  std::vector<int32_t> targets;
  std::vector<float> log_probs;
  std::vector<std::string> logits;
  double total = 0;
  int scored = 0;
  v1::ScoreResponse response;
  while (stream->Read(&response)) {
    for (auto& row : *response.mutable_rows()) {
      positions.push_back(row.position());
      targets.push_back(row.target());
      log_probs.push_back(row.log_prob());
      if (request.logits()) logits.push_back(std::move(*row.mutable_logits()));
      if (row.target() >= 0) {
        total += row.log_prob();
        ++scored;
      }
    }
  }
  TANDEM_RETURN_IF_ERROR(client->Explain(stream->Finish()));
  if (request.logits()) {
    const size_t width = logits.empty() ? 0 : logits[0].size() / sizeof(float);
    TANDEM_RETURN_IF_ERROR(WriteNpy(options.logits, logits, width));
  }
  const double perplexity = scored > 0 ? std::exp(-total / scored) : 1.0;
  if (options.connect.json) {
    std::cout << Dump({{"positions", positions},
                       {"targets", targets},
                       {"log_probs", log_probs},
                       {"log_prob", total},
                       {"perplexity", perplexity}})
              << "\n";
    return absl::OkStatus();
  }
  for (size_t i = 0; i < positions.size(); ++i) {
    if (targets[i] >= 0) std::printf("%u\t%d\t%.6f\n", positions[i], targets[i], log_probs[i]);
  }
  std::fprintf(stderr, "[%d tokens; log-probability %.4f; perplexity %.4f]\n", scored, total,
               perplexity);
  return absl::OkStatus();
}

}  // namespace

Command AddScore(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand(
      "score", "log-probabilities of given tokens: position, next id, log-probability");
  Option text = app->AddOption("text", options->text, "text to score");
  const Option ids = app->AddOption("--ids-file", options->ids_file,
                                    "file of whitespace-separated token ids to score");
  text.Excludes(ids);
  app->AddOption("--positions", options->positions, "rows wanted, ascending, such as 0,5,4095");
  app->AddOption("--logits", options->logits, "write the rows' logits to this .npy file");
  app->AddOption("--path", options->path,
                 "how rows are computed: prefill, decode or chunk=N (default: as a request would)");
  AddBosOption(*app, &options->add_bos);
  options->connect.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
