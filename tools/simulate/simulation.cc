#include "tools/simulate/simulation.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "gateway/placement_planner.h"
#include "tools/simulate/event_queue.h"
#include "tools/simulate/expert_side.h"
#include "tools/simulate/routing.h"

namespace tandem::simulate {
namespace {

constexpr double kFull = 0.85;

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options)
      : options_(options),
        costs_(options.model, options.constants),
        placement_random_(options.seed),
        routing_(options.model, options.skew, placement_random_),
        gateway_(&events_, &costs_, options.policy, options.load, options.seed + 1) {}

  absl::StatusOr<SimulationReport> Run() {
    TANDEM_RETURN_IF_ERROR(Place());
    for (int i = 0; i < options_.expert_workers; ++i) {
      experts_.push_back(std::make_unique<ExpertSide>(&events_, &costs_));
    }
    const AttentionSide::Environment environment{&events_, &costs_, &routing_, &placement_,
                                                 &experts_};
    for (int i = 0; i < options_.attention_workers; ++i) {
      const auto id = static_cast<WorkerId>(i + 1);
      attention_.push_back(std::make_unique<AttentionSide>(
          environment, i, options_.seed * 1000003 + id,
          [this, id](StepResult result) { gateway_.OnStepDone(id, std::move(result)); }));
      gateway_.AddWorker(id, attention_.back().get(),
                         {options_.model.num_layers, static_cast<int32_t>(options_.cache_pages),
                          options_.model.vocab_size});
    }
    gateway_.Start();
    TANDEM_RETURN_IF_ERROR(RunUntil([this] { return IsWarm(); }, "warm up"));
    ResetCounts();
    const Nanos begin = events_.now();
    TANDEM_RETURN_IF_ERROR(RunUntil([this] { return IsMeasured(); }, "be measured"));
    return Report(events_.now() - begin);
  }

 private:
  absl::Status Place() {
    PlanRequest request;
    request.config = &options_.model;
    for (int i = 0; i < options_.expert_workers; ++i) {
      ExpertHost& host = request.hosts.emplace_back();
      host.worker.id = static_cast<WorkerId>(i + 1);
      if (options_.expert_capacity > 0) host.capacity = options_.expert_capacity;
    }
    // As after a while, when the load has been measured.
    if (options_.skew > 0) request.load = routing_.load();
    request.max_copies = options_.copies;
    request.version = {1, 1};
    TANDEM_ASSIGN_OR_RETURN(Plan plan, PlanPlacement(request));
    placement_ = std::move(plan.placement);
    return absl::OkStatus();
  }

  bool IsWarm() const {
    return options_.load.streams > 0 ? gateway_.streams_begun() >= options_.load.streams
                                     : gateway_.requests() >= options_.open_loop_requests / 5;
  }
  bool IsMeasured() const {
    return options_.load.streams > 0
               ? gateway_.times().tokens >= options_.load.streams * options_.tokens_per_stream
               : gateway_.requests() >= options_.open_loop_requests;
  }

  template <typename IsDone>
  absl::Status RunUntil(const IsDone& is_done, const char* what) {
    constexpr Nanos kLook = 1'000'000;
    const auto limit = static_cast<Nanos>(options_.max_simulated_s * 1e9);
    while (!is_done()) {
      if (events_.now() > limit) {
        return absl::DeadlineExceededError(absl::StrCat("the deployment did not ", what, " within ",
                                                        options_.max_simulated_s, " s"));
      }
      events_.RunUntil(events_.now() + kLook);
    }
    return absl::OkStatus();
  }

  void ResetCounts() {
    gateway_.ResetCounts();
    for (const auto& worker : attention_) worker->ResetCounts();
    for (const auto& worker : experts_) worker->ResetCounts();
    preemptions_before_ = gateway_.scheduler().preemptions();
  }

  template <typename Workers, typename BusyOf>
  static BusyShare ShareOf(const Workers& workers, Nanos measured, const BusyOf& busy_of) {
    BusyShare share;
    for (const auto& worker : workers) {
      const double mine =
          std::min(static_cast<double>(busy_of(*worker)) / static_cast<double>(measured), 1.0);
      share.mean += mine / static_cast<double>(workers.size());
      share.max = std::max(share.max, mine);
    }
    return share;
  }

