#include "status_view.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace tandem::tool {
namespace {

using v1::GetStatusResponse;
using v1::Histogram;
using v1::PlacementStatus;
using v1::WorkerStatus;

constexpr int kFewWorkers = 8;  // of a layer: each is named

std::optional<int64_t> Counter(const WorkerStatus& worker, const char* name) {
  const auto it = worker.counters().find(name);
  if (it == worker.counters().end()) return std::nullopt;
  return it->second;
}

const WorkerStatus* Find(const GetStatusResponse* status, const WorkerStatus& worker) {
  if (status == nullptr) return nullptr;
  for (const WorkerStatus& other : status->workers()) {
    if (other.id() == worker.id() && other.kind() == worker.kind()) return &other;
  }
  return nullptr;
}

// What it does, in a few words.
class Load {
 public:
  Load(const WorkerStatus& worker, const WorkerStatus* before, double seconds)
      : worker_(worker), before_(before), seconds_(seconds) {}

  std::string Text() {
    if (worker_.kind() == "gateway") {
      Value("jobs_running", "running");
      Value("jobs_waiting", "waiting");
      Rate("tokens_generated_total", "tokens/s");
      Rate("steps_total", "steps/s");
    } else if (worker_.kind() == "attention") {
      Value("sequences_live", "sequences");
      Value("pages_free", "pages free");
      Rate("steps_total", "steps/s");
      Rate("rows_total", "rows/s");
      LayerShares();
    } else {
      Value("requests_live", "requests");
      Rate("rows_total", "rows/s");
      if (const auto busy = Delta("busy_us_total")) {
        Add(absl::StrFormat("computes %.0f%% of the time",
                            1e-4 * static_cast<double>(*busy) / seconds_));
      }
    }
    constexpr uint64_t kLongMs = 1000;
    if (worker_.busy_ms() >= kLongMs) {
      Add(absl::StrFormat("busy for %.1f s", 1e-3 * static_cast<double>(worker_.busy_ms())));
    }
    if (worker_.silent_ms() >= kLongMs) {
      Add(absl::StrFormat("silent for %.1f s", 1e-3 * static_cast<double>(worker_.silent_ms())));
    }
    return std::move(text_);
  }

 private:
  void Add(const std::string& part) { absl::StrAppend(&text_, text_.empty() ? "" : ", ", part); }
  void Value(const char* counter, const char* what) {
    if (const auto value = Counter(worker_, counter)) Add(absl::StrCat(*value, " ", what));
  }
  // What it grew by; none if it was not there before, or has begun anew.
  std::optional<int64_t> Delta(const char* counter) const {
    if (before_ == nullptr) return std::nullopt;
    const auto now = Counter(worker_, counter);
    const auto then = Counter(*before_, counter);
    if (!now.has_value() || !then.has_value() || *now < *then) return std::nullopt;
    return *now - *then;
  }
  void Rate(const char* counter, const char* what) {
    const auto delta = Delta(counter);
    if (!delta.has_value()) return;
    Add(absl::StrFormat("%.*f %s", *delta < 10 * seconds_ ? 1 : 0,
                        static_cast<double>(*delta) / seconds_, what));
  }
  // Where its layers' time went.
  void LayerShares() {
    std::vector<std::pair<const char*, double>> parts;
    double all = 0;
    for (const auto& [counter, what] :
         {std::pair("layer_attention_us_total", "attention"),
          std::pair("layer_dispatch_us_total", "dispatch"), std::pair("layer_mlp_us_total", "mlp"),
          std::pair("layer_expert_wait_us_total", "expert wait"),
          std::pair("layer_combine_us_total", "combine")}) {
      parts.emplace_back(what, static_cast<double>(Delta(counter).value_or(0)));
      all += parts.back().second;
    }
    if (all == 0) return;
    for (const auto& [what, us] : parts) Add(absl::StrFormat("%s %.0f%%", what, 100 * us / all));
  }

