#include "gateway/membership.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

absl::Status Mismatch(const JoinRequest& request, const char* what, const std::string& theirs,
                      const std::string& ours) {
  return absl::FailedPreconditionError(absl::StrCat(WorkerKindName(request.kind), " worker at ",
                                                    request.address, " has ", what, " ", theirs,
                                                    ", but this deployment serves ", ours));
}

std::string Silent(const JoinRequest& worker, absl::Duration lease) {
  return absl::StrCat(WorkerKindName(worker.kind), " worker at ", worker.address,
                      " has sent no heartbeat for ", absl::FormatDuration(lease));
}

std::string Hangs(const JoinRequest& worker, absl::Duration busy) {
  return absl::StrCat(WorkerKindName(worker.kind), " worker at ", worker.address,
                      " hangs: its engine has made no progress for ",
                      absl::FormatDuration(absl::Trunc(busy, absl::Seconds(1))));
}

}  // namespace

const char* WorkerKindName(WorkerKind kind) {
  return kind == WorkerKind::kAttention ? "attention" : "expert";
}

const char* MemberStateName(MemberState state) {
  switch (state) {
    case MemberState::kJoining:
      return "joining";
    case MemberState::kLoading:
      return "loading";
    case MemberState::kStalled:
      return "stalled";
    case MemberState::kReady:
      return "ready";
    case MemberState::kDraining:
      return "draining";
  }
  return "";
}

Membership::Membership(const ModelConfig* config, MembershipOptions options)
    : config_(config),
      options_(std::move(options)),
      load_(static_cast<size_t>(config->num_layers) * config->num_experts, 0) {}

absl::StatusOr<WorkerId> Membership::Join(const JoinRequest& request, absl::Time now) {
  if (request.address.empty()) {
    return absl::InvalidArgumentError("the worker that joins says no address");
  }
  if (request.digest != options_.digest) {
    return Mismatch(request, "the checkpoint digest", request.digest, options_.digest);
  }
  if (request.dtype != options_.dtype) {
    return Mismatch(request, "dtype", request.dtype, options_.dtype);
  }
  if (!options_.numerics_class.empty() && request.numerics_class != options_.numerics_class) {
    return Mismatch(request, "the numerics class", request.numerics_class, options_.numerics_class);
  }
  if (request.busy > options_.busy_limit) {
    return absl::UnavailableError(Hangs(request, request.busy));
  }
  // A worker that lost its connection and dials again replaces what it was before.
  for (const auto& [id, member] : members_) {
    if (member.join.address == request.address && member.join.kind == request.kind) {
      Leave(id);
      break;
    }
  }
  if (Count(request.kind) >= kMaxWorkers) {
    return absl::ResourceExhaustedError(absl::StrCat("this deployment has ", kMaxWorkers, " ",
                                                     WorkerKindName(request.kind),
                                                     " workers, which is the most"));
  }
  Member member;
  member.id = next_id_++;
  member.join = request;
  member.last_seen = now;
  member.health.expert_capacity = request.expert_capacity;
  member.held = request.held;
  member.held.resize(static_cast<size_t>(config_->num_layers) * config_->num_experts);
  member.join.held.clear();
  const WorkerId id = member.id;
  members_[id] = std::move(member);
  let_go_.erase(request.address);
  const int wanted =
      request.kind == WorkerKind::kAttention ? options_.attention_workers : options_.expert_workers;
  if (Count(request.kind) >= wanted) {
    std::erase_if(let_go_, [&](const auto& entry) { return entry.second.kind == request.kind; });
  }
  options_.numerics_class = request.numerics_class;
  last_join_ = now;
  if (request.kind == WorkerKind::kExpert) plan_due_ = true;
  return id;
}

