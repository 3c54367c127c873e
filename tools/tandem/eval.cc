#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/status.h"
#include "grade.h"
#include "io.h"
#include "run_all.h"

namespace tandem::tool {
namespace {

constexpr size_t kMaxWrongShown = 100;
constexpr size_t kMaxShownBytes = 200;  // of one text

struct Options {
  ConnectOptions connect;
  std::string file;
  std::optional<int64_t> count;
  uint32_t max_tokens = 160;
  int concurrency = 16;
  std::string replies;
  bool wrong = false;
  std::optional<double> require_overall;
  std::optional<double> require_task;
};

absl::StatusOr<std::vector<Problem>> ReadProblems(const Options& options) {
  std::vector<Problem> problems;
  TANDEM_RETURN_IF_ERROR(
      ForEachJsonLine(options.file, [&](const nlohmann::json& line) -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(Problem problem, ParseProblem(line));
        problems.push_back(std::move(problem));
        return absl::OkStatus();
      }));
  if (problems.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.file, " holds no problems"));
  }
  if (!options.count) return problems;
  std::vector<Problem> selected;
  for (size_t index : SelectEvenly(problems, static_cast<size_t>(*options.count))) {
    selected.push_back(std::move(problems[index]));
  }
  return selected;
}

v1::GenerateRequest ToRequest(const Problem& problem, const Options& options) {
  v1::GenerateRequest request;
  for (const ChatMessage& message : problem.messages) AddMessage(request, message);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(options.max_tokens);
  return request;
}

nlohmann::json ReplyLine(const Problem& problem, const absl::StatusOr<Completion>& answer) {
  nlohmann::json messages = nlohmann::json::array();
  for (const ChatMessage& message : problem.messages) {
    messages.push_back({{"role", message.role}, {"content", message.content}});
  }
  nlohmann::json line = {
      {"task", problem.task}, {"messages", std::move(messages)}, {"answer", problem.answer}};
  if (!answer.ok()) {
    line["error"] = std::string(answer.status().message());
    line["right"] = false;
    return line;
  }
  line["reply"] = answer->text;
  line["ids"] = answer->ids;
  line["log_probs"] = answer->log_probs;
  line["finish_reason"] = FinishReasonName(answer->finished.reason());
  line["right"] = IsRight(answer->text, problem.answer);
  return line;
}

// For a terminal's line: quoted, control characters escaped, cut where it is long.
std::string Quoted(const std::string& text) {
  if (text.size() <= kMaxShownBytes) return Dump(text);
  return absl::StrCat(Dump(text.substr(0, kMaxShownBytes)), "...");
}

std::string DescribeWrong(const Problem& problem, const std::string& reply) {
  return absl::StrCat(problem.task, ": ", Quoted(problem.messages.back().content), "\n  expected ",
                      Quoted(problem.answer), "\n  got      ", Quoted(reply), "\n");
}

// What is written while the answers come, in the order of the problems.
class Grader {
 public:
  Grader(const Options& options, const std::vector<Problem>& problems)
      : options_(options), problems_(problems) {}

  absl::Status Open() {
    if (options_.replies.empty()) return absl::OkStatus();
    replies_.open(options_.replies, std::ios::binary);
    return CheckReplies();
  }

  void Take(size_t index, const absl::StatusOr<Completion>& answer) {
    const Problem& problem = problems_[index];
    if (replies_.is_open()) replies_ << Dump(ReplyLine(problem, answer)) << "\n";
    if (answer.ok()) {
      const bool right = IsRight(answer->text, problem.answer);
      tally_.AddReply(problem.task, right, answer->ids.size());
      if (!right && num_wrong_++ < kMaxWrongShown) wrong_ += DescribeWrong(problem, answer->text);
    } else {
      tally_.AddFailure(problem.task);
    }
    if (terminal_) std::fprintf(stderr, "\r%zu of %zu", index + 1, problems_.size());
  }

