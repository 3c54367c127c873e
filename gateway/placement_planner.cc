#include "gateway/placement_planner.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/check.h"

namespace tandem {
namespace {

// For an expert: one for its weights, one for its share of the layer's tokens.
constexpr double kMeanWork = 2;

// Loads are told apart by factors of sqrt(2): what was measured wavers, a plan should not.
double Rounded(double relative_load) {
  if (relative_load <= 0) return 0;
  return std::exp2(std::round(2 * std::log2(relative_load)) / 2);
}

// Of the experts of a layer: `load` is theirs.
std::vector<double> WorkOf(absl::Span<const double> load) {
  const double mean =
      std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());
  std::vector<double> work;
  for (const double tokens : load) work.push_back(1 + (mean > 0 ? Rounded(tokens / mean) : 1));
  return work;
}

class Planner {
 public:
  explicit Planner(const PlanRequest& request)
      : request_(request),
        config_(*request.config),
        num_hosts_(static_cast<int>(request.hosts.size())),
        size_(static_cast<size_t>(config_.num_layers) * config_.num_experts) {
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      if (config_.IsMoeLayer(layer)) moe_layers_.push_back(layer);
    }
    total_ = config_.num_routed_experts();
  }

  absl::StatusOr<Plan> Run() {
    plan_.placement.version = request_.version;
    plan_.placement.num_layers = config_.num_layers;
    plan_.placement.num_experts = config_.num_experts;
    for (const ExpertHost& host : request_.hosts) plan_.placement.workers.push_back(host.worker);
    plan_.placement.holders.resize(size_);
    if (total_ == 0) return std::move(plan_);
    if (const absl::Status fits = CheckCapacity(); !fits.ok()) return fits;
    Prepare();
    if (request_.repair) {
      Repair();
      return std::move(plan_);
    }
    for (const int layer : moe_layers_) ChooseOwners(layer);
    for (int copies = 2; copies <= request_.max_copies; ++copies) AddCopies(copies);
    return std::move(plan_);
  }

 private:
  struct Host {
    double share = 0;               // of a layer's work that is its own
    double layer_work = 0;          // as owner, in the layer at hand
    double work = 0;                // as owner, in all layers so far
    bool owned_in_layer = false;    // owns some in the layer at hand until now
    int64_t owned = 0;              // over all layers so far; given, or wanted once there is room
    int64_t copies = 0;             // likewise
    std::vector<int> layer_copies;  // likewise, by layer
    int64_t in_memory = 0;          // held or given
  };

  const ExpertHost& In(int host) const { return request_.hosts[host]; }
  bool Stays(int host) const { return !In(host).leaving && In(host).capacity > 0; }
  bool Holds(int host, size_t i) const { return !In(host).held.empty() && In(host).held[i]; }
  bool IsGiven(int host, size_t i) const {
    const std::vector<WorkerId>& holders = plan_.placement.holders[i];
    return std::find(holders.begin(), holders.end(), In(host).worker.id) != holders.end();
  }
  // Whether its memory takes the expert now.
  bool HasRoom(int host, size_t i) const {
    return Holds(host, i) || (hosts_[host].in_memory < In(host).capacity &&
                              (In(host).memory.empty() ||
                               in_shared_memory_.at(In(host).memory) < In(host).memory_capacity));
  }
  void Give(int host, size_t i) {
    plan_.placement.holders[i].push_back(In(host).worker.id);
    if (Holds(host, i)) return;
    ++hosts_[host].in_memory;
    if (!In(host).memory.empty()) ++in_shared_memory_[In(host).memory];
  }