void Membership::Heartbeat(WorkerId worker, MemberHealth health, absl::Time now) {
  const auto it = members_.find(worker);
  if (it == members_.end()) return;
  Member& member = it->second;
  for (size_t i = 0; i < health.expert_tokens.size() && i < load_.size(); ++i) {
    load_[i] += static_cast<double>(health.expert_tokens[i]);
  }
  health.expert_tokens.clear();
  // One that has stalled is counted on again once it has carried out an order.
  const bool is_expert = member.join.kind == WorkerKind::kExpert;
  const bool stalls = health.load_idle > options_.load_limit;
  const bool caught_up = is_expert ? health.placement == target_.version : health.ready;
  if (stalls != member.stalled && (stalls || caught_up)) {
    member.stalled = stalls;
    plan_due_ = plan_due_ || is_expert;
  }
  if (health.draining && !member.draining) {
    member.draining = true;
    plan_due_ = plan_due_ || is_expert;
    member.move_at = now + health.drain_left / 2;  // until then some may end by themselves
  }
  if (health.expert_capacity != member.health.expert_capacity) plan_due_ = true;
  // An older order's failure says nothing of the newest, which is on its way.
  if (health.failed.counter > 0 && health.failed == target_.version) {
    health.held.resize(load_.size());
    if (health.failed != member.health.failed || health.held != member.held) {
      member.held = std::move(health.held);
      plan_due_ = true;
      order_again_ = true;
    }
  }
  health.held.clear();
  member.health = std::move(health);
  member.heard = true;
  member.last_seen = now;
}

void Membership::Leave(WorkerId worker) {
  const auto it = members_.find(worker);
  if (it == members_.end()) return;
  if (it->second.serving) {
    departures_.push_back({MembershipAction::Kind::kStopAttention, worker, "", ""});
  }
  if (it->second.join.kind == WorkerKind::kExpert) plan_due_ = true;
  members_.erase(it);
  load_sent_.erase(worker);
  use_sent_.erase(worker);
  UpdateCovered();
}

absl::Status Membership::Drain(WorkerId worker) {
  const auto it = members_.find(worker);
  if (it == members_.end()) {
    return absl::NotFoundError(absl::StrCat("there is no worker ", worker));
  }
  if (it->second.join.kind == WorkerKind::kAttention) {
    if (it->second.draining) return absl::OkStatus();
    if (NumOpen() - (it->second.serving ? 1 : 0) == 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "there is no other attention worker that could take the sequences of worker ", worker));
    }
    departures_.push_back({MembershipAction::Kind::kDrain, worker, "", ""});
    return absl::OkStatus();
  }
  const bool was_draining = std::exchange(it->second.draining, true);
  if (const absl::Status possible = PlanPlacement(MakePlanRequest(0)).status(); !possible.ok()) {
    it->second.draining = was_draining;
    return absl::FailedPreconditionError(
        absl::StrCat("the others cannot take what worker ", worker, " has: ", possible.message()));
  }
  it->second.draining = was_draining;
  if (!was_draining) departures_.push_back({MembershipAction::Kind::kDrain, worker, "", ""});
  return absl::OkStatus();
}

void Membership::SessionLost(WorkerId worker) {
  const auto it = members_.find(worker);
  if (it != members_.end()) it->second.serving = false;
}

void Membership::SequencesGone(WorkerId worker) {
  const auto it = members_.find(worker);
  if (it != members_.end()) it->second.drained = it->second.closed;
}

int64_t Membership::NumOpen() const {
  return std::count_if(members_.begin(), members_.end(), [](const auto& entry) {
    return entry.second.serving && !entry.second.draining;
  });
}

void Membership::DrainAttention(absl::Time now, std::vector<MembershipAction>& actions) {
  using Kind = MembershipAction::Kind;
  const bool others = NumOpen() > 0;
  for (auto& [id, member] : members_) {
    if (member.join.kind != WorkerKind::kAttention || !member.draining || member.released) continue;
    if (member.serving && !std::exchange(member.closed, true)) {
      actions.push_back({Kind::kDrainAttention, id, "", ""});
    }
    if (member.serving && others && now >= member.move_at && !std::exchange(member.moving, true)) {
      actions.push_back({Kind::kMoveAttention, id, "", ""});
    }
    if (member.serving && !member.drained) continue;
    if (std::exchange(member.serving, false)) {
      actions.push_back({Kind::kStopAttention, id, "", ""});
    }
    member.released = true;
    actions.push_back({Kind::kRelease, id, "", ""});
  }
}

