#include "tools/simulate/report.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace tandem::simulate {
namespace {

using Columns = std::vector<std::pair<std::string, std::string>>;

Columns ColumnsOf(const SimulationOptions& options, const SimulationReport& report) {
  Columns columns;
  const auto add = [&](const char* name, const auto& value) {
    columns.emplace_back(name, absl::StrCat(value));
  };
  add("attention_workers", options.attention_workers);
  add("expert_workers", options.expert_workers);
  add("streams", options.load.streams);
  add("offered_requests_per_s", options.load.requests_per_s);
  add("skew", options.skew);
  add("copies", options.copies);
  add("seed", options.seed);
  add("measured_s", report.measured_s);
  add("tokens_per_s", report.tokens_per_s);
  add("prompt_tokens_per_s", report.prompt_tokens_per_s);
  add("requests_per_s", report.requests_per_s);
  const auto add_summary = [&](const std::string& name, const Summary& summary) {
    columns.emplace_back(name + "_p50_ms", absl::StrCat(summary.p50));
    columns.emplace_back(name + "_p90_ms", absl::StrCat(summary.p90));
    columns.emplace_back(name + "_p99_ms", absl::StrCat(summary.p99));
  };
  add_summary("step", report.step_ms);
  add_summary("ttft", report.first_token_ms);
  add_summary("itl", report.between_tokens_ms);
  add("refused", report.refused);
  add("failed", report.failed);
  add("preemptions", report.preemptions);
  add("waiting_at_end", report.waiting);
  const auto add_share = [&](const std::string& name, const BusyShare& share) {
    columns.emplace_back(name + "_busy_mean", absl::StrCat(share.mean));
    columns.emplace_back(name + "_busy_max", absl::StrCat(share.max));
  };
  add_share("attention", report.attention);
  add_share("expert", report.experts);
  add_share("attention_port", report.attention_port);
  add_share("expert_port", report.expert_port);
  add("gateway_busy", report.gateway);
  add("step_share_attention", report.in_attention);
  add("step_share_network", report.in_network);
  add("step_share_queue", report.in_queue);
  add("step_share_experts", report.in_experts);
  add("step_share_engine", report.in_engine);
  add("calls_per_layer", report.calls_per_layer);
  add("calls_per_computation", report.calls_per_computation);
  add("experts_per_computation", report.experts_per_computation);
  add("routes_per_expert", report.routes_per_expert);
  add("expert_imbalance", report.imbalance);
  add("bound", report.bound);
  add("events", report.events);
  return columns;
}

}  // namespace

std::string TableHeader() {
  return "attn expert streams |  tokens/s  step ms | TTFT p50    p99 ms | ITL p50    p99 ms | "
         "busiest %: "
         "attn  exp a.port e.port   gw | step %: attn  net queue  exp other | asked/layer "
         "exp/call rows/exp uneven | bound";
}

std::string TableLine(const SimulationOptions& options, const SimulationReport& report) {
  const auto percent = [](double share) { return 100 * share; };
  return absl::StrFormat(
      "%4d %6d %7d | %9.1f %8.2f | %8.1f %9.1f | %7.1f %9.1f |            %4.0f %4.0f %6.0f %6.0f "
      "%4.0f |         %4.0f %4.0f %5.0f %4.0f %5.0f | %11.1f %8.1f %8.1f %6.2f | %s",
      options.attention_workers, options.expert_workers, options.load.streams, report.tokens_per_s,
      report.step_ms.p50, report.first_token_ms.p50, report.first_token_ms.p99,
      report.between_tokens_ms.p50, report.between_tokens_ms.p99, percent(report.attention.max),
      percent(report.experts.max), percent(report.attention_port.max),
      percent(report.expert_port.max), percent(report.gateway), percent(report.in_attention),
      percent(report.in_network), percent(report.in_queue), percent(report.in_experts),
      percent(report.in_engine), report.calls_per_layer, report.experts_per_computation,
      report.routes_per_expert, report.imbalance, report.bound);
}

std::string CsvHeader() {
  return absl::StrJoin(ColumnsOf({}, {}), ",", [](std::string* out, const auto& column) {
    absl::StrAppend(out, column.first);
  });
}

std::string CsvLine(const SimulationOptions& options, const SimulationReport& report) {
  return absl::StrJoin(ColumnsOf(options, report), ",", [](std::string* out, const auto& column) {
    absl::StrAppend(out, column.second);
  });
}

}  // namespace tandem::simulate
