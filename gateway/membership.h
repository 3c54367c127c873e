// Who belongs to a deployment, and what each is told next. A state machine fed with joins,
// heartbeats, departures and time: no clock, thread or network of its own.
#ifndef TANDEM_GATEWAY_MEMBERSHIP_H_
#define TANDEM_GATEWAY_MEMBERSHIP_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/model_config.h"
#include "common/placement.h"

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
  absl::Duration busy;  // as in MemberHealth
};

struct MemberHealth {
  bool ready = false;
  float loaded = 0;
  PlacementVersion placement;
  absl::Duration busy;  // how long its engine has been at one piece of work
  CounterSnapshot counters;
};

struct Member {
  WorkerId id = 0;
  JoinRequest join;
  MemberHealth health;
  absl::Time last_seen;
  bool serving = false;  // attention only: the step driver has it
};

// The topology that the deployment waits for.
struct MembershipOptions {
  int attention_workers = 1;
  int expert_workers = 1;
  std::string digest;
  std::string dtype;
  // Of the first worker that joined, unless given; classes never mix.
  std::string numerics_class;
  absl::Duration lease = absl::Seconds(3);
  absl::Duration busy_limit = absl::Seconds(120);  // a worker that is busy for longer hangs
  uint64_t epoch = 0;
};

// What the owner is to do, in order.
struct MembershipAction {
  enum class Kind : uint8_t {
    kLoad,            // send `placement` to expert worker `worker`
    kUse,             // tell `worker` that `placement` is in use: an attention worker, so that it
                      // uses it; an expert worker, once all attention workers do
    kStartAttention,  // dial `worker` at `address` and give it steps
    kStopAttention,   // it is gone: give it no more steps
    kDrop,            // its lease ran out, or it hangs: close its stream, saying `why`
  };
  Kind kind;
  WorkerId worker = 0;
  std::string address;
  std::string why;
};

class Membership {
 public:
  Membership(const ModelConfig* config, MembershipOptions options);

  //   FAILED_PRECONDITION  another checkpoint, mode or numerics class; both sides are named
  //   INVALID_ARGUMENT     no address
  //   UNAVAILABLE          its engine hangs
  //   RESOURCE_EXHAUSTED   the topology has all the workers of that kind that it wants
  absl::StatusOr<WorkerId> Join(const JoinRequest& request, absl::Time now);
  void Heartbeat(WorkerId worker, MemberHealth health, absl::Time now);
  void Leave(WorkerId worker);
  // The session that kStartAttention asked for was not made, or broke later: it is asked for again
  // at the next Advance.
  void SessionLost(WorkerId worker);

  // Everything to do now that was not said before. Call after every event and every lease / 4.
  std::vector<MembershipAction> Advance(absl::Time now);

  const Placement& placement() const { return placement_; }
  const std::map<WorkerId, Member>& members() const { return members_; }
  // Whether requests can be served.
  bool serving() const;
  // For people: what is waited for, as in "1 of 2 attention, 0 of 1 expert",
  // and which workers were let go and why.
  std::string Detail() const;

 private:
  int Count(WorkerKind kind) const;
  bool PlacementLoaded() const;
  // By all attention workers, which are all there.
  bool PlacementUsed() const;
  void Replan();

  const ModelConfig* const config_;
  MembershipOptions options_;
  std::map<WorkerId, Member> members_;
  WorkerId next_id_ = 1;
  Placement placement_;                     // version.counter 0: none yet
  bool experts_changed_ = true;             // since placement_ was planned
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