std::vector<MembershipAction> Membership::Advance(absl::Time now) {
  using Kind = MembershipAction::Kind;
  // Where the gateway itself did not run, it could not hear anybody.
  if (now - std::exchange(last_advance_, now) > options_.lease / 2) heard_since_ = now;
  std::vector<MembershipAction> drops;
  for (const auto& [id, member] : members_) {
    if (now - std::max(member.last_seen, heard_since_) > options_.lease) {
      drops.push_back({Kind::kDrop, id, "", Silent(member.join, options_.lease)});
    } else if (member.health.busy > options_.busy_limit) {
      drops.push_back({Kind::kDrop, id, "", Hangs(member.join, member.health.busy)});
    }
  }
  for (MembershipAction& drop : drops) {
    const WorkerId id = drop.worker;
    const JoinRequest& join = members_.at(id).join;
    let_go_[join.address] = {join.kind, drop.why};
    departures_.push_back(std::move(drop));
    Leave(id);
  }
  std::vector<MembershipAction> actions = std::exchange(departures_, {});
  DrainAttention(now, actions);
  if (plan_due_ && MayPlan(now)) Replan();
  Rebalance(now);
  if (target_.version.counter == 0) return actions;
  if (placement_.version != target_.version && TargetLoaded()) {
    placement_ = target_;
    placement_.sources.clear();
    UpdateCovered();
  }
  const uint64_t in_use = placement_.version.counter;
  for (auto& [id, member] : members_) {
    if (member.join.kind == WorkerKind::kExpert) {
      const uint64_t wanted = target_.version.counter;
      if (std::exchange(load_sent_[id], wanted) != wanted) {
        actions.push_back({Kind::kLoad, id, "", ""});
      }
      continue;
    }
    if (in_use > 0 && std::exchange(use_sent_[id], in_use) != in_use) {
      actions.push_back({Kind::kUse, id, "", ""});
    }
    const bool can_start = member.health.ready && member.health.placement.counter > 0 &&
                           member.health.placement.epoch == options_.epoch;
    if (can_start && !member.serving && !member.draining) {
      member.serving = true;
      actions.push_back({Kind::kStartAttention, id, member.join.address, ""});
    }
  }
  complete_ = complete_ || std::count_if(members_.begin(), members_.end(), [](const auto& m) {
                             return m.second.join.kind == WorkerKind::kAttention &&
                                    (m.second.serving || m.second.stalled);
                           }) >= options_.attention_workers;
  if (in_use > 0 && PlacementUsed()) LetGoOfOld(actions);
  return actions;
}

void Membership::LetGoOfOld(std::vector<MembershipAction>& actions) {
  using Kind = MembershipAction::Kind;
  const uint64_t in_use = placement_.version.counter;
  const bool settled = placement_.version == target_.version;
  if (std::exchange(let_go_of_, in_use) != in_use) {
    for (const Placement::Worker& worker : placement_.workers) {
      const auto it = members_.find(worker.id);
      if (it == members_.end()) continue;
      actions.push_back({Kind::kUse, worker.id, "", ""});
      // What it was told to load for a target that never came into use stays until the next time.
      if (settled) it->second.held = placement_.GivenTo(worker.id);
    }
    constexpr int kMaxRounds = 8;
    if (settled && std::exchange(plan_deferred_, false) && rounds_ < kMaxRounds) {
      plan_due_ = true;
      next_round_ = true;
    }
  }
  if (!settled || plan_due_) return;
  for (auto& [id, member] : members_) {
    if (member.join.kind != WorkerKind::kExpert || !member.draining || member.released) continue;
    const std::vector<bool> given = placement_.GivenTo(id);
    member.released = std::find(given.begin(), given.end(), true) == given.end();
    if (member.released) actions.push_back({Kind::kRelease, id, "", ""});
  }
}

MemberState Membership::StateOf(const Member& member) const {
  if (member.draining) return MemberState::kDraining;
  if (member.stalled) return MemberState::kStalled;
  if (!member.heard) return MemberState::kJoining;
  const bool behind =
      member.join.kind == WorkerKind::kExpert && member.health.placement != target_.version;
  return member.health.ready && !behind ? MemberState::kReady : MemberState::kLoading;
}

bool Membership::serving() const {
  if (!complete_ || !covered_) return false;
  return NumOpen() > 0;
}

