// What the log says of a piece of work besides its sentences: above all whose request it is.
#ifndef TANDEM_COMMON_LOG_SCOPE_H_
#define TANDEM_COMMON_LOG_SCOPE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tandem {

// Keys are lower case with underscores, and none of the log's own: time, level, thread, message.
using LogValue = std::variant<std::string, int64_t>;
using LogFields = std::vector<std::pair<const char*, LogValue>>;

// While it lives, every line that its thread logs carries its fields, and those of the scopes
// around it: as key=value behind the sentence, or as members in JSON (common/service/log_format.h).
// Costs no more than the fields themselves where nothing is logged. Belongs to one thread, in which
// scopes end in the reverse order of their begins.
class LogScope {
 public:
  explicit LogScope(LogFields fields)
      : fields_(std::move(fields)), outer_(std::exchange(innermost_, this)) {}
  ~LogScope() { innermost_ = outer_; }
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;

  // Those of this thread's scopes, the outermost's first.
  static LogFields Current() {
    LogFields all;
    Append(innermost_, &all);
    return all;
  }

 private:
  static void Append(const LogScope* scope, LogFields* all) {
    if (scope == nullptr) return;
    Append(scope->outer_, all);
    all->insert(all->end(), scope->fields_.begin(), scope->fields_.end());
  }

  const LogFields fields_;
  const LogScope* const outer_;
  static inline thread_local const LogScope* innermost_ = nullptr;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_LOG_SCOPE_H_