  absl::Status CheckCapacity() const {
    int64_t room = 0;
    bool any = false;
    for (int host = 0; host < num_hosts_; ++host) {
      if (In(host).leaving) continue;
      any = true;
      room += std::min(In(host).capacity, total_);
    }
    if (!any) {
      return absl::InvalidArgumentError("the model has experts, but there is no expert worker");
    }
    if (room >= total_) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("the model has ", total_,
                                                     " routed experts, the memory of all expert "
                                                     "workers together holds ",
                                                     room));
  }

  void Prepare() {
    hosts_.resize(num_hosts_);
    for (Host& host : hosts_) host.layer_copies.assign(config_.num_layers, 0);
    for (int host = 0; host < num_hosts_; ++host) {
      hosts_[host].in_memory = std::count(In(host).held.begin(), In(host).held.end(), true);
      if (!In(host).memory.empty()) in_shared_memory_[In(host).memory] += hosts_[host].in_memory;
    }
    // Equal shares; who cannot hold so much has what it can hold, the others share the rest.
    std::vector<int> order;
    for (int host = 0; host < num_hosts_; ++host) {
      if (Stays(host)) order.push_back(host);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return In(a).capacity < In(b).capacity; });
    double left = 1;
    for (size_t n = 0; n < order.size(); ++n) {
      const double equal = left / static_cast<double>(order.size() - n);
      const double most = static_cast<double>(In(order[n]).capacity) / static_cast<double>(total_);
      if (most >= equal) {
        for (; n < order.size(); ++n) hosts_[order[n]].share = equal;
      } else {
        hosts_[order[n]].share = most;
        left -= most;
      }
    }
    work_.assign(size_, 0);
    const std::vector<double> load =
        request_.load.empty() ? std::vector<double>(size_, 0) : request_.load;
    for (const int layer : moe_layers_) {
      const size_t first = IndexOf(layer, 0);
      const std::vector<double> work =
          WorkOf(absl::MakeConstSpan(load).subspan(first, config_.num_experts));
      std::copy(work.begin(), work.end(), work_.begin() + static_cast<ptrdiff_t>(first));
    }
    holders_of_.assign(size_, 0);
    owner_now_.assign(size_, -1);
    for (int host = 0; host < num_hosts_; ++host) {
      for (size_t i = 0; i < size_; ++i) holders_of_[i] += Holds(host, i) ? 1 : 0;
    }
    if (request_.current == nullptr || request_.current->holders.size() != size_) return;
    for (size_t i = 0; i < size_; ++i) {
      if (request_.current->holders[i].empty()) continue;
      for (int host = 0; host < num_hosts_; ++host) {
        if (In(host).worker.id == request_.current->holders[i].front()) owner_now_[i] = host;
      }
    }
  }

  size_t IndexOf(int layer, int expert) const {
    return static_cast<size_t>(layer) * config_.num_experts + expert;
  }

  void Own(int host, size_t i) {
    Give(host, i);
    CountOwned(host, i);
  }
  void CountOwned(int host, size_t i) {
    hosts_[host].layer_work += work_[i];
    hosts_[host].work += work_[i];
    ++hosts_[host].owned;
  }

  void ChooseOwners(int layer) {
    double sum = 0;
    for (int expert = 0; expert < config_.num_experts; ++expert)
      sum += work_[IndexOf(layer, expert)];
    for (Host& host : hosts_) {
      host.layer_work = 0;
      host.owned_in_layer = false;
    }
    for (int expert = 0; expert < config_.num_experts; ++expert) {
      const int owner = owner_now_[IndexOf(layer, expert)];
      if (owner >= 0) hosts_[owner].owned_in_layer = true;
    }
    work_so_far_ += sum;
    const auto is_fair = [&](int host, size_t i) {
      return Stays(host) && hosts_[host].owned < In(host).capacity &&
             hosts_[host].layer_work + work_[i] <= sum * hosts_[host].share * (1 + 1e-9);
    };
    std::vector<int> left;
    for (int expert = 0; expert < config_.num_experts; ++expert) {
      const size_t i = IndexOf(layer, expert);
      if (owner_now_[i] >= 0 && Holds(owner_now_[i], i) && is_fair(owner_now_[i], i)) {
        Own(owner_now_[i], i);
      } else {
        left.push_back(expert);
      }
    }
    std::stable_sort(left.begin(), left.end(), [&](int a, int b) {
      const size_t i = IndexOf(layer, a), j = IndexOf(layer, b);
      return std::tuple(holders_of_[i], -work_[i]) < std::tuple(holders_of_[j], -work_[j]);
    });
    std::vector<int> homeless;
    for (const int expert : left) {
      const size_t i = IndexOf(layer, expert);
      const auto holder =
          LeastWork(i, [&](int host) { return Holds(host, i) && is_fair(host, i); });
      if (holder.has_value()) {
        Own(*holder, i);
      } else {
        homeless.push_back(expert);
      }
    }
    // In turn from each that owned too many, so that what is left over in the end can stay with all
    // of them.
    std::vector<int> turn(config_.num_experts, 0), turns(num_hosts_ + 1, 0);
    for (const int expert : homeless)
      turn[expert] = turns[owner_now_[IndexOf(layer, expert)] + 1]++;
    // Where there is less than one for each host, those of the owners that have most so far first.
    const auto owner_work = [&](int expert) {
      const int owner = owner_now_[IndexOf(layer, expert)];
      return num_hosts_ > config_.num_experts && owner >= 0 ? hosts_[owner].work : 0;
    };
    const auto rank = [&](int expert) {
      return std::tuple(-work_[IndexOf(layer, expert)], -owner_work(expert), turn[expert]);
    };
    std::stable_sort(homeless.begin(), homeless.end(),
                     [&](int a, int b) { return rank(a) < rank(b); });
    for (const int expert : homeless) GiveHome(IndexOf(layer, expert));
  }

  void Repair() {
    plan_.deferred = true;
    for (const int layer : moe_layers_) {
      for (Host& host : hosts_) host.layer_work = 0;
      std::vector<size_t> missing;
      for (int expert = 0; expert < config_.num_experts; ++expert) {
        const size_t i = IndexOf(layer, expert);
        for (const WorkerId id : request_.current->holders[i]) {
          for (int host = 0; host < num_hosts_; ++host) {
            if (In(host).worker.id != id) continue;
            if (plan_.placement.holders[i].empty()) CountOwned(host, i);
            Give(host, i);
          }
        }
        if (plan_.placement.holders[i].empty()) missing.push_back(i);
      }
      for (const size_t i : missing) {
        const auto holder = LeastWork(i, [&](int host) { return Holds(host, i); });
        if (holder.has_value()) {
          Own(*holder, i);
        } else {
          GiveHome(i);
        }
      }
    }
  }

  void GiveHome(size_t i) {
    const auto may_own = [&](int host) {
      return Stays(host) && hosts_[host].owned < In(host).capacity;
    };
    const auto best = LeastWork(i, may_own);
    if (best.has_value() && HasRoom(*best, i)) return Own(*best, i);
    // There will be room once what goes is gone. Until then it stays where it is, or goes where
    // there is some.
    plan_.deferred = true;
    if (const auto holder = LeastWork(i, [&](int host) { return Holds(host, i); })) {
      Give(*holder, i);
    } else if (const auto other =
                   LeastWork(i, [&](int host) { return may_own(host) && HasRoom(host, i); })) {
      return Own(*other, i);
    }
    if (best.has_value()) CountOwned(*best, i);
  }

  // Has none of this layer, and so much less than its share of the layers so far that it is worth a
  // move: not every host can have an expert of every layer if there are more than a layer has.
  bool IsBehind(int host) const {
    constexpr double kWorthAMove = 2 * kMeanWork;
    return num_hosts_ > config_.num_experts && !hosts_[host].owned_in_layer &&
           hosts_[host].work + kWorthAMove <= hosts_[host].share * work_so_far_;
  }

  // How much would have to happen for it to own the expert.
  int Distance(int host, size_t i) const {
    if (owner_now_[i] == host || IsBehind(host)) return 0;
    return Holds(host, i) ? 1 : 2;
  }

  // Of the hosts that qualify, the one with least of its share in this layer, then who owns the
  // expert or is behind, then who holds it, then the one with least of its share in all layers so
  // far, then the one with fewest experts in all, or with most if it is a hot one, with which go
  // fewer others; then the first.
  template <typename Qualifies>
  std::optional<int> LeastWork(size_t i, const Qualifies& qualifies) const {
    std::optional<int> best;
    std::tuple<double, int, double, double> least;
    for (int host = 0; host < num_hosts_; ++host) {
      if (!qualifies(host)) continue;
      const double share = std::max(hosts_[host].share, 1e-9);
      const double in_all = static_cast<double>(hosts_[host].owned) / share;
      const std::tuple work(hosts_[host].layer_work / share, Distance(host, i),
                            hosts_[host].work / share, work_[i] > kMeanWork ? -in_all : in_all);
      if (best.has_value() && !(work < least)) continue;
      best = host;
      least = work;
    }
    return best;
  }

  void AddCopies(int copies) {
    std::vector<size_t> order;
    for (const int layer : moe_layers_) {
      for (int expert = 0; expert < config_.num_experts; ++expert) {
        const size_t i = IndexOf(layer, expert);
        if (plan_.placement.holders[i].size() == static_cast<size_t>(copies) - 1) {
          order.push_back(i);
        }
      }
    }
    const auto more_are_held = [&](size_t i) { return holders_of_[i] >= copies ? 0 : 1; };
    std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) {
      return std::tuple(-work_[i], more_are_held(i)) < std::tuple(-work_[j], more_are_held(j));
    });
    for (const size_t i : order) AddCopy(i);
  }

  // At who holds it already, then where fewest copies of the layer are, then of all.
  void AddCopy(size_t i) {
    const size_t layer = i / config_.num_experts;
    std::optional<int> best;
    std::tuple<bool, double, double> rank;
    for (int host = 0; host < num_hosts_; ++host) {
      const Host& h = hosts_[host];
      if (!Stays(host) || IsGiven(host, i) || h.owned + h.copies >= In(host).capacity) continue;
      const double share = std::max(h.share, 1e-9);
      const std::tuple<bool, double, double> mine(!Holds(host, i), h.layer_copies[layer] / share,
                                                  static_cast<double>(h.copies) / share);
      if (best.has_value() && !(mine < rank)) continue;
      best = host;
      rank = mine;
    }
    if (!best.has_value()) return;
    ++hosts_[*best].copies;
    ++hosts_[*best].layer_copies[layer];
    if (HasRoom(*best, i)) {
      Give(*best, i);
    } else {
      plan_.deferred = true;
    }
  }

  const PlanRequest& request_;
  const ModelConfig& config_;
  const int num_hosts_;
  const size_t size_;  // of what is indexed by IndexOf
  std::vector<int> moe_layers_;
  int64_t total_ = 0;  // experts of all layers
  std::vector<Host> hosts_;
  std::map<std::string, int64_t> in_shared_memory_;  // held or given, by the memory's name
  std::vector<double> work_;     // of each expert; kMeanWork on average, but for roundings
  double work_so_far_ = 0;       // of the layers for which owners are or were chosen
  std::vector<int> holders_of_;  // how many hosts hold each expert
  std::vector<int> owner_now_;   // host; -1: none of these
  Plan plan_;
};

}  // namespace