std::string Membership::Detail() const {
  const auto drained = std::count_if(members_.begin(), members_.end(), [](const auto& entry) {
    return entry.second.join.kind == WorkerKind::kAttention && entry.second.draining;
  });
  const int64_t attention = Count(WorkerKind::kAttention) - drained;
  const int expert = Count(WorkerKind::kExpert);
  std::string stalled;
  for (const auto& [id, member] : members_) {
    if (!member.stalled) continue;
    absl::StrAppend(&stalled, "; ", WorkerKindName(member.join.kind), " worker at ",
                    member.join.address, " does not get on with loading");
  }
  if (serving()) {
    std::string detail =
        placement_.version == target_.version ? "all workers are ready" : "experts are moving";
    if (!plan_error_.empty()) absl::StrAppend(&detail, "; ", plan_error_);
    return absl::StrCat(detail, stalled);
  }
  std::string lost = stalled;
  for (const auto& [address, let_go] : let_go_) absl::StrAppend(&lost, "; ", let_go.why);
  const bool too_few_experts = !covered_;
  if (attention < (complete_ ? 1 : options_.attention_workers) ||
      (too_few_experts && expert < options_.expert_workers)) {
    return absl::StrCat(attention, " of ", options_.attention_workers, " attention, ", expert,
                        " of ", options_.expert_workers, " expert", lost);
  }
  if (!plan_error_.empty()) return absl::StrCat(plan_error_, lost);
  float loaded = 1;
  bool ready = true;
  for (const auto& [id, member] : members_) {
    loaded = std::min(loaded, member.health.loaded);
    ready = ready && member.health.ready;
  }
  for (const auto& [id, member] : members_) {
    if (!ready || member.join.kind != WorkerKind::kAttention || member.serving) continue;
    return absl::StrCat("attention worker ", id, " does not answer at ", member.join.address);
  }
  return absl::StrCat("workers load their weights: the slowest has ",
                      static_cast<int>(loaded * 100), "%", stalled);
}

int Membership::Count(WorkerKind kind) const {
  return static_cast<int>(std::count_if(members_.begin(), members_.end(), [kind](const auto& m) {
    return m.second.join.kind == kind;
  }));
}

void Membership::UpdateCovered() {
  covered_ = placement_.version.counter > 0 && ExpertCoverage().without_holder == 0;
}

Membership::Coverage Membership::ExpertCoverage() const {
  Coverage coverage;
  coverage.experts = config_->num_routed_experts();
  if (placement_.version.counter == 0) {
    coverage.without_holder = coverage.experts;
    return coverage;
  }
  for (int layer = 0; layer < config_->num_layers; ++layer) {
    if (!config_->IsMoeLayer(layer)) continue;
    for (int expert = 0; expert < config_->num_experts; ++expert) {
      const std::vector<WorkerId>& holders = placement_.Holders(layer, expert);
      const auto there = std::count_if(holders.begin(), holders.end(),
                                       [this](WorkerId id) { return members_.contains(id); });
      if (there == 0) ++coverage.without_holder;
      if (there == 1) ++coverage.with_one_holder;
    }
  }
  return coverage;
}

bool Membership::TargetLoaded() const {
  return std::all_of(
      target_.workers.begin(), target_.workers.end(), [this](const Placement::Worker& worker) {
        const auto it = members_.find(worker.id);
        if (it == members_.end()) return false;
        if (it->second.stalled) return HasAll(it->second);
        return it->second.health.ready && it->second.health.placement == target_.version;
      });
}

bool Membership::HasAll(const Member& member) const {
  const std::vector<bool> has = placement_.GivenTo(member.id), wanted = target_.GivenTo(member.id);
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] && (has.empty() || !has[i])) return false;
  }
  return true;
}

bool Membership::PlacementUsed() const {
  return std::all_of(members_.begin(), members_.end(), [this](const auto& entry) {
    return entry.second.join.kind != WorkerKind::kAttention || !use_sent_.contains(entry.first) ||
           entry.second.health.placement == placement_.version;
  });
}

// Those that share a memory and stay have equal parts of it.
ExpertHost Membership::MakeHost(const Member& member) const {
  ExpertHost host;
  host.worker = {member.id, member.join.address, member.join.incarnation};
  host.held = member.held;
  host.leaving = member.draining;
  host.capacity = member.join.expert_capacity;
  if (!member.join.memory.empty()) {
    host.memory = member.join.memory;
    host.memory_capacity = member.join.expert_capacity;
    const auto sharers = std::count_if(members_.begin(), members_.end(), [&](const auto& other) {
      return other.second.join.kind == WorkerKind::kExpert && !other.second.draining &&
             other.second.join.memory == member.join.memory;
    });
    host.capacity /= std::max<int64_t>(sharers, 1);
  }
  host.capacity = std::min(host.capacity, member.health.expert_capacity);
  if (member.stalled) {
    host.held = placement_.GivenTo(member.id);
    host.held.resize(load_.size());
    host.capacity = std::count(host.held.begin(), host.held.end(), true);
  }
  return host;
}

