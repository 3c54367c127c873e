#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client.h"
#include "commands.h"
#include "common/status.h"
#include "io.h"

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
  if (!options.system.empty()) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role("system");
    message->set_content(options.system);
  }
  return request;
}

void AddMessage(v1::GenerateRequest& request, const std::string& role, const std::string& content) {
  auto* message = request.mutable_chat()->add_messages();
  message->set_role(role);
  message->set_content(content);
}

void PrintText(const std::string& text) { std::cout << text << std::flush; }

absl::Status RunOnce(const Options& options, Client& client) {
  v1::GenerateRequest request = NewRequest(options);
  AddMessage(request, "user", options.message);
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
    AddMessage(request, "user", line);
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
    AddMessage(request, "assistant",
               std::string(absl::StripLeadingAsciiWhitespace(completion->text)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::GenerateRequest>> ReadConversations(const Options& options) {
  std::vector<v1::GenerateRequest> requests;
  TANDEM_RETURN_IF_ERROR(
      ForEachJsonLine(options.jsonl, [&](const nlohmann::json& line) -> absl::Status {
        const auto messages = line.find("messages");
        if (messages == line.end() || !messages->is_array()) {
          return absl::InvalidArgumentError("\"messages\" is missing or not an array");
        }
        v1::GenerateRequest request = NewRequest(options);
        request.mutable_chat();
        for (const nlohmann::json& message : *messages) {
          TANDEM_ASSIGN_OR_RETURN(const std::string role, StringMember(message, "role"));
          TANDEM_ASSIGN_OR_RETURN(const std::string content, StringMember(message, "content"));
          AddMessage(request, role, content);
        }
        requests.push_back(std::move(request));
        return absl::OkStatus();
      }));
  return requests;
}

// Answers every line in order, several at a time. A line that fails is answered by its error.
absl::Status RunJsonl(const Options& options, Client& client) {
  TANDEM_ASSIGN_OR_RETURN(const auto requests, ReadConversations(options));
  std::mutex mutex;
  std::condition_variable changed;
  size_t next = 0;
  std::vector<std::optional<absl::StatusOr<Completion>>> answers(requests.size());
  const auto work = [&] {
    while (true) {
      size_t mine;
      {
        std::lock_guard lock(mutex);
        if (next == requests.size()) return;
        mine = next++;
      }
      absl::StatusOr<Completion> answer = RunGenerate(client, requests[mine], nullptr);
      std::lock_guard lock(mutex);
      answers[mine] = std::move(answer);
      changed.notify_all();
    }
  };
  std::vector<std::thread> threads;
  const size_t count = std::min<size_t>(requests.size(), static_cast<size_t>(options.concurrency));
  for (size_t i = 0; i < count; ++i) threads.emplace_back(work);
  size_t failed = 0;
  absl::Status first_error;
  for (auto& slot : answers) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return slot.has_value(); });
    if (slot->ok()) {
      std::cout << Dump({{"text", (*slot)->text}}) << std::endl;
    } else {
      if (failed++ == 0) first_error = slot->status();
      std::cout << Dump({{"error", std::string(slot->status().message())}}) << std::endl;
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (failed == 0) return absl::OkStatus();
  return absl::Status(first_error.code(),
                      absl::StrCat(failed, " of ", requests.size(),
                                   " lines failed, the first so: ", first_error.message()));
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
