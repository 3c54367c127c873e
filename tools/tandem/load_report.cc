#include "load_report.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tandem::tool {
namespace {

constexpr double kMs = 1e3;

absl::Status Incomplete(const std::string& what) {
  return absl::DataLossError(absl::StrCat("an answer is not whole: ", what));
}

nlohmann::json SummaryJson(const Summary& summary) {
  return {{"count", summary.count}, {"mean", summary.mean}, {"p50", summary.p50},
          {"p90", summary.p90},     {"p99", summary.p99},   {"max", summary.max}};
}

}  // namespace

void LoadRecord::Take(const v1::GenerateResponse& response, double now_s) {
  switch (response.event_case()) {
    case v1::GenerateResponse::kStarted:
      in_order = in_order && num_started == 0 && num_finished == 0 && token_s.empty();
      ++num_started;
      started = response.started();
      break;
    case v1::GenerateResponse::kChunk:
      in_order = in_order && num_started == 1 && num_finished == 0;
      token_s.insert(token_s.end(), response.chunk().token_ids_size(), now_s);
      break;
    case v1::GenerateResponse::kFinished:
      in_order = in_order && num_started == 1 && num_finished == 0;
      ++num_finished;
      finished = response.finished();
      break;
    case v1::GenerateResponse::EVENT_NOT_SET:
      in_order = false;
      break;
  }
}

absl::Status CheckComplete(const LoadRecord& record) {
  if (!record.status.ok()) return record.status;
  if (!record.in_order || record.num_started != 1 || record.num_finished != 1) {
    return Incomplete("it is not one beginning, chunks and one end");
  }
  const auto tokens = static_cast<uint32_t>(record.token_s.size());
  if (tokens != record.max_tokens) {
    return Incomplete(absl::StrCat(tokens, " of ", record.max_tokens, " tokens came"));
  }
  const v1::GenerateResponse::Finished& finished = record.finished;
  if (finished.completion_tokens() != tokens || finished.prompt_tokens() != record.prompt_tokens) {
    return Incomplete(absl::StrCat("it counts ", finished.prompt_tokens(), " and ",
                                   finished.completion_tokens(), " tokens, but ",
                                   record.prompt_tokens, " were sent and ", tokens, " came"));
  }
  if (finished.reason() != v1::GenerateResponse::FINISH_REASON_LENGTH) {
    return Incomplete("it did not end by its length");
  }
  return absl::OkStatus();
}

LoadReport Report(const std::vector<LoadRecord>& records) {
  LoadReport report;
  double begin = std::numeric_limits<double>::infinity(), end = 0;
  double prompt_tokens = 0, tokens = 0;
  std::vector<double> first_token, between_tokens, per_token, whole;
  for (const LoadRecord& record : records) {
    ++report.sent;
    if (!record.measured) continue;
    begin = std::min(begin, record.due_s);
    end = std::max(end, record.end_s);
    if (const absl::Status status = CheckComplete(record); !status.ok()) {
      ++(absl::IsResourceExhausted(status) ? report.refused : report.failed);
      ++report
            .errors[absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message())];
      continue;
    }
    ++report.complete;
    prompt_tokens += record.prompt_tokens;
    tokens += record.max_tokens;
    const std::vector<double>& times = record.token_s;
    first_token.push_back(kMs * (times.front() - record.due_s));
    whole.push_back(kMs * (record.end_s - record.due_s));
    if (times.size() < 2) continue;
    per_token.push_back(kMs * (times.back() - times.front()) /
                        static_cast<double>(times.size() - 1));
    for (size_t i = 1; i < times.size(); ++i) {
      if (times[i] > times[i - 1]) between_tokens.push_back(kMs * (times[i] - times[i - 1]));
    }
  }
  report.first_token = Summarize(std::move(first_token));
  report.between_tokens = Summarize(std::move(between_tokens));
  report.per_token = Summarize(std::move(per_token));
  report.whole = Summarize(std::move(whole));
  report.seconds = std::max(end - begin, 0.0);
  if (report.seconds > 0) {
    report.requests_per_s = static_cast<double>(report.complete) / report.seconds;
    report.prompt_tokens_per_s = prompt_tokens / report.seconds;
    report.tokens_per_s = tokens / report.seconds;
  }
  return report;
}

std::string ToText(const LoadReport& report) {
  std::string text = absl::StrFormat(
      "%d complete, %d refused, %d failed in %.1f s; %d sent with the warm-up\n"
      "%.2f requests/s, %.1f prompt tokens/s, %.1f tokens/s\n"
      "%-16s %9s %9s %9s %9s %9s\n",
      report.complete, report.refused, report.failed, report.seconds, report.sent,
      report.requests_per_s, report.prompt_tokens_per_s, report.tokens_per_s, "ms", "mean", "p50",
      "p90", "p99", "max");
  const auto add = [&](const char* name, const Summary& summary) {
    absl::StrAppendFormat(&text, "%-16s %9.1f %9.1f %9.1f %9.1f %9.1f\n", name, summary.mean,
                          summary.p50, summary.p90, summary.p99, summary.max);
  };
  add("first token", report.first_token);
  add("between tokens", report.between_tokens);
  add("per token", report.per_token);
  add("whole answer", report.whole);
  for (const auto& [why, count] : report.errors) {
    absl::StrAppendFormat(&text, "%d times %s\n", count, why);
  }
  return text;
}

nlohmann::json ToJson(const LoadReport& report) {
  return {{"sent", report.sent},
          {"complete", report.complete},
          {"refused", report.refused},
          {"failed", report.failed},
          {"errors", report.errors},
          {"seconds", report.seconds},
          {"requests_per_s", report.requests_per_s},
          {"prompt_tokens_per_s", report.prompt_tokens_per_s},
          {"tokens_per_s", report.tokens_per_s},
          {"ttft_ms", SummaryJson(report.first_token)},
          {"itl_ms", SummaryJson(report.between_tokens)},
          {"tpot_ms", SummaryJson(report.per_token)},
          {"e2e_ms", SummaryJson(report.whole)}};
}

}  // namespace tandem::tool
