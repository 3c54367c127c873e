// Grading: problems with one right answer each, whether a reply gives it, and how many did per
// task. Pure: no service, no output.
#ifndef TANDEM_TOOLS_TANDEM_GRADE_H_
#define TANDEM_TOOLS_TANDEM_GRADE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "io.h"
#include "nlohmann/json.hpp"

namespace tandem::tool {

struct Problem {
  std::string task;                   // what kind of problem, such as "add"
  std::vector<ChatMessage> messages;  // ends with the user's question
  std::string answer;                 // one line, no white space around it
};

// Reads {"task": ..., "messages": [{"role": ..., "content": ...}, ...], "answer": ...}. Refuses
// what no reply could get right: an empty answer, one of several lines, one with white space around
// it.
absl::StatusOr<Problem> ParseProblem(const nlohmann::json& line);

// The reply's last line: the whole without white space around it, then what is behind the last
// '\n', again without white space around it. White space is ASCII: " \t\n\v\f\r". A view of
// `reply`.
absl::string_view LastLine(absl::string_view reply);

// Whether the last line equals the answer. A working on the lines before does not count.
bool IsRight(absl::string_view reply, absl::string_view answer);

// The indices, ascending, of min(count, problems.size()) problems, the same number of each task but
// for one (tasks first by name get the odd ones), the first of each in their order. A task that has
// fewer gives all of them, and the others share the rest.
std::vector<size_t> SelectEvenly(const std::vector<Problem>& problems, size_t count);

// Counts of problems. One that got no reply is not right.
struct Score {
  int64_t problems = 0;
  int64_t right = 0;
  int64_t failed = 0;  // got no reply
  int64_t tokens = 0;  // of all replies

  double accuracy_percent() const;  // 0 without problems
  double mean_tokens() const;       // per reply, 0 without replies
  void Add(const Score& other);
};

class Tally {
 public:
  void AddReply(const std::string& task, bool right, size_t tokens);
  void AddFailure(const std::string& task);

  const std::map<std::string, Score>& tasks() const { return tasks_; }
  Score All() const;

 private:
  std::map<std::string, Score> tasks_;
};

// The tasks by name, then "all": lines of aligned columns task, problems, right, accuracy, tokens.
std::string Table(const Tally& tally);
// {"tasks": {NAME: {...}}, "all": {...}}, each with problems, right, failed, accuracy_percent and
// mean_tokens.
nlohmann::json ToJson(const Tally& tally);

// FailedPrecondition, with every limit that was missed, if all problems together are under
// `overall_percent` or one task's under `task_percent`. Unset: no limit.
absl::Status CheckLimits(const Tally& tally, std::optional<double> overall_percent,
                         std::optional<double> task_percent);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_GRADE_H_
