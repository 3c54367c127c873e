// How log lines look: for people, or as JSON for what collects them.
#ifndef TANDEM_COMMON_SERVICE_LOG_FORMAT_H_
#define TANDEM_COMMON_SERVICE_LOG_FORMAT_H_

#include <memory>

#include "spdlog/formatter.h"

namespace tandem {

// [2026-11-28 13:00:00.123] [tandem] [warning] a sentence request_id=7f31
// In local time; the fields are those of LogScope.
std::unique_ptr<spdlog::formatter> MakeTextLogFormatter();

// {"time":"2026-11-28T13:00:00.123Z","level":"warning","thread":17,"message":"a sentence",
//  "request_id":"7f31"}
// One line each, in UTC. What is not UTF-8 is replaced.
std::unique_ptr<spdlog::formatter> MakeJsonLogFormatter();

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_LOG_FORMAT_H_
