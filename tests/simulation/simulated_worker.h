// What the programs of a simulated deployment have in common, and a worker's side of the registry.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATED_WORKER_H_
#define TANDEM_TESTS_SIMULATION_SIMULATED_WORKER_H_

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "deployment/worker_duties.h"
#include "gateway/membership.h"
#include "tests/simulation/simulated_network.h"
#include "tests/simulation/tiny_model.h"

namespace tandem {

class SimulatedAttention;
class SimulatedExpert;
class SimulatedGateway;

// Faults of single frames between attention and expert workers.
struct FrameFaults {
  double lost = 0;
  double twice = 0;
  double corrupt = 0;  // a bit
};

// Where every program of one simulation finds the others.
struct SimulatedWorld {
  SimulatedWorld(const TinyModel* model_arg, uint64_t seed, bool traced)
      : model(*model_arg), trace(&time, traced), network(&time, seed) {}

  const TinyModel& model;
  SimulatedTime time;
  Trace trace;
  SimulatedNetwork network;
  FrameFaults frame_faults;
  absl::Duration lease = absl::Seconds(3);
  // By the address at which they listen now.
  std::map<std::string, SimulatedExpert*> experts;
  std::map<std::string, SimulatedAttention*> attention;
  SimulatedGateway* gateway = nullptr;

  int64_t steps = 0, parts = 0, failed_parts = 0;  // of all that there ever were
  int64_t attention_removals = 0;                  // that schedulers were told of
  int64_t steps_unavailable = 0;                   // likewise
  int64_t silences = 0;                            // of attention workers
  int64_t frames_lost = 0, frames_twice = 0, frames_corrupt = 0;
};

// One life of a worker's program: dials the gateway, reports, and is given orders.
class SimulatedWorker {
 public:
  SimulatedWorker(SimulatedWorld* world, std::string name, int host, std::string address,
                  uint64_t incarnation)
      : world_(*world),
        process_(&world->time, std::move(name), host),
        address_(std::move(address)),
        incarnation_(incarnation) {}
  virtual ~SimulatedWorker() = default;

  SimulatedProcess& process() { return process_; }
  const std::string& address() const { return address_; }
  uint64_t incarnation() const { return incarnation_; }
  bool is_member() const { return duties_.is_member(); }
  // Its only membership so far has lasted, as far as it knows; under this id.
  bool was_always_member() const { return memberships_ == 1 && is_member(); }
  WorkerId id() const { return id_; }
  bool has_ended() const { return has_ended_; }

  void Start();
  // From the gateway.
  void OnAccepted(WorkerId self) {
    duties_.Accepted(self);
    id_ = self;
    ++memberships_;
    pause_ = kFirstPause;
    Beat(connection_);
  }
  void OnLoad(const Placement& placement) {
    duties_.Load(placement);
    DoDuties();
  }
  void OnUse(const Placement& placement) {
    duties_.Use(placement.version);
    Use(placement);
    DoDuties();
  }
  void OnDrain() { Terminate(); }
  void OnReleased() {
    duties_.Released();
    EndIfItMay();
  }
  // As by SIGTERM.
  void Terminate() {
    if (!duties_.is_member() || !has_loaded()) {
      has_ended_ = true;
      return;
    }
    world_.trace.Note(process_.name(), " drains");
    duties_.Drain(world_.time.wall_now() + absl::FromChrono(kDrainLimit));
    process_.After(kDrainLimit, [this] { has_ended_ = true; });
  }
  // Its engine does nothing until then, while the rest of the program goes on.
  void HangUntil(SimulatedTime::Clock::time_point until) {
    if (busy() == absl::ZeroDuration()) hangs_since_ = world_.time.now();
    hangs_until_ = std::max(hangs_until_, until);
  }

 protected:
  virtual JoinRequest Hello() = 0;
  virtual MemberHealth Health() = 0;
  // Whether others must take over what it has before it ends.
  virtual bool has_loaded() const = 0;
  virtual void Use(const Placement&) {}
  // Duties may have work.
  virtual void DoDuties() {}

  // How long its engine has been at one piece of work.
  absl::Duration busy() const {
    if (world_.time.now() >= hangs_until_) return absl::ZeroDuration();
    return absl::FromChrono(world_.time.now() - hangs_since_);
  }
  void ReportDrain(MemberHealth* health) {
    health->busy = busy();
    health->draining = duties_.draining();
    health->drain_left =
        std::max(duties_.drain_until() - world_.time.wall_now(), absl::ZeroDuration());
    EndIfItMay();
  }
  // Of the engine: work that takes so long where nothing slows it down.
  void AfterEngineWork(Nanoseconds work, std::function<void()> what) {
    process_.AfterWork(work, [this, what = std::move(what)]() mutable {
      if (world_.time.now() >= hangs_until_) return what();
      process_.At(hangs_until_, [this, what = std::move(what)] { AfterEngineWork({}, what); });
    });
  }
  void EndIfItMay() {
    if (!duties_.draining() || !duties_.may_end() || has_ended_) return;
    world_.trace.Note(process_.name(), " ends by itself");
    has_ended_ = true;
  }

  SimulatedWorld& world_;
  SimulatedProcess process_;
  WorkerDuties duties_;
  bool has_ended_ = false;  // of itself; the world buries it

 private:
  static constexpr std::chrono::milliseconds kFirstPause{50};
  static constexpr std::chrono::milliseconds kLongestPause{1000};
  static constexpr std::chrono::seconds kDrainLimit{4};

  void Dial();
  void OnLost();
  void Beat(const std::shared_ptr<SimulatedConnection>& connection);
  void Pause() {
    process_.After(pause_, [this] { Dial(); });
    pause_ = std::min<Nanoseconds>(pause_ * 2, kLongestPause);
  }

  const std::string address_;
  const uint64_t incarnation_;
  std::shared_ptr<SimulatedConnection> connection_;
  Nanoseconds pause_ = kFirstPause;
  WorkerId id_ = 0;
  int memberships_ = 0;  // so far
  SimulatedTime::Clock::time_point hangs_since_;
  SimulatedTime::Clock::time_point hangs_until_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATED_WORKER_H_
