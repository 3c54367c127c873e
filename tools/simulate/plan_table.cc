#include "tools/simulate/plan_table.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>
#include <utility>

#include "common/status.h"
#include "gateway/placement_planner.h"
#include "tools/simulate/routing.h"

namespace tandem::simulate {
namespace {

// A deployment whose placements come into use at once.
class Planned {
 public:
  Planned(const PlanTableOptions& options, std::vector<double> load)
      : copies_(options.copies), model_(options.model), load_(std::move(load)) {}

  void Join(int count) {
    for (int i = 0; i < count; ++i) hosts_.emplace_back().worker.id = next_++;
  }
  void DrainFirst() { hosts_.front().leaving = true; }

  // Until nothing moves any more, as after some times that balance was looked at.
  absl::Status Settle() {
    constexpr int kMaxPlans = 8;
    int64_t moves = 1;
    for (int i = 0; i < kMaxPlans && moves > 0; ++i) {
      TANDEM_ASSIGN_OR_RETURN(moves, Plan());
    }
    return absl::OkStatus();
  }

  // Plans until nothing is put off; how many experts somebody had to load.
  absl::StatusOr<int64_t> Plan() {
    int64_t moves = 0;
    bool deferred = true;
    for (int round = 0; deferred && round < 8; ++round) {
      PlanRequest request;
      request.config = &model_;
      request.hosts = hosts_;
      request.load = load_;
      request.current = placement_.version.counter > 0 ? &placement_ : nullptr;
      request.max_copies = copies_;
      request.version = {1, placement_.version.counter + 1};
      const auto begin = std::chrono::steady_clock::now();
      TANDEM_ASSIGN_OR_RETURN(tandem::Plan plan, PlanPlacement(request));
      took_ = std::chrono::steady_clock::now() - begin;
      deferred = plan.deferred;
      placement_ = std::move(plan.placement);
      for (ExpertHost& host : hosts_) {
        const std::vector<bool> given = placement_.GivenTo(host.worker.id);
        host.held.resize(given.size());
        for (size_t i = 0; i < given.size(); ++i) moves += given[i] && !host.held[i] ? 1 : 0;
        host.held = given;
      }
    }
    return moves;
  }

  const Placement& placement() const { return placement_; }
  const std::vector<ExpertHost>& hosts() const { return hosts_; }
  double took_ms() const { return took_.count(); }  // the last plan

 private:
  const int copies_;
  const ModelConfig& model_;
  const std::vector<double> load_;
  std::vector<ExpertHost> hosts_;
  Placement placement_;
  WorkerId next_ = 1;
  std::chrono::duration<double, std::milli> took_{};
};

double BusiestInAll(const Placement& placement, const std::vector<double>& load, int workers) {
  std::map<WorkerId, double> work;
  double all = 0;
  for (int layer = 0; layer < placement.num_layers; ++layer) {
    const auto first = load.begin() + static_cast<ptrdiff_t>(layer) * placement.num_experts;
    const double mean = std::accumulate(first, first + placement.num_experts, 0.0) /
                        static_cast<double>(placement.num_experts);
    for (int expert = 0; expert < placement.num_experts; ++expert) {
      const std::vector<WorkerId>& holders = placement.Holders(layer, expert);
      for (const WorkerId id : holders) {
        const double mine = (1 + first[expert] / mean) / static_cast<double>(holders.size());
        work[id] += mine;
        all += mine;
      }
    }
  }
  double most = 0;
  for (const auto& [id, mine] : work) most = std::max(most, mine);
  return most * workers / all;
}

}  // namespace

absl::StatusOr<PlanRow> PlanFor(const PlanTableOptions& options, int workers) {
  constexpr int kTrials = 5;
  WorkloadRandom random(options.seed);
  const Routing routing(options.model, options.skew, random);
  PlanRow row;
  row.workers = workers;
  std::vector<double> times;
  for (int trial = 0; trial < kTrials; ++trial) {
    Planned fresh(options, routing.load());
    fresh.Join(workers);
    TANDEM_RETURN_IF_ERROR(fresh.Plan().status());
    times.push_back(fresh.took_ms());
  }
  std::sort(times.begin(), times.end());
  row.plan_ms = times[times.size() / 2];

  Planned deployment(options, routing.load());
  deployment.Join(workers);
  TANDEM_RETURN_IF_ERROR(deployment.Settle());
  int64_t held = 0;
  for (const ExpertHost& host : deployment.hosts()) {
    held += std::count(host.held.begin(), host.held.end(), true);
  }
  row.busiest_share = BusiestShare(deployment.placement(), routing.load());
  row.busiest_in_all = BusiestInAll(deployment.placement(), routing.load(), workers);
  row.least_experts = held;
  for (const ExpertHost& host : deployment.hosts()) {
    const int64_t mine = std::count(host.held.begin(), host.held.end(), true);
    row.least_experts = std::min(row.least_experts, mine);
    row.most_experts = std::max(row.most_experts, mine);
  }
  TANDEM_ASSIGN_OR_RETURN(row.idle_moves, deployment.Plan());
  deployment.Join(1);
  TANDEM_ASSIGN_OR_RETURN(row.join_moves, deployment.Plan());
  row.replan_ms = deployment.took_ms();
  row.fair_moves = held / (workers + 1);
  deployment.DrainFirst();
  TANDEM_ASSIGN_OR_RETURN(row.leave_moves, deployment.Plan());
  return row;
}

}  // namespace tandem::simulate