  SimulationReport Report(Nanos measured) const {
    const ClientTimes& times = gateway_.times();
    SimulationReport report;
    report.measured_s = 1e-9 * static_cast<double>(measured);
    report.tokens_per_s = static_cast<double>(times.tokens) / report.measured_s;
    report.prompt_tokens_per_s = static_cast<double>(times.prompt_tokens) / report.measured_s;
    report.requests_per_s = static_cast<double>(times.finished) / report.measured_s;
    report.first_token_ms = Summarize(times.first_token_ms);
    report.between_tokens_ms = Summarize(times.between_tokens_ms);
    report.refused = times.refused;
    report.failed = times.failed;
    report.preemptions = gateway_.scheduler().preemptions() - preemptions_before_;
    report.waiting = gateway_.scheduler().num_waiting();
    report.attention = ShareOf(attention_, measured, [](const auto& w) { return w.busy(); });
    report.experts = ShareOf(experts_, measured, [](const auto& w) { return w.busy(); });
    const auto port = [](const auto& w) { return std::max(w.in_busy(), w.out_busy()); };
    report.attention_port = ShareOf(attention_, measured, port);
    report.expert_port = ShareOf(experts_, measured, port);
    report.gateway =
        std::min(static_cast<double>(gateway_.busy()) / static_cast<double>(measured), 1.0);
    AddSteps(report);
    AddExperts(report);
    report.bound = BoundOf(report);
    report.events = events_.num_events();
    return report;
  }

  void AddSteps(SimulationReport& report) const {
    std::vector<double> steps_ms;
    StepTimes sum;
    int64_t layers = 0, calls = 0;
    for (const auto& worker : attention_) {
      steps_ms.insert(steps_ms.end(), worker->decode_steps_ms().begin(),
                      worker->decode_steps_ms().end());
      const StepTimes& mine = worker->step_times();
      sum.attention += mine.attention;
      sum.network += mine.network;
      sum.queue += mine.queue;
      sum.experts += mine.experts;
      sum.engine += mine.engine;
      layers += worker->layers();
      calls += worker->expert_calls();
    }
    report.step_ms = Summarize(std::move(steps_ms));
    const double all = std::max(static_cast<double>(sum.sum()), 1.0);
    report.in_attention = static_cast<double>(sum.attention) / all;
    report.in_network = static_cast<double>(sum.network) / all;
    report.in_queue = static_cast<double>(sum.queue) / all;
    report.in_experts = static_cast<double>(sum.experts) / all;
    report.in_engine = static_cast<double>(sum.engine) / all;
    report.calls_per_layer = Ratio(calls, layers);
  }

  void AddExperts(SimulationReport& report) const {
    ExpertSide::Counts sum;
    for (const auto& worker : experts_) {
      sum.computations += worker->counts().computations;
      sum.calls += worker->counts().calls;
      sum.experts += worker->counts().experts;
      sum.routes += worker->counts().routes;
    }
    report.calls_per_computation = Ratio(sum.calls, sum.computations);
    report.experts_per_computation = Ratio(sum.experts, sum.computations);
    report.routes_per_expert = Ratio(sum.routes, sum.experts);
    report.imbalance = report.experts.mean > 0 ? report.experts.max / report.experts.mean : 1;
  }

  static double Ratio(int64_t part, int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(std::max<int64_t>(whole, 1));
  }

  static std::string BoundOf(const SimulationReport& report) {
    const std::array<std::pair<double, const char*>, 5> parts = {{
        {report.attention.max, "attention"},
        {report.experts.max, "experts"},
        {report.attention_port.max, "attention port"},
        {report.expert_port.max, "expert port"},
        {report.gateway, "gateway"},
    }};
    const auto busiest = std::max_element(parts.begin(), parts.end());
    return busiest->first > kFull ? busiest->second : "latency";
  }

  const SimulationOptions& options_;
  const CostModel costs_;
  EventQueue events_;
  WorkloadRandom placement_random_;
  const Routing routing_;
  Placement placement_;
  GatewaySide gateway_;
  std::vector<std::unique_ptr<ExpertSide>> experts_;
  std::vector<std::unique_ptr<AttentionSide>> attention_;
  int64_t preemptions_before_ = 0;
};

}  // namespace

absl::StatusOr<SimulationReport> Simulate(const SimulationOptions& options) {
  return Simulation(options).Run();
}

}  // namespace tandem::simulate
