// Who belongs to a deployment, and what each is told next. A state machine fed with joins,
// heartbeats, departures and time: no clock, thread or network of its own.
#ifndef TANDEM_GATEWAY_MEMBERSHIP_H_
#define TANDEM_GATEWAY_MEMBERSHIP_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/model_config.h"
#include "common/placement.h"
#include "gateway/placement_planner.h"

namespace tandem {

enum class WorkerKind : uint8_t { kAttention, kExpert };
const char* WorkerKindName(WorkerKind kind);  // "attention", "expert"

struct JoinRequest {
  WorkerKind kind = WorkerKind::kAttention;
  std::string address;
  uint64_t incarnation = 0;
  std::string digest;
  std::string dtype;
  std::string numerics_class;
  std::string device;
  std::string build;    // version of its program
  absl::Duration busy;  // as in MemberHealth
  // Of expert workers.
  int64_t expert_capacity = std::numeric_limits<int64_t>::max();  // experts that its memory holds
  // Workers that name the same memory share it: each can have an equal part. Empty: its own.
  std::string memory;
  std::vector<bool> held;  // [num_layers * num_experts] or empty: what it has loaded already
};

struct MemberHealth {
  bool ready = false;
  float loaded = 0;
  PlacementVersion placement;
  absl::Duration busy;       // how long its engine has been at one piece of work
  absl::Duration load_idle;  // how long it has been at loading without any progress
  CounterSnapshot counters;
  bool draining = false;      // it wants to end, and waits until it may
  absl::Duration drain_left;  // for so long
  // Expert workers: less than when it joined if it has found no memory for so many.
  int64_t expert_capacity = std::numeric_limits<int64_t>::max();
  // [num_layers * num_experts], or empty if not told this time: tokens that went to each of its
  // experts since it was told last.
  std::vector<int64_t> expert_tokens;
  // Expert workers: the order that it had no memory to carry out, until it has carried out a later
  // one; and what it has loaded meanwhile, [num_layers * num_experts].
  PlacementVersion failed;
  std::vector<bool> held;
};

enum class MemberState : uint8_t {
  kJoining,   // nothing is known of it yet
  kLoading,   // it loads what it was told to
  kStalled,   // it should load, but does not get on: the others do without it until it does
  kReady,     // it has what it is to have
  kDraining,  // it is to end; it goes on until others have its experts, or its sequences have gone
};
const char* MemberStateName(MemberState state);  // "joining", ...

struct Member {
  WorkerId id = 0;
  JoinRequest join;
  MemberHealth health;
  absl::Time last_seen;
  bool heard = false;     // its first heartbeat has come
  bool serving = false;   // attention only: the step driver has it
  bool draining = false;  // its heartbeats say so
  bool released = false;  // was told that it may end
  // It makes no progress with loading: it keeps what placement() gives it, and gets no more.
  bool stalled = false;
  // Attention only, while it drains.
  absl::Time move_at = absl::InfiniteFuture();  // from then on its sequences go to others
  bool closed = false;                          // kDrainAttention was said
  bool moving = false;                          // kMoveAttention was said
  bool drained = false;                         // it has no sequence any more
  // Experts only, [num_layers * num_experts]: loaded, or told to load, and not yet told to let go.
  std::vector<bool> held;
};

struct MembershipOptions {
  // Fewest workers to begin with; how many there are later is up to them.
  int attention_workers = 1;
  int expert_workers = 1;
  int expert_copies = 2;  // as far as memory goes; 1: no second ones
  std::string digest;
  std::string dtype;
  // Of the first worker that joined, unless given; classes never mix.
  std::string numerics_class;
  absl::Duration lease = absl::Seconds(3);
  absl::Duration busy_limit = absl::Seconds(120);  // a worker that is busy for longer hangs
  absl::Duration load_limit = absl::Seconds(60);   // without progress, until others do without it
  // If workers bring experts from an earlier gateway's time, the first placement waits for others
  // until none has joined for so long: they dial again at least every second.
  absl::Duration settle = absl::Milliseconds(1500);
  // How often it is looked at whether other copies or owners would suit the measured load better.
  absl::Duration rebalance = absl::Seconds(60);
  uint64_t epoch = 0;
};

// What the owner is to do, in order.
struct MembershipAction {
  enum class Kind : uint8_t {
    kLoad,            // send expert worker `worker` the target()
    kUse,             // tell `worker` that placement() is in use: an attention worker, so that it
                      // uses it; an expert worker, once all attention workers do
    kDrain,           // tell `worker` to end once nobody needs it
    kRelease,         // tell `worker`, which drains, that nobody needs it any more
    kStartAttention,  // dial `worker` at `address` and give it steps
    kStopAttention,   // it is gone: give it no more steps
    kDrainAttention,  // it drains: give it no more sequences
    kMoveAttention,   // it still drains: those that it has are to go to others
    kDrop,            // its lease ran out, or it hangs: close its stream, saying `why`
  };
  Kind kind;
  WorkerId worker = 0;
  std::string address;
  std::string why;
};

class Membership {
 public:
  static constexpr int kMaxWorkers = 1024;  // of a kind

