#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "client.h"
#include "commands.h"
#include "common/status.h"
#include "io.h"
#include "run_all.h"

namespace tandem::tool {
namespace {

struct Options {
  ConnectOptions connect;
  SamplingOptions sampling;
  std::string message;
  std::string system;
  std::string jsonl;
  int concurrency = 16;
};

v1::GenerateRequest NewRequest(const Options& options) {
  v1::GenerateRequest request;
  options.sampling.Fill(request);
  if (!options.system.empty()) AddMessage(request, {"system", options.system});
  return request;
}

void PrintText(const std::string& text) { std::cout << text << std::flush; }

absl::Status RunOnce(const Options& options, Client& client) {
  v1::GenerateRequest request = NewRequest(options);
  AddMessage(request, {"user", options.message});
  const bool json = options.connect.json;
  TANDEM_ASSIGN_OR_RETURN(
      const Completion completion,
      RunGenerate(client, request, json ? std::function<void(const std::string&)>() : PrintText));
  if (json) {
    std::cout << Dump({{"text", completion.text},
                       {"ids", completion.ids},
                       {"finish_reason", FinishReasonName(completion.finished.reason())},
                       {"seed", completion.started.seed()}});
  }
  std::cout << std::endl;
  return absl::OkStatus();
}

absl::Status RunInteractive(const Options& options, Client& client) {
  std::fprintf(stderr, "/reset begins anew, /exit or Ctrl-D ends\n");
  v1::GenerateRequest request = NewRequest(options);
  std::string line;
  while (std::fprintf(stderr, "> "), std::getline(std::cin, line)) {
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    if (line == "/exit") break;
    if (line == "/reset") {
      request = NewRequest(options);
      continue;
    }
    AddMessage(request, {"user", line});
    const absl::StatusOr<Completion> completion = RunGenerate(client, request, PrintText);
    std::cout << std::endl;
    if (!completion.ok()) {
      // The question is taken back, so that the next one can be answered.
      request.mutable_chat()->mutable_messages()->RemoveLast();
      if (completion.status().code() == absl::StatusCode::kUnavailable) return completion.status();
      std::fprintf(stderr, "tandem: %s\n", std::string(completion.status().message()).c_str());
      continue;
    }
    // The template writes the space behind "Assistant:" itself.
    AddMessage(request,
               {"assistant", std::string(absl::StripLeadingAsciiWhitespace(completion->text))});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::GenerateRequest>> ReadConversations(const Options& options) {
  std::vector<v1::GenerateRequest> requests;
  TANDEM_RETURN_IF_ERROR(
      ForEachJsonLine(options.jsonl, [&](const nlohmann::json& line) -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(const auto messages, MessagesMember(line));
        v1::GenerateRequest request = NewRequest(options);
        request.mutable_chat();
        for (const ChatMessage& message : messages) AddMessage(request, message);
        requests.push_back(std::move(request));
        return absl::OkStatus();
      }));
  return requests;
}

// Answers every line in order, several at a time. A line that fails is answered by its error.
absl::Status RunJsonl(const Options& options, Client& client) {
  TANDEM_ASSIGN_OR_RETURN(const auto requests, ReadConversations(options));
  return RunAll(
      client, requests, options.concurrency, [](size_t, const absl::StatusOr<Completion>& answer) {
        const nlohmann::json line =
            answer.ok() ? nlohmann::json{{"text", answer->text}}
                        : nlohmann::json{{"error", std::string(answer.status().message())}};
        std::cout << Dump(line) << std::endl;
      });
}

absl::Status Run(const Options& options) {
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));
  if (!options.jsonl.empty()) return RunJsonl(options, *client);
  if (!options.message.empty()) return RunOnce(options, *client);
  return RunInteractive(options, *client);
}

}  // namespace

Command AddChat(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("chat", "talks with the model");
  auto* message = app->add_option("-m,--message", options->message, "ask once and end");
  app->add_option("--jsonl", options->jsonl,
                  "answer each line {\"messages\": [...]} of this file with a line {\"text\": ...}")
      ->excludes(message);
  app->add_option("--system", options->system, "system message");
  app->add_option("--concurrency", options->concurrency, "lines of --jsonl that run at once")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  options->connect.AddTo(*app);
  options->sampling.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