  const WorkerStatus& worker_;
  const WorkerStatus* const before_;
  const double seconds_;
  std::string text_;
};

// Of the whole model; 0: nobody says.
uint64_t CountExperts(const PlacementStatus& placement) {
  return static_cast<uint64_t>(
      std::count_if(placement.holders().begin(), placement.holders().end(),
                    [](const auto& holders) { return holders.worker_ids_size() > 0; }));
}

// "832", "832 -> 640" while another placement is being loaded; and how many it could have, if that
// is not all.
std::string ExpertsText(const WorkerStatus& worker, uint64_t all_experts) {
  if (worker.kind() != "expert") return "";
  std::string text = absl::StrCat(worker.experts());
  if (worker.target_experts() != worker.experts()) {
    absl::StrAppend(&text, " -> ", worker.target_experts());
  }
  if (worker.expert_capacity() > 0 && worker.expert_capacity() < all_experts) {
    absl::StrAppend(&text, " of ", worker.expert_capacity());
  }
  return text;
}

// What came between two answers; all of it where `then` is null, or has more, as of an earlier
// gateway.
Histogram Since(const Histogram& now, const Histogram* then) {
  if (then == nullptr || then->counts_size() != now.counts_size()) return now;
  Histogram between = now;
  between.set_sum(now.sum() - then->sum());
  for (int i = 0; i < now.counts_size(); ++i) {
    if (then->counts(i) > now.counts(i)) return now;
    between.set_counts(i, now.counts(i) - then->counts(i));
  }
  return between;
}

const Histogram* FindHistogram(const WorkerStatus* worker, const std::string& name) {
  if (worker == nullptr) return nullptr;
  for (const Histogram& histogram : worker->histograms()) {
    if (histogram.name() == name) return &histogram;
  }
  return nullptr;
}

uint64_t CountOf(const Histogram& histogram) {
  return std::accumulate(histogram.counts().begin(), histogram.counts().end(), uint64_t{0});
}

std::string SecondsText(double seconds) {
  if (seconds < 0.1) return absl::StrFormat("%.1f ms", 1e3 * seconds);
  if (seconds < 10) return absl::StrFormat("%.0f ms", 1e3 * seconds);
  return absl::StrFormat("%.1f s", seconds);
}

// What requests waited for, where there have been any.
void AppendLatencies(const WorkerStatus& gateway, const WorkerStatus* since, std::string* text) {
  std::string lines;
  for (const auto& [name, what] : {std::pair("time_to_first_token_seconds", "first token"),
                                   std::pair("inter_token_latency_seconds", "next tokens"),
                                   std::pair("request_queue_time_seconds", "in the queue"),
                                   std::pair("e2e_request_latency_seconds", "whole answer")}) {
    const Histogram* const all = FindHistogram(&gateway, name);
    if (all == nullptr || CountOf(*all) == 0) continue;
    const Histogram histogram = Since(*all, FindHistogram(since, name));
    absl::StrAppendFormat(&lines, "  %-14s", what);
    for (const double q : {0.5, 0.9, 0.99}) {
      const std::optional<double> value = Quantile(histogram, q);
      std::string shown = "-";
      if (value.has_value() && std::isinf(*value)) {
        shown = absl::StrCat("> ", SecondsText(histogram.upper_bounds().rbegin()[0]));
      } else if (value.has_value()) {
        shown = SecondsText(*value);
      }
      absl::StrAppendFormat(&lines, " %10s", shown);
    }
    absl::StrAppendFormat(&lines, " %9d\n", CountOf(histogram));
  }
  if (lines.empty()) return;
  absl::StrAppendFormat(text, "%-16s %10s %10s %10s %9s\n%s", "latency", "p50", "p90", "p99", "of",
                        lines);
}

void AppendWorkers(const GetStatusResponse& status, const GetStatusResponse* before, double seconds,
                   const StatusViewOptions& options, std::string* text) {
  const bool has_registry = status.target_counter() > 0;
  const uint64_t all_experts =
      std::max(CountExperts(status.placement()), CountExperts(status.target()));
  absl::StrAppendFormat(text, "%-9s %4s  %-8s %6s", "", "id", "state", "loaded");
  if (has_registry) absl::StrAppendFormat(text, "  %9s  %-20s", "placement", "experts");
  absl::StrAppend(text, "  load, address, device\n");
  for (const WorkerStatus& worker : status.workers()) {
    absl::StrAppendFormat(text, "%-9s %4s  %-8s %5.0f%%", worker.kind(),
                          worker.id() > 0 ? absl::StrCat(worker.id()) : "", worker.state(),
                          100.0 * worker.loaded());
    if (has_registry) {
      absl::StrAppendFormat(
          text, "  %9s  %-20s",
          worker.placement_counter() > 0 ? absl::StrCat(worker.placement_counter()) : "",
          ExpertsText(worker, all_experts));
    }
    std::vector<std::string> rest = {Load(worker, Find(before, worker), seconds).Text(),
                                     worker.address(), worker.device()};
    std::erase(rest, "");
    for (const std::string& part : rest) absl::StrAppend(text, "  ", part);
    absl::StrAppend(text, "\n");
    const std::string& build = status.workers(0).build();
    if (!worker.build().empty() && worker.build() != build) {
      absl::StrAppendFormat(text, "    its program is version %s, the gateway's %s\n",
                            worker.build(), build);
    }
    if (!options.counters) continue;
    const std::map<std::string, int64_t> sorted(worker.counters().begin(), worker.counters().end());
    for (const auto& [name, value] : sorted) {
      absl::StrAppendFormat(text, "    %-40s %d\n", name, value);
    }
    for (const Histogram& histogram : worker.histograms()) {
      const uint64_t count = CountOf(histogram);
      absl::StrAppendFormat(text, "    %-40s %d values", histogram.name(), count);
      if (count > 0) {
        absl::StrAppendFormat(text, ", mean %.3g, median %.3g",
                              histogram.sum() / static_cast<double>(count),
                              *Quantile(histogram, 0.5));
      }
      absl::StrAppend(text, "\n");
    }
  }
}

// "0-3,7"
std::string RangesText(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    absl::StrAppend(&text, text.empty() ? "" : ",", numbers[i]);
    if (end - i > 1) absl::StrAppend(&text, "-", numbers[end - 1]);
    i = end;
  }
  return text;
}

