#include "grade.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace tandem::tool {
namespace {

nlohmann::json ToJson(const Score& score) {
  return {{"problems", score.problems},
          {"right", score.right},
          {"failed", score.failed},
          {"accuracy_percent", score.accuracy_percent()},
          {"mean_tokens", score.mean_tokens()}};
}

std::string Missed(absl::string_view who, const Score& score, double limit_percent) {
  return absl::StrFormat("%s is at %.1f%% (%d of %d), under the %g%% asked for", who,
                         score.accuracy_percent(), score.right, score.problems, limit_percent);
}

}  // namespace

absl::StatusOr<Problem> ParseProblem(const nlohmann::json& line) {
  Problem problem;
  TANDEM_ASSIGN_OR_RETURN(problem.task, StringMember(line, "task"));
  TANDEM_ASSIGN_OR_RETURN(problem.messages, MessagesMember(line));
  TANDEM_ASSIGN_OR_RETURN(problem.answer, StringMember(line, "answer"));
  if (problem.task.empty()) return absl::InvalidArgumentError("\"task\" is empty");
  if (problem.messages.empty() || problem.messages.back().role != "user") {
    return absl::InvalidArgumentError("\"messages\" does not end with a user's message");
  }
  if (problem.answer.empty()) return absl::InvalidArgumentError("\"answer\" is empty");
  if (LastLine(problem.answer) != problem.answer) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"answer\" is ", Dump(problem.answer),
                     ", which is not one line without white space around it"));
  }
  return problem;
}

absl::string_view LastLine(absl::string_view reply) {
  reply = absl::StripAsciiWhitespace(reply);
  const size_t newline = reply.rfind('\n');
  if (newline != absl::string_view::npos) reply.remove_prefix(newline + 1);
  return absl::StripAsciiWhitespace(reply);
}

bool IsRight(absl::string_view reply, absl::string_view answer) {
  return LastLine(reply) == answer;
}

std::vector<size_t> SelectEvenly(const std::vector<Problem>& problems, size_t count) {
  // Every task's first problem comes before any task's second one.
  std::map<std::string, size_t> seen;
  std::vector<size_t> ranks(problems.size());
  std::vector<size_t> order(problems.size());
  for (size_t i = 0; i < problems.size(); ++i) {
    ranks[i] = seen[problems[i].task]++;
    order[i] = i;
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return ranks[a] != ranks[b] ? ranks[a] < ranks[b] : problems[a].task < problems[b].task;
  });
  order.resize(std::min(count, order.size()));
  std::sort(order.begin(), order.end());
  return order;
}

double Score::accuracy_percent() const {
  return problems == 0 ? 0.0 : 100.0 * static_cast<double>(right) / static_cast<double>(problems);
}

double Score::mean_tokens() const {
  const int64_t replies = problems - failed;
  return replies == 0 ? 0.0 : static_cast<double>(tokens) / static_cast<double>(replies);
}

void Score::Add(const Score& other) {
  problems += other.problems;
  right += other.right;
  failed += other.failed;
  tokens += other.tokens;
}

void Tally::AddReply(const std::string& task, bool right, size_t tokens) {
  tasks_[task].Add(
      {.problems = 1, .right = right ? 1 : 0, .failed = 0, .tokens = static_cast<int64_t>(tokens)});
}

void Tally::AddFailure(const std::string& task) {
  tasks_[task].Add({.problems = 1, .right = 0, .failed = 1, .tokens = 0});
}

Score Tally::All() const {
  Score all;
  for (const auto& [task, score] : tasks_) all.Add(score);
  return all;
}

std::string Table(const Tally& tally) {
  size_t width = 4;
  for (const auto& [task, score] : tally.tasks()) width = std::max(width, task.size());
  std::string table = absl::StrFormat("%-*s  problems   right  accuracy  tokens\n",
                                      static_cast<int>(width), "task");
  const auto add = [&](absl::string_view name, const Score& score) {
    absl::StrAppendFormat(&table, "%-*s  %8d  %6d  %7.1f%%  %6.1f\n", static_cast<int>(width), name,
                          score.problems, score.right, score.accuracy_percent(),
                          score.mean_tokens());
  };
  for (const auto& [task, score] : tally.tasks()) add(task, score);
  add("all", tally.All());
  return table;
}

nlohmann::json ToJson(const Tally& tally) {
  nlohmann::json tasks = nlohmann::json::object();
  for (const auto& [task, score] : tally.tasks()) tasks[task] = ToJson(score);
  return {{"tasks", std::move(tasks)}, {"all", ToJson(tally.All())}};
}

absl::Status CheckLimits(const Tally& tally, std::optional<double> overall_percent,
                         std::optional<double> task_percent) {
  std::vector<std::string> missed;
  const Score all = tally.All();
  if (overall_percent && all.accuracy_percent() < *overall_percent) {
    missed.push_back(Missed("the overall accuracy", all, *overall_percent));
  }
  for (const auto& [task, score] : tally.tasks()) {
    if (task_percent && score.accuracy_percent() < *task_percent) {
      missed.push_back(Missed(task, score, *task_percent));
    }
  }
  if (missed.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrJoin(missed, "; "));
}

}  // namespace tandem::tool