  absl::Status Close() {
    if (terminal_) std::fprintf(stderr, "\r\x1b[K");  // back to the line's begin, and clear it
    if (options_.wrong) {
      std::fputs(wrong_.c_str(), stderr);
      if (num_wrong_ > kMaxWrongShown) {
        std::fprintf(stderr, "and %zu more wrong ones\n", num_wrong_ - kMaxWrongShown);
      }
    }
    if (!replies_.is_open()) return absl::OkStatus();
    replies_.flush();
    return CheckReplies();
  }

  const Tally& tally() const { return tally_; }

 private:
  absl::Status CheckReplies() const {
    if (replies_) return absl::OkStatus();
    return absl::UnknownError(absl::StrCat("cannot write ", options_.replies));
  }

  const Options& options_;
  const std::vector<Problem>& problems_;
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  std::ofstream replies_;
  Tally tally_;
  size_t num_wrong_ = 0;
  std::string wrong_;  // text of the first kMaxWrongShown
};

void Print(const Tally& tally, double seconds, bool json) {
  if (json) {
    nlohmann::json figures = ToJson(tally);
    figures["seconds"] = seconds;
    std::cout << Dump(figures) << std::endl;
    return;
  }
  std::cout << Table(tally) << std::flush;
  const Score all = tally.All();
  std::fprintf(stderr, "[%lld problems in %.1f s; %.1f tokens per second]\n",
               static_cast<long long>(all.problems), seconds,
               static_cast<double>(all.tokens) / seconds);
}

absl::Status Run(const Options& options) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Problem> problems, ReadProblems(options));
  std::vector<v1::GenerateRequest> requests;
  requests.reserve(problems.size());
  for (const Problem& problem : problems) requests.push_back(ToRequest(problem, options));
  Grader grader(options, problems);
  TANDEM_RETURN_IF_ERROR(grader.Open());
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));

  const auto begin = std::chrono::steady_clock::now();
  const absl::Status asked = RunAll(
      *client, requests, options.concurrency,
      [&](size_t index, const absl::StatusOr<Completion>& answer) { grader.Take(index, answer); });
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  const absl::Status closed = grader.Close();
  const Score all = grader.tally().All();
  if (all.failed < all.problems) Print(grader.tally(), elapsed.count(), options.connect.json);
  TANDEM_RETURN_IF_ERROR(asked);
  TANDEM_RETURN_IF_ERROR(closed);
  return CheckLimits(grader.tally(), options.require_overall, options.require_task);
}

}  // namespace

Command AddEval(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand(
      "eval", "asks graded problems, greedily, and prints a table of accuracy per task");
  app->AddOption("file", options->file,
                 "lines {\"task\": ..., \"messages\": [...], \"answer\": ...}; a reply is right if "
                 "its last line is the answer")
      .Required();
  app->AddOption("-n,--count", options->count, "problems to ask at most, evenly of each task")
      .Range(int64_t{1}, int64_t{1} << 40);
  app->AddOption("--max-tokens", options->max_tokens, "tokens of a reply at most")
      .Range(1, 1 << 20)
      .ShowDefault();
  app->AddOption("--concurrency", options->concurrency, "problems that run at once")
      .Range(1, 256)
      .ShowDefault();
  app->AddOption("--replies", options->replies,
                 "write a line {\"task\", \"messages\", \"answer\", \"reply\", \"ids\", "
                 "\"log_probs\", \"finish_reason\", \"right\"} per problem to this file");
  app->AddFlag("--wrong", options->wrong, "show the first wrong replies on standard error");
  app->AddOption("--require-overall", options->require_overall,
                 "fail if fewer percent of all problems are right")
      .Range(0.0, 100.0);
  app->AddOption("--require-task", options->require_task,
                 "fail if fewer percent of any task's problems are right")
      .Range(0.0, 100.0);
  options->connect.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
