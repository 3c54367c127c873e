#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/status.h"
#include "io.h"

namespace tandem::tool {
namespace {

struct Options {
  ConnectOptions connect;
  SamplingOptions sampling;
  std::string prompt;
  std::string ids_file;
  bool match_added_tokens = false;
  std::optional<bool> add_bos;
  uint32_t n = 1;
  uint32_t top_logprobs = 0;
  bool echo = false;
};

// Of one place in the answer: ids with their log-probabilities, the most probable first.
nlohmann::json ToJson(const v1::GenerateResponse::TopLogProbs& top) {
  nlohmann::json json = nlohmann::json::array();
  for (int i = 0; i < top.token_ids_size(); ++i) {
    json.push_back({{"id", top.token_ids(i)}, {"log_prob", top.log_probs(i)}});
  }
  return json;
}

nlohmann::json ToJson(const Completion& completion) {
  const auto& finished = completion.finished;
  nlohmann::json json = {{"text", completion.text},
                         {"ids", completion.ids},
                         {"log_probs", completion.log_probs},
                         {"finish_reason", FinishReasonName(finished.reason())},
                         {"model", completion.started.model()},
                         {"seed", completion.started.seed()},
                         {"prompt_tokens", finished.prompt_tokens()},
                         {"cached_tokens", finished.cached_tokens()},
                         {"completion_tokens", finished.completion_tokens()},
                         {"queue_us", finished.queue_us()},
                         {"prefill_us", finished.prefill_us()},
                         {"decode_us", finished.decode_us()}};
  for (const auto& top : completion.top_logprobs) json["top_logprobs"].push_back(ToJson(top));
  return json;
}

// Several answers come side by side, so they are printed when all are there.
absl::Status PrintChoices(const Options& options, const std::vector<Completion>& choices) {
  if (options.connect.json) {
    nlohmann::json json = {{"choices", nlohmann::json::array()}};
    for (const Completion& choice : choices) json["choices"].push_back(ToJson(choice));
    std::cout << Dump(json) << "\n";
    return absl::OkStatus();
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    std::cout << "choice " << i << ":" << choices[i].text;
    for (int32_t id : choices[i].ids) {
      if (choices[i].text.empty()) std::cout << " " << id;
    }
    std::cout << std::endl;
    std::fprintf(stderr, "%s\n", DescribeSpeed(choices[i]).c_str());
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  v1::GenerateRequest request;
  options.sampling.Fill(request);
  request.set_match_added_tokens(options.match_added_tokens);
  if (options.add_bos) request.set_add_bos(*options.add_bos);
  request.set_top_logprobs(options.top_logprobs);
  request.set_echo(options.echo);
  if (!options.ids_file.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const auto ids, ReadIdsFile(options.ids_file));
    request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  } else {
    request.set_text(options.prompt);
  }
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));
  if (options.n != 1) {
    request.set_n(options.n);
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Completion> choices, RunChoices(*client, request));
    return PrintChoices(options, choices);
  }
  std::function<void(const std::string&)> print;
  if (!options.connect.json)
    print = [](const std::string& text) { std::cout << text << std::flush; };
  TANDEM_ASSIGN_OR_RETURN(const Completion completion, RunGenerate(*client, request, print));
  if (options.connect.json) {
    std::cout << Dump(ToJson(completion)) << "\n";
    return absl::OkStatus();
  }
  if (completion.text.empty()) {
    for (int32_t id : completion.ids) std::cout << id << " ";
  }
  std::cout << std::endl;
  std::fprintf(stderr, "%s\n", DescribeSpeed(completion).c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddGenerate(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand("generate", "continues a prompt");
  Option prompt = app->AddOption("prompt", options->prompt, "text to continue");
  const Option ids = app->AddOption("--ids-file", options->ids_file,
                                    "file of whitespace-separated token ids to continue");
  prompt.Excludes(ids);
  app->AddFlag("--match-added-tokens", options->match_added_tokens,
               "names of added tokens in the prompt become these tokens");
  AddBosOption(*app, &options->add_bos);
  app->AddOption("-n,--n", options->n, "answers, each with its own draws")
      .Range(1, 16)
      .ShowDefault();
  app->AddFlag("--echo", options->echo, "the prompt's text before the answer's");
  Option top = app->AddOption("--top-logprobs", options->top_logprobs,
                              "with --json: so many of the most probable tokens with each one");
  options->connect.AddTo(*app);
  top.Needs(app->Get("--json"));
  options->sampling.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
