#include "status_view.h"

#include <algorithm>
#include <cstdint>
#include <map>
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
    } else {
      Value("requests_live", "requests");
      Rate("rows_total", "rows/s");
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
  void Rate(const char* counter, const char* what) {
    if (before_ == nullptr) return;
    const auto now = Counter(worker_, counter);
    const auto then = Counter(*before_, counter);
    if (!now.has_value() || !then.has_value() || *now < *then) return;
    Add(absl::StrFormat("%.*f %s", *now - *then < 10 * seconds_ ? 1 : 0,
                        static_cast<double>(*now - *then) / seconds_, what));
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

std::string StatusText(const GetStatusResponse& status, const GetStatusResponse* before,
                       double seconds, const StatusViewOptions& options) {
  std::string text = absl::StrCat(status.state(), ": ", status.detail(), "\n");
  if (!status.model().empty()) absl::StrAppend(&text, "model ", status.model(), "\n");
  if (status.has_default_sampling()) {
    const v1::Sampling& defaults = status.default_sampling();
    absl::StrAppendFormat(&text, "defaults: temperature %g, top_k %u, top_p %g\n",
                          defaults.temperature(), defaults.top_k(), defaults.top_p());
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