PlanRequest Membership::MakePlanRequest(uint64_t counter) const {
  PlanRequest request;
  request.config = config_;
  for (const auto& [id, member] : members_) {
    if (member.join.kind == WorkerKind::kExpert) request.hosts.push_back(MakeHost(member));
  }
  request.load = load_;
  request.current = &target_;
  request.max_copies = options_.expert_copies;
  request.version = {options_.epoch, counter};
  return request;
}

bool Membership::MayPlan(absl::Time now) const {
  if (target_.version.counter > 0) return true;
  if (Count(WorkerKind::kExpert) < options_.expert_workers) return false;
  const bool some_held = std::any_of(members_.begin(), members_.end(), [](const auto& entry) {
    const std::vector<bool>& held = entry.second.held;
    return std::find(held.begin(), held.end(), true) != held.end();
  });
  return !some_held || now - last_join_ >= options_.settle;
}

// What cannot be planned leaves the old target: steps wait at their layers for a worker that takes
// a lost one's place.
void Membership::Replan() {
  plan_due_ = false;
  rounds_ = std::exchange(next_round_, false) ? rounds_ + 1 : 0;
  PlanRequest request = MakePlanRequest(target_.version.counter + 1);
  // What steps wait for comes first.
  request.repair = placement_.version.counter > 0 && !covered_;
  if (request.repair) request.current = &placement_;
  absl::StatusOr<Plan> plan = PlanPlacement(request);
  plan_error_ = plan.ok() ? "" : std::string(plan.status().message());
  if (!plan.ok()) return;
  const bool same = target_.version.counter > 0 && plan->placement.holders == target_.holders;
  if (same && !std::exchange(order_again_, false)) {
    // Who came or went holds nothing of it.
    target_.workers = std::move(plan->placement.workers);
    if (placement_.version == target_.version) placement_.workers = target_.workers;
    plan_deferred_ = plan->deferred && let_go_of_ != target_.version.counter;
    return;
  }
  order_again_ = false;
  SetTarget(*std::move(plan));
}

void Membership::SetTarget(Plan plan) {
  target_ = std::move(plan.placement);
  target_.urgent = !covered_;
  plan_deferred_ = plan.deferred;
  for (auto& [id, member] : members_) {
    if (member.join.kind != WorkerKind::kExpert) continue;
    if (std::find(member.held.begin(), member.held.end(), true) != member.held.end()) {
      target_.sources.push_back({{id, member.join.address, member.join.incarnation}, member.held});
    }
    const std::vector<bool> given = target_.GivenTo(id);
    for (size_t i = 0; i < given.size(); ++i) member.held[i] = member.held[i] || given[i];
  }
}

// While nothing else is under way, and only if it is worth the moves.
void Membership::Rebalance(absl::Time now) {
  constexpr double kWorthIt = 1.05;
  if (target_.version.counter == 0 || target_.version != placement_.version || plan_due_) return;
  if (now - last_rebalance_ < options_.rebalance) return;
  last_rebalance_ = now;
  PlanRequest request = MakePlanRequest(target_.version.counter + 1);
  absl::StatusOr<Plan> plan = PlanPlacement(request);
  const std::vector<double> load = load_;
  for (double& tokens : load_) tokens /= 2;
  if (!plan.ok() || plan->placement.holders == target_.holders) return;
  // Where it leads to: what is given up first makes room for something better.
  Placement end = plan->placement;
  for (int round = 0; round < 3; ++round) {
    request.current = &end;
    for (ExpertHost& host : request.hosts) host.held = end.GivenTo(host.worker.id);
    absl::StatusOr<Plan> next = PlanPlacement(request);
    if (!next.ok()) return;
    end = std::move(next->placement);
    if (!next->deferred) break;
  }
  if (BusiestShare(target_, load) > kWorthIt * BusiestShare(end, load)) SetTarget(*std::move(plan));
}

}  // namespace tandem