using ExpertsOf = std::map<uint32_t, std::vector<int>>;  // by worker

// How many experts each worker has, and how many have how many holders.
std::string CountsText(const ExpertsOf& experts, const std::map<int, int>& copies) {
  std::string text;
  for (const auto& [holders, count] : copies) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", count, " at ", holders,
                    holders == 1 ? " worker" : " workers");
  }
  absl::StrAppend(&text, ";");
  if (experts.size() > kFewWorkers) {
    const auto fewer = [](const auto& a, const auto& b) {
      return a.second.size() < b.second.size();
    };
    const auto [least, most] = std::minmax_element(experts.begin(), experts.end(), fewer);
    return absl::StrCat(text, " ", least->second.size(), " to ", most->second.size(),
                        " at each of ", experts.size(), " workers");
  }
  for (const auto& [worker, mine] : experts) {
    absl::StrAppend(&text, "  ", worker, ": ", mine.size());
  }
  return text;
}

// Layers that look alike share a line.
void AppendMap(const PlacementStatus& placement, const char* what, bool each_expert,
               std::string* text) {
  absl::StrAppendFormat(text, "placement %d, %s: layers, %s\n", placement.counter(), what,
                        each_expert ? "worker: its experts" : "experts; worker: how many it has");
  std::vector<std::pair<std::string, std::vector<int>>> lines;
  for (uint32_t layer = 0; layer < placement.num_layers(); ++layer) {
    ExpertsOf experts;
    std::map<int, int> copies;
    for (uint32_t expert = 0; expert < placement.num_experts(); ++expert) {
      const auto index = static_cast<int>(layer * placement.num_experts() + expert);
      if (index >= placement.holders_size()) break;
      for (const uint32_t worker : placement.holders(index).worker_ids()) {
        experts[worker].push_back(static_cast<int>(expert));
      }
      ++copies[placement.holders(index).worker_ids_size()];
    }
    if (experts.empty()) continue;  // a dense layer
    std::string line = CountsText(experts, copies);
    if (each_expert) {
      line.clear();
      for (const auto& [worker, mine] : experts) {
        absl::StrAppend(&line, "  ", worker, ": ", RangesText(mine));
      }
    }
    if (lines.empty() || lines.back().first != line) lines.push_back({line, {}});
    lines.back().second.push_back(static_cast<int>(layer));
  }
  for (const auto& [line, layers] : lines) {
    absl::StrAppendFormat(text, "  %-7s %s\n", RangesText(layers), line);
  }
}

}  // namespace

