// What the programs of a simulated deployment have in common, and a worker's side of the registry.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATED_WORKER_H_
#define TANDEM_TESTS_SIMULATION_SIMULATED_WORKER_H_

#include <algorithm>
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
  virtual void Terminate() = 0;

 protected:
  virtual JoinRequest Hello() = 0;
  virtual MemberHealth Health() = 0;
  virtual void Use(const Placement&) {}
  // Duties may have work.
  virtual void DoDuties() {}

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
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATED_WORKER_H_