absl::StatusOr<Plan> PlanPlacement(const PlanRequest& request) {
  TANDEM_CHECK(request.config != nullptr && request.max_copies >= 1);
  return Planner(request).Run();
}

double BusiestShare(const Placement& placement, const std::vector<double>& load) {
  double sum = 0;
  int layers = 0;
  for (int layer = 0; layer < placement.num_layers; ++layer) {
    const size_t first = static_cast<size_t>(layer) * placement.num_experts;
    const std::vector<double> work =
        WorkOf(absl::MakeConstSpan(load).subspan(first, placement.num_experts));
    std::map<WorkerId, double> of_worker;
    double all = 0;
    for (int expert = 0; expert < placement.num_experts; ++expert) {
      const std::vector<WorkerId>& holders = placement.Holders(layer, expert);
      for (const WorkerId id : holders) {
        of_worker[id] += work[expert] / static_cast<double>(holders.size());
        all += work[expert] / static_cast<double>(holders.size());
      }
    }
    if (all == 0) continue;
    double most = 0;
    for (const auto& [id, mine] : of_worker) most = std::max(most, mine);
    sum += most * static_cast<double>(of_worker.size()) / all;
    ++layers;
  }
  return layers == 0 ? 1 : sum / layers;
}

Placement PlacementOfOne(const ModelConfig& config, const Placement::Worker& worker,
                         PlacementVersion version) {
  PlanRequest request;
  request.config = &config;
  request.hosts.emplace_back().worker = worker;
  request.version = version;
  absl::StatusOr<Plan> plan = PlanPlacement(request);
  TANDEM_CHECK(plan.ok());
  return std::move(plan->placement);
}

}  // namespace tandem