std::optional<double> Quantile(const Histogram& histogram, double q) {
  const auto count = static_cast<double>(CountOf(histogram));
  if (count == 0) return std::nullopt;
  double below = 0;
  double lower = 0;
  for (int i = 0; i < histogram.upper_bounds_size(); ++i) {
    const auto here = static_cast<double>(histogram.counts(i));
    const double upper = histogram.upper_bounds(i);
    if (here > 0 && below + here >= q * count) {
      return lower + (upper - lower) * (q * count - below) / here;
    }
    below += here;
    lower = upper;
  }
  return std::numeric_limits<double>::infinity();
}

std::string StatusText(const GetStatusResponse& status, const GetStatusResponse* before,
                       double seconds, const StatusViewOptions& options,
                       const GetStatusResponse* since) {
  std::string text = absl::StrCat(status.state(), ": ", status.detail(), "\n");
  if (!status.model().empty()) absl::StrAppend(&text, "model ", status.model(), "\n");
  if (status.has_default_sampling()) {
    const v1::Sampling& defaults = status.default_sampling();
    absl::StrAppendFormat(
        &text, "defaults: temperature %g, top_k %u, top_p %g, min_p %g, repetition_penalty %g\n",
        defaults.temperature(), defaults.top_k(), defaults.top_p(), defaults.min_p(),
        defaults.has_repetition_penalty() ? defaults.repetition_penalty() : 1.0f);
  }
  if (status.target_counter() > 0) {
    absl::StrAppend(&text, status.placement_counter() > 0
                               ? absl::StrCat("placement ", status.placement_counter(), " in use")
                               : "no placement in use yet");
    if (status.target_counter() != status.placement_counter()) {
      absl::StrAppend(&text, ", ", status.target_counter(), " being loaded");
    }
    absl::StrAppend(&text, "\n");
  }
  AppendWorkers(status, before, seconds, options, &text);
  if (status.workers_size() > 0) {
    AppendLatencies(status.workers(0), Find(since, status.workers(0)), &text);
  }
  if (status.has_placement() && status.placement().counter() > 0) {
    AppendMap(status.placement(), "in use", options.map, &text);
  }
  if (status.has_target()) AppendMap(status.target(), "being loaded", options.map, &text);
  return text;
}

std::string FitToScreen(const std::string& text, int rows, int columns) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  const size_t room = static_cast<size_t>(std::max(rows, 2));
  if (lines.size() > room) {
    const size_t left_out = lines.size() - (room - 1);
    lines.resize(room - 1);
    lines.push_back(absl::StrCat("... and ", left_out, " lines more"));
  }
  for (std::string& line : lines) line.resize(std::min<size_t>(line.size(), std::max(columns, 1)));
  return absl::StrJoin(lines, "\n");
}

}  // namespace tandem::tool
