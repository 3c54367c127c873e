#include <cstdio>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/status.h"
#include "interrupt.h"
#include "io.h"
#include "line_reader.h"
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

void EndAnswer(const Completion& completion) {
  std::cout << std::endl;
  std::fprintf(stderr, "%s\n", DescribeSpeed(completion).c_str());
}

absl::Status RunOnce(const Options& options, Client& client) {
  v1::GenerateRequest request = NewRequest(options);
  AddMessage(request, {"user", options.message});
  const bool json = options.connect.json;
  TANDEM_ASSIGN_OR_RETURN(
      const Completion completion,
      RunGenerate(client, request, json ? std::function<void(const std::string&)>() : PrintText));
  if (!json) {
    EndAnswer(completion);
    return absl::OkStatus();
  }
  std::cout << Dump({{"text", completion.text},
                     {"ids", completion.ids},
                     {"finish_reason", FinishReasonName(completion.finished.reason())},
                     {"seed", completion.started.seed()}})
            << std::endl;
  return absl::OkStatus();
}

// A conversation, line by line. On a terminal, Ctrl-C stops the answer that is being streamed.
class Conversation {
 public:
  Conversation(const Options& options, Client& client)
      : options_(options), client_(client), request_(NewRequest(options)) {}

  absl::Status Run() {
    LineReader reader("> ");
    std::optional<InterruptScope> ctrl_c;
    if (reader.interactive()) ctrl_c.emplace([this] { Stop(); });
    std::fprintf(stderr, "/reset begins anew, /exit or Ctrl-D ends%s\n",
                 reader.interactive() ? ", Ctrl-C stops an answer" : "");
    while (const std::optional<std::string> line = reader.Read()) {
      if (absl::StripAsciiWhitespace(*line).empty()) continue;
      if (*line == "/exit") break;
      if (*line == "/reset") {
        request_ = NewRequest(options_);
        continue;
      }
      TANDEM_RETURN_IF_ERROR(Ask(*line));
    }
    return absl::OkStatus();
  }

 private:
  // Errors: UNAVAILABLE, after which nothing more can be asked. Others are told to the person.
  absl::Status Ask(const std::string& question) {
    AddMessage(request_, {"user", question});
    const absl::StatusOr<Completion> completion = Answer();
    if (completion.ok()) {
      EndAnswer(*completion);
      // The template writes the space behind "Assistant:" itself.
      AddMessage(request_,
                 {"assistant", std::string(absl::StripLeadingAsciiWhitespace(completion->text))});
      return absl::OkStatus();
    }
    std::cout << std::endl;
    // The question is taken back, so that the next one can be answered.
    request_.mutable_chat()->mutable_messages()->RemoveLast();
    const absl::Status& status = completion.status();
    if (absl::IsUnavailable(status)) return status;
    if (absl::IsCancelled(status)) {
      std::fprintf(stderr, "[stopped; the question is taken back]\n");
    } else {
      std::fprintf(stderr, "tandem: %s\n", std::string(status.message()).c_str());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Completion> Answer() {
    const auto context = client_.NewContext();
    SetAnswering(context.get());
    absl::StatusOr<Completion> completion = RunGenerate(client_, *context, request_, PrintText);
    SetAnswering(nullptr);
    return completion;
  }

  void SetAnswering(grpc::ClientContext* context) {
    std::lock_guard lock(mutex_);
    answering_ = context;
  }

  void Stop() {
    std::lock_guard lock(mutex_);
    if (answering_ != nullptr) answering_->TryCancel();
  }

  const Options& options_;
  Client& client_;
  v1::GenerateRequest request_;
  std::mutex mutex_;
  grpc::ClientContext* answering_ = nullptr;  // guarded by mutex_; null between answers
};

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
  return Conversation(options, *client).Run();
}

}  // namespace

Command AddChat(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand("chat", "talks with the model");
  const Option message = app->AddOption("-m,--message", options->message, "ask once and end");
  app->AddOption("--jsonl", options->jsonl,
                 "answer each line {\"messages\": [...]} of this file with a line {\"text\": ...}")
      .Excludes(message);
  app->AddOption("--system", options->system, "system message");
  app->AddOption("--concurrency", options->concurrency, "lines of --jsonl that run at once")
      .Range(1, 256)
      .ShowDefault();
  options->connect.AddTo(*app);
  options->sampling.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
