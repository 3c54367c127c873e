// What is logged while it lives, for tests.
#ifndef TANDEM_TESTS_LOG_LINES_H_
#define TANDEM_TESTS_LOG_LINES_H_

#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"

namespace tandem {

// Stands in for the default logger. Of the test's thread: what others log may be missing.
class LogLines {
 public:
  explicit LogLines(std::unique_ptr<spdlog::formatter> formatter)
      : before_(spdlog::default_logger()) {
    auto logger = std::make_shared<spdlog::logger>(
        "tandem", std::make_shared<spdlog::sinks::ostream_sink_mt>(lines_));
    logger->set_formatter(std::move(formatter));
    spdlog::set_default_logger(std::move(logger));
  }
  ~LogLines() { spdlog::set_default_logger(before_); }
  LogLines(const LogLines&) = delete;
  LogLines& operator=(const LogLines&) = delete;

  std::string Text() const { return lines_.str(); }

 private:
  const std::shared_ptr<spdlog::logger> before_;
  std::ostringstream lines_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_LOG_LINES_H_
