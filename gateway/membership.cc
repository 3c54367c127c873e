#include "gateway/membership.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/placement_planner.h"

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

Membership::Membership(const ModelConfig* config, MembershipOptions options)
    : config_(config), options_(std::move(options)) {}

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
  const int wanted =
      request.kind == WorkerKind::kAttention ? options_.attention_workers : options_.expert_workers;
  if (Count(request.kind) >= wanted) {
    return absl::ResourceExhaustedError(absl::StrCat("this deployment has all the ", wanted, " ",
                                                     WorkerKindName(request.kind),
                                                     " workers that it was started for"));
  }
  Member member;
  member.id = next_id_++;
  member.join = request;
  member.last_seen = now;
  members_[member.id] = member;
  let_go_.erase(request.address);
  if (Count(request.kind) == wanted) {
    std::erase_if(let_go_, [&](const auto& entry) { return entry.second.kind == request.kind; });
  }
  options_.numerics_class = request.numerics_class;
  if (request.kind == WorkerKind::kExpert) experts_changed_ = true;
  return member.id;
}

void Membership::Heartbeat(WorkerId worker, MemberHealth health, absl::Time now) {
  const auto it = members_.find(worker);
  if (it == members_.end()) return;
  it->second.health = std::move(health);
  it->second.last_seen = now;
}

void Membership::Leave(WorkerId worker) {
  const auto it = members_.find(worker);
  if (it == members_.end()) return;
  if (it->second.serving) {
    departures_.push_back({MembershipAction::Kind::kStopAttention, worker, "", ""});
  }
  if (it->second.join.kind == WorkerKind::kExpert) experts_changed_ = true;
  members_.erase(it);
  load_sent_.erase(worker);
  use_sent_.erase(worker);
}

void Membership::SessionLost(WorkerId worker) {
  const auto it = members_.find(worker);
  if (it != members_.end()) it->second.serving = false;
}

std::vector<MembershipAction> Membership::Advance(absl::Time now) {
  using Kind = MembershipAction::Kind;
  std::vector<MembershipAction> drops;
  for (const auto& [id, member] : members_) {
    if (now - member.last_seen > options_.lease) {
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
  // With fewer experts than planned the old placement stays: a step waits at its layer for the
  // worker that takes the lost one's place.
  if (experts_changed_ && Count(WorkerKind::kExpert) == options_.expert_workers) Replan();
  if (placement_.version.counter == 0) return actions;
  const uint64_t current = placement_.version.counter;
  const bool loaded = PlacementLoaded();
  const bool used = PlacementUsed();
  for (auto& [id, member] : members_) {
    if (member.join.kind == WorkerKind::kExpert) {
      if (std::exchange(load_sent_[id], current) != current) {
        actions.push_back({Kind::kLoad, id, "", ""});
      }
      if (used && std::exchange(use_sent_[id], current) != current) {
        actions.push_back({Kind::kUse, id, "", ""});
      }
      continue;
    }
    if (loaded && std::exchange(use_sent_[id], current) != current) {
      actions.push_back({Kind::kUse, id, "", ""});
    }
    const bool can_start = member.health.ready && member.health.placement.counter > 0 &&
                           member.health.placement.epoch == options_.epoch;
    if (can_start && !member.serving) {
      member.serving = true;
      actions.push_back({Kind::kStartAttention, id, member.join.address, ""});
    }
  }
  return actions;
}

bool Membership::serving() const {
  return placement_.version.counter > 0 && PlacementLoaded() &&
         std::count_if(members_.begin(), members_.end(), [](const auto& m) {
           return m.second.serving;
         }) == options_.attention_workers;
}

std::string Membership::Detail() const {
  if (serving()) return "all workers are ready";
  const int attention = Count(WorkerKind::kAttention);
  const int expert = Count(WorkerKind::kExpert);
  if (attention < options_.attention_workers || expert < options_.expert_workers) {
    std::string detail = absl::StrCat(attention, " of ", options_.attention_workers, " attention, ",
                                      expert, " of ", options_.expert_workers, " expert");
    for (const auto& [address, let_go] : let_go_) absl::StrAppend(&detail, "; ", let_go.why);
    return detail;
  }
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
                      static_cast<int>(loaded * 100), "%");
}

int Membership::Count(WorkerKind kind) const {
  return static_cast<int>(std::count_if(members_.begin(), members_.end(), [kind](const auto& m) {
    return m.second.join.kind == kind;
  }));
}

bool Membership::PlacementLoaded() const {
  return std::all_of(placement_.workers.begin(), placement_.workers.end(),
                     [this](const Placement::Worker& worker) {
                       const auto it = members_.find(worker.id);
                       return it != members_.end() && it->second.health.ready &&
                              it->second.health.placement == placement_.version;
                     });
}

bool Membership::PlacementUsed() const {
  return std::count_if(members_.begin(), members_.end(), [this](const auto& entry) {
           return entry.second.join.kind == WorkerKind::kAttention &&
                  entry.second.health.placement == placement_.version;
         }) == options_.attention_workers;
}

void Membership::Replan() {
  std::vector<Placement::Worker> workers;
  for (const auto& [id, member] : members_) {
    if (member.join.kind == WorkerKind::kExpert) workers.push_back({id, member.join.address});
  }
  absl::StatusOr<Placement> plan =
      PlanPlacement(*config_, workers, {options_.epoch, placement_.version.counter + 1});
  if (!plan.ok())
    return;  // a model with experts and a topology without expert workers: never serves
  placement_ = *std::move(plan);
  experts_changed_ = false;
}

}  // namespace tandem