  Membership(const ModelConfig* config, MembershipOptions options);

  //   FAILED_PRECONDITION  another checkpoint, mode or numerics class; both sides are named
  //   INVALID_ARGUMENT     no address
  //   UNAVAILABLE          its engine hangs
  //   RESOURCE_EXHAUSTED   there are kMaxWorkers of its kind
  absl::StatusOr<WorkerId> Join(const JoinRequest& request, absl::Time now);
  void Heartbeat(WorkerId worker, MemberHealth health, absl::Time now);
  void Leave(WorkerId worker);
  // Has a worker told to drain, as if it had been sent SIGTERM.
  //   NOT_FOUND            there is no such worker
  //   FAILED_PRECONDITION  there is no other attention worker, or the memory of the other expert
  //                        workers does not suffice
  absl::Status Drain(WorkerId worker);
  // The session that kStartAttention asked for was not made, or broke later: it is asked for again
  // at the next Advance.
  void SessionLost(WorkerId worker);
  // An attention worker for which kDrainAttention was said has no sequences any more.
  void SequencesGone(WorkerId worker);

  // Everything to do now that was not said before. Call after every event and every lease / 4:
  // after a pause of more than lease / 2 no lease ends before its time has passed anew.
  std::vector<MembershipAction> Advance(absl::Time now);

  // What is in use: every expert in it is loaded. Version 0: nothing yet.
  const Placement& placement() const { return placement_; }
  // What is to be in use next; the same when nothing is under way.
  const Placement& target() const { return target_; }
  const std::map<WorkerId, Member>& members() const { return members_; }
  MemberState StateOf(const Member& member) const;
  // Whether requests can be served.
  bool serving() const;
  // For people: what is waited for, as in "1 of 2 attention, 0 of 1 expert",
  // and which workers were let go and why.
  std::string Detail() const;
  // Why the experts are not placed as they should be; empty: they are.
  const std::string& plan_error() const { return plan_error_; }
  // How many experts of the model, over all layers, how many members hold, by placement().
  struct Coverage {
    int64_t experts = 0;
    int64_t without_holder = 0;   // requests wait
    int64_t with_one_holder = 0;  // they would if it died
  };
  Coverage ExpertCoverage() const;

 private:
  int Count(WorkerKind kind) const;
  // Attention workers that take sequences.
  int64_t NumOpen() const;
  void DrainAttention(absl::Time now, std::vector<MembershipAction>& actions);
  void UpdateCovered();
  bool TargetLoaded() const;
  // Whether `placement_` gives the worker all that `target_` does.
  bool HasAll(const Member& member) const;
  // By all attention workers that were told of any.
  bool PlacementUsed() const;
  ExpertHost MakeHost(const Member& member) const;
  PlanRequest MakePlanRequest(uint64_t counter) const;
  bool MayPlan(absl::Time now) const;
  void Replan();
  void Rebalance(absl::Time now);
  void SetTarget(Plan plan);
  // What expert workers are told once `placement_` is in use everywhere.
  void LetGoOfOld(std::vector<MembershipAction>& actions);

  const ModelConfig* const config_;
  MembershipOptions options_;
  std::map<WorkerId, Member> members_;
  WorkerId next_id_ = 1;
  Placement placement_;
  Placement target_;
  bool plan_due_ = true;        // something has changed since target_ was planned
  int rounds_ = 0;              // of plans since something changed, each put off by the one before
  bool next_round_ = false;     // the plan that is due is one of them
  bool plan_deferred_ = false;  // target_ is to be planned again once it is in use everywhere
  bool order_again_ = false;    // the next target_ is new though it may be the same
  bool covered_ = false;        // every expert of placement_ has a holder that is a member
  uint64_t let_go_of_ = 0;  // counter of the placement_ for which all workers let go of old ones
  std::string plan_error_;  // why there is no better target_; empty: no reason
  bool complete_ = false;   // once there were attention workers enough
  absl::Time last_advance_ = absl::InfinitePast();
  absl::Time heard_since_ = absl::InfinitePast();  // without a pause
  absl::Time last_join_ = absl::InfinitePast();
  absl::Time last_rebalance_ = absl::InfinitePast();
  std::vector<double> load_;                // tokens by expert, of old ones less and less
  std::map<WorkerId, uint64_t> load_sent_;  // newest placement counter sent to each
  std::map<WorkerId, uint64_t> use_sent_;
  std::vector<MembershipAction> departures_;  // to be said at the next Advance
  struct LetGo {
    WorkerKind kind;
    std::string why;
  };
  std::map<std::string, LetGo> let_go_;  // by address; until all of its kind are there again
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_MEMBERSHIP_H_
