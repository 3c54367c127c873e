// One life of a gateway's program in a simulation: what Coordinator and StepDriver do with threads
// and gRPC around Membership and Scheduler, which are the real ones.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATED_GATEWAY_H_
#define TANDEM_TESTS_SIMULATION_SIMULATED_GATEWAY_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/transport/silence_watch.h"
#include "gateway/membership.h"
#include "gateway/scheduler.h"
#include "tests/simulation/simulated_attention.h"
#include "tests/simulation/simulated_expert.h"
#include "tests/simulation/simulated_worker.h"

namespace tandem {

class SimulatedGateway {
 public:
  using OnEvent = std::function<void(const SchedulerEvent&)>;

  SimulatedGateway(SimulatedWorld* world, const std::string& name, int host,
                   MembershipOptions options, SchedulerPolicy policy)
      : world_(*world),
        process_(&world->time, name, host),
        epoch_(options.epoch),
        busy_limit_(options.busy_limit),
        membership_(&world->model.config(), options),
        scheduler_(policy) {
    Tick();
  }

  SimulatedProcess& process() { return process_; }
  Membership& membership() { return membership_; }
  Scheduler& scheduler() { return scheduler_; }
  uint64_t epoch() const { return epoch_; }

  // Whether the process with this incarnation has been a member under this one id.
  bool WasAlwaysMember(const SimulatedWorker& worker) const {
    return worker.was_always_member() && membership_.members().contains(worker.id()) &&
           membership_.members().at(worker.id()).join.incarnation == worker.incarnation();
  }

  // ---- clients ----

  void Submit(const Job& job, OnEvent on_event, JobId* id) {
    *id = ++last_job_;
    sinks_[*id] = std::move(on_event);
    const absl::Status added = scheduler_.Add(*id, job, world_.time.wall_now());
    if (!added.ok()) world_.trace.Violation("a job is refused: ", added.ToString());
    SendOrders();
  }
  void Cancel(JobId id) {
    Deliver(scheduler_.Cancel(id));
    SendOrders();
  }
  void Drain(WorkerId worker) {
    if (membership_.Drain(worker).ok()) Advance();
  }

  // ---- workers ----

  void OnHello(const std::shared_ptr<SimulatedConnection>& connection, SimulatedWorker* worker,
               const JoinRequest& request) {
    const absl::StatusOr<WorkerId> joined = membership_.Join(request, world_.time.wall_now());
    if (!joined.ok()) {
      if (request.busy > busy_limit_) {
        world_.trace.Note(request.address, " is refused: ", joined.status().ToString());
      } else {
        world_.trace.Violation(request.address, " is refused: ", joined.status().ToString());
      }
      return connection->Close(1);
    }
    const WorkerId id = *joined;
    world_.trace.Note(worker->process().name(), " joins as worker ", id);
    streams_[id] = {connection, worker};
    connection->OnBreak(1, [this, id] {
      world_.trace.Note("worker ", id, " left");
      streams_.erase(id);
      membership_.Leave(id);
      Advance();
    });
    connection->Send(1, [worker, id] { worker->OnAccepted(id); });
    Advance();
  }
  void OnHeartbeat(const SimulatedConnection* connection, const MemberHealth& health) {
    for (const auto& [id, stream] : streams_) {
      if (stream.connection.get() != connection) continue;
      membership_.Heartbeat(id, health, world_.time.wall_now());
      return Advance();
    }
  }

  void CheckAtEnd();

 private:
  struct Stream {
    std::shared_ptr<SimulatedConnection> connection;
    SimulatedWorker* worker;  // only for what is sent over the connection
  };
  // A session with an attention worker.
  struct Peer {
    WorkerId id = 0;
    std::shared_ptr<SimulatedConnection> connection;
    SimulatedAttention* worker = nullptr;  // likewise
    bool joined = false;
    std::optional<SilenceWatch> silence;  // once it has joined
    SimulatedTime::Clock::time_point heard;
    std::set<SequenceId> sequences;  // that it has been told of
  };

  void Tick() {
    Advance();
    process_.After(absl::ToChronoNanoseconds(world_.lease / 10), [this] { Tick(); });
  }
  void Advance();
  void CarryOut(const MembershipAction& action);
  void StartAttention(WorkerId id, const std::string& address);
  void StopAttention(WorkerId id, const char* why);
  // Of a peer's session, as GrpcAttentionLink.
  void Hear(Peer& peer);
  void KeepAlive(const std::shared_ptr<Peer>& peer);
  void SendOrders();
  void Send(Peer& peer, WorkerOrders orders);
  void Deliver(std::vector<SchedulerEvent> events);
  void CheckUsed(const Placement& placement);
  void CheckLetGo(WorkerId worker, bool release);
  void CheckHasNothing(WorkerId worker);
  // The process that a member is, if it still lives.
  template <typename Worker>
  Worker* ProcessOf(const std::map<std::string, Worker*>& all, const JoinRequest& join) {
    const auto it = all.find(join.address);
    return it == all.end() || it->second->incarnation() != join.incarnation ? nullptr : it->second;
  }

  // As GrpcAttentionLinkOptions.
  static constexpr SilenceWatch::Options kSilence{
      std::chrono::milliseconds(700), SimulatedNetwork::kSilenceLimit, std::chrono::seconds(30),
      std::chrono::milliseconds(200)};

  SimulatedWorld& world_;
  SimulatedProcess process_;
  const uint64_t epoch_;
  const absl::Duration busy_limit_;
  Membership membership_;
  Scheduler scheduler_;
  PlacementVersion in_use_;
  std::map<WorkerId, Stream> streams_;
  std::map<WorkerId, std::shared_ptr<Peer>> peers_;
  std::map<JobId, OnEvent> sinks_;
  JobId last_job_ = 0;
  SimulatedTime::Clock::time_point alarm_;
};

// ---- membership ---------------------------------------------------------------------------------

inline void SimulatedGateway::Advance() {
  for (const auto& [id, member] : membership_.members()) {
    if (member.serving && !peers_.contains(id)) membership_.SessionLost(id);
    if (member.closed && scheduler_.IsDrained(id)) membership_.SequencesGone(id);
  }
  const std::vector<MembershipAction> actions = membership_.Advance(world_.time.wall_now());
  if (membership_.placement().version != in_use_) {
    in_use_ = membership_.placement().version;
    world_.trace.Note("placement ", in_use_.counter, " is in use");
    CheckUsed(membership_.placement());
  }
  for (const MembershipAction& action : actions) CarryOut(action);
}

inline void SimulatedGateway::CarryOut(const MembershipAction& action) {
  using Kind = MembershipAction::Kind;
  const auto it = streams_.find(action.worker);
  const auto order = [&](auto tell) {
    if (it == streams_.end()) return;
    it->second.connection->Send(1, [tell, worker = it->second.worker] { tell(*worker); });
  };
  switch (action.kind) {
    case Kind::kLoad:
      world_.trace.Note("worker ", action.worker, " is to load version ",
                        membership_.target().version.counter);
      return order([placement = membership_.target()](auto& w) { w.OnLoad(placement); });
    case Kind::kUse:
      if (membership_.members().at(action.worker).join.kind == WorkerKind::kExpert) {
        CheckLetGo(action.worker, false);
      }
      return order([placement = membership_.placement()](auto& w) { w.OnUse(placement); });
    case Kind::kDrain:
      return order([](auto& w) { w.OnDrain(); });
    case Kind::kRelease:
      world_.trace.Note("worker ", action.worker, " may end");
      if (membership_.members().at(action.worker).join.kind == WorkerKind::kExpert) {
        CheckLetGo(action.worker, true);
      }
      return order([](auto& w) { w.OnReleased(); });
    case Kind::kDrop:
      world_.trace.Note("worker ", action.worker, " is let go: ", action.why);
      if (it == streams_.end()) return;
      it->second.connection->Close(1);
      streams_.erase(it);
      return;
    case Kind::kDrainAttention:
    case Kind::kMoveAttention:
      scheduler_.DrainWorker(action.worker, action.kind == Kind::kMoveAttention);
      return SendOrders();
    case Kind::kStartAttention:
      return StartAttention(action.worker, action.address);
    case Kind::kStopAttention:
      CheckHasNothing(action.worker);
      return StopAttention(action.worker, "it is no member");
  }
}

// Every expert of a placement that comes into use is loaded.
inline void SimulatedGateway::CheckUsed(const Placement& placement) {
  for (const Placement::Worker& worker : placement.workers) {
    const auto it = world_.experts.find(worker.address);
    if (it == world_.experts.end() || it->second->incarnation() != worker.incarnation) continue;
    const std::vector<bool> given = placement.GivenTo(worker.id);
    const std::vector<bool> loaded = it->second->experts().Loaded();
    for (size_t i = 0; i < given.size(); ++i) {
      if (!given[i] || loaded[i]) continue;
      return world_.trace.Violation("placement ", placement.version.counter, " names expert ", i,
                                    " at ", it->second->process().name(),
                                    ", which has not loaded it");
    }
  }
}

// Nobody uses an older placement once expert workers may let go of what it named.
inline void SimulatedGateway::CheckLetGo(WorkerId worker, bool release) {
  const PlacementVersion in_use = membership_.placement().version;
  for (const auto& [id, member] : membership_.members()) {
    if (member.join.kind != WorkerKind::kAttention) continue;
    SimulatedAttention* const attention = ProcessOf(world_.attention, member.join);
    if (attention == nullptr) continue;
    const PlacementVersion used = attention->dispatcher().oldest_in_use();
    if (used == in_use || used.counter == 0) continue;
    world_.trace.Violation("worker ", worker, release ? " may end" : " lets go", " while ",
                           attention->process().name(), " uses version ", used.counter, ", not ",
                           in_use.counter);
  }
  if (!release) return;
  const std::vector<bool> given = membership_.placement().GivenTo(worker);
  if (std::find(given.begin(), given.end(), true) != given.end()) {
    world_.trace.Violation("worker ", worker, " may end, but has experts");
  }
}

// Of an attention worker that drains, and is given no more steps because it may end.
inline void SimulatedGateway::CheckHasNothing(WorkerId worker) {
  const auto member = membership_.members().find(worker);
  const auto peer = peers_.find(worker);
  if (member == membership_.members().end() || peer == peers_.end()) return;
  if (peer->second->sequences.empty()) return;
  world_.trace.Violation("worker ", worker, " may end, but has ", peer->second->sequences.size(),
                         " sequences");
}

// ---- sessions -----------------------------------------------------------------------------------

inline void SimulatedGateway::StartAttention(WorkerId id, const std::string& address) {
  const auto it = world_.attention.find(address);
  if (it == world_.attention.end()) return;  // the next Advance sees that there is no session
  const uint64_t used = it->second->dispatcher().oldest_in_use().epoch;
  if (used != epoch_ && ProcessOf(world_.attention, membership_.members().at(id).join) != nullptr) {
    world_.trace.Violation(it->second->process().name(),
                           " is given steps while it uses a placement of another gateway");
  }
  const auto peer = std::make_shared<Peer>();
  peer->id = id;
  peer->worker = it->second;
  peer->connection = world_.network.Connect(process_, it->second->process());
  peers_[id] = peer;
  // The worker's side.
  class Session : public SimulatedAttention::Session {
   public:
    Session(SimulatedGateway* gateway, std::shared_ptr<SimulatedConnection> connection, WorkerId id)
        : gateway_(gateway), connection_(std::move(connection)), id_(id) {}
    void OnStepResult(StepResult result) override {
      connection_->Send(1, [gateway = gateway_, id = id_, key = connection_.get(), result] {
        const auto it = gateway->peers_.find(id);
        if (it == gateway->peers_.end() || it->second->connection.get() != key) return;
        gateway->Hear(*it->second);
        if (absl::IsUnavailable(result.status)) ++gateway->world_.steps_unavailable;
        if (!result.status.ok()) {
          gateway->world_.trace.Note("worker ", id, ", step ", result.step, ": ",
                                     result.status.ToString());
        }
        gateway->Deliver(gateway->scheduler_.OnStepDone(id, result));
        gateway->SendOrders();
      });
    }
    void OnDown(absl::Status) override {}

   private:
    SimulatedGateway* const gateway_;
    const std::shared_ptr<SimulatedConnection> connection_;
    const WorkerId id_;
  };
  peer->connection->OnBreak(0, [this, id] { StopAttention(id, "the connection broke"); });
  SimulatedConnection* const connection = peer->connection.get();
  connection->Send(0, [this, id, connection, worker = peer->worker] {
    worker->Accept(connection->shared_from_this(), [&] {
      return std::make_unique<Session>(this, connection->shared_from_this(), id);
    });
    const AttentionWorkerInfo info = worker->LinkOf(connection)->info();
    connection->Send(1, [this, id, info] {
      const auto it = peers_.find(id);
      if (it == peers_.end()) return;
      it->second->joined = true;
      TANDEM_CHECK(scheduler_.AddWorker(id, info).ok());
      it->second->silence.emplace(kSilence, world_.time.now());
      it->second->heard = world_.time.now();
      KeepAlive(it->second);
      world_.trace.Note("attention worker ", id, " is given steps");
      SendOrders();
    });
  });
}

inline void SimulatedGateway::Hear(Peer& peer) {
  peer.heard = world_.time.now();
  if (!peer.silence.has_value() || !peer.silence->Heard(peer.heard)) return;
  world_.trace.Note("attention worker ", peer.id, " speaks again");
  scheduler_.SetSilent(peer.id, false);
  SendOrders();
}

inline void SimulatedGateway::KeepAlive(const std::shared_ptr<Peer>& peer) {
  const auto it = peers_.find(peer->id);
  if (it == peers_.end() || it->second != peer) return;
  const auto now = world_.time.now();
  if (now - peer->heard >= SimulatedNetwork::kSilenceLimit) {
    return StopAttention(peer->id, "it said nothing");
  }
  if (peer->silence->Look(now, false)) {
    ++world_.silences;
    world_.trace.Note("attention worker ", peer->id, " is silent");
    scheduler_.SetSilent(peer->id, true);
    SendOrders();
  }
  SimulatedConnection* const connection = peer->connection.get();
  connection->Send(0, [this, connection, id = peer->id] {
    connection->Send(1, [this, connection, id] {
      const auto it = peers_.find(id);
      if (it != peers_.end() && it->second->connection.get() == connection) Hear(*it->second);
    });
  });
  process_.After(kSilence.look_interval, [this, peer] { KeepAlive(peer); });
}

inline void SimulatedGateway::StopAttention(WorkerId id, const char* why) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  const std::shared_ptr<Peer> peer = it->second;
  peers_.erase(it);
  peer->connection->Close(0);
  if (!peer->joined) return;
  world_.trace.Note("attention worker ", id, " is given no more steps: ", why);
  ++world_.attention_removals;
  Deliver(scheduler_.RemoveWorker(id, world_.time.wall_now()));
  SendOrders();
}

inline void SimulatedGateway::SendOrders() {
  Deliver(scheduler_.Expire(world_.time.wall_now()));
  bool again = true;
  while (again) {
    again = false;
    for (const auto& [id, peer] : peers_) {
      if (!peer->joined) continue;
      WorkerOrders orders = scheduler_.NextStep(id);
      again = orders.changed_something() || again;
      Send(*peer, std::move(orders));
    }
  }
  const absl::Time deadline = scheduler_.NextDeadline();
  if (deadline == absl::InfiniteFuture()) return;
  const auto when =
      world_.time.now() + absl::ToChronoNanoseconds(deadline - world_.time.wall_now());
  if (alarm_ > world_.time.now() && alarm_ <= when) return;
  alarm_ = when;
  process_.At(when, [this] { SendOrders(); });
}

inline void SimulatedGateway::Send(Peer& peer, WorkerOrders orders) {
  SimulatedConnection* const connection = peer.connection.get();
  const auto tell = [&](auto what) {
    connection->Send(0, [connection, worker = peer.worker, what = std::move(what)]() mutable {
      if (AttentionLink* const link = worker->LinkOf(connection)) what(*link);
    });
  };
  for (const SequenceId id : orders.cancels) {
    peer.sequences.erase(id);
    tell([id](auto& link) { link.Cancel(id); });
  }
  for (const SequenceId id : orders.releases) {
    peer.sequences.erase(id);
    tell([id](auto& link) { link.Release(id); });
  }
  for (SequenceSpec& spec : orders.opens) {
    peer.sequences.insert(spec.sequence);
    tell([spec = std::move(spec)](auto& link) { link.OpenSequence(spec); });
  }
  if (orders.step.has_value()) {
    ++world_.steps;
    tell([step = *std::move(orders.step)](auto& link) { link.Run(step); });
  }
  Deliver(std::move(orders.events));
}

inline void SimulatedGateway::Deliver(std::vector<SchedulerEvent> events) {
  for (const SchedulerEvent& event : events) {
    const auto it = sinks_.find(event.job);
    if (it == sinks_.end()) {
      world_.trace.Violation("job ", event.job, " is told of after its end");
      continue;
    }
    const OnEvent sink = it->second;
    if (event.kind == SchedulerEvent::Kind::kDone) sinks_.erase(it);
    sink(event);
  }
}

inline void SimulatedGateway::CheckAtEnd() {
  Trace& trace = world_.trace;
  if (membership_.placement().version != membership_.target().version) {
    trace.Violation("placement ", membership_.placement().version.counter, " is in use, but ",
                    membership_.target().version.counter, " is wanted");
  }
  if (!membership_.plan_error().empty()) trace.Violation(membership_.plan_error());
  if (!membership_.serving()) trace.Violation("not serving: ", membership_.Detail());
  if (scheduler_.num_waiting() + scheduler_.num_running() > 0 || !sinks_.empty()) {
    trace.Violation(sinks_.size(), " jobs are left");
  }
  if (scheduler_.num_outstanding_steps() > 0) trace.Violation("steps are outstanding");
  for (const auto& [id, member] : membership_.members()) {
    if (member.join.kind != WorkerKind::kAttention) continue;
    SimulatedAttention* const attention = ProcessOf(world_.attention, member.join);
    if (attention == nullptr || !peers_.contains(id) || !peers_.at(id)->joined) {
      trace.Violation("attention worker ", id, " is not given steps");
      continue;
    }
    for (const auto& [name, value] : attention->core().Counters()) {
      if (name == "pages_total" && scheduler_.free_pages(id) != value) {
        trace.Violation("of worker ", id, "'s ", value, " pages ", scheduler_.free_pages(id),
                        " are free by the scheduler's count");
      }
    }
    attention->CheckAtEnd();
  }
  for (const auto& [address, expert] : world_.experts) {
    const Member* found = nullptr;
    for (const auto& [id, member] : membership_.members()) {
      if (member.join.address == address && member.join.incarnation == expert->incarnation()) {
        found = &member;
      }
    }
    expert->CheckAtEnd(found);
  }
}

// ---- what expert workers answer
// ------------------------------------------------------------------

// Between members a placement that is in use names nothing that is not there.
inline void SimulatedExpert::CheckRefusal(const ExpertRequest& request,
                                          const Placement::Worker& named,
                                          const absl::Status& status) {
  if (!absl::IsNotFound(status) && !absl::IsFailedPrecondition(status)) return;
  const SimulatedGateway* const gateway = world_.gateway;
  if (gateway == nullptr || request.placement.epoch != gateway->epoch()) return;
  if (named.incarnation != incarnation() || !gateway->WasAlwaysMember(*this)) return;
  for (const auto& [address, attention] : world_.attention) {
    if (attention->incarnation() != request.id.incarnation) continue;
    if (!gateway->WasAlwaysMember(*attention)) return;
    // What was given up meanwhile may come late.
    if (attention->dispatcher().oldest_in_use() > request.placement &&
        !attention->ledger().Wants(request.id.part)) {
      return;
    }
    world_.trace.Violation(process_.name(), " refuses what version ", request.placement.counter,
                           " gives it, to ", attention->process().name(), ": ", status.ToString());
  }
}

// ---- a worker's side of the registry ------------------------------------------------------------

inline void SimulatedWorker::Start() { Dial(); }

inline void SimulatedWorker::Dial() {
  if (world_.gateway == nullptr) return Pause();
  SimulatedGateway* const gateway = world_.gateway;
  const auto connection = world_.network.Connect(process_, gateway->process());
  connection_ = connection;
  connection->OnBreak(0, [this] { OnLost(); });
  SimulatedConnection* const raw = connection.get();
  connection->Send(0, [gateway, raw, this, hello = Hello()] {
    gateway->OnHello(raw->shared_from_this(), this, hello);
  });
}

inline void SimulatedWorker::OnLost() {
  world_.trace.Note(process_.name(), " has lost its gateway");
  duties_.Lost();
  connection_ = nullptr;
  EndIfItMay();
  Pause();
}

inline void SimulatedWorker::Beat(const std::shared_ptr<SimulatedConnection>& connection) {
  if (connection != connection_ || connection->broken()) return;
  SimulatedGateway* const gateway = world_.gateway;
  if (gateway != nullptr) {
    connection->Send(0, [gateway, raw = connection.get(), health = Health()] {
      gateway->OnHeartbeat(raw, health);
    });
  }
  process_.After(absl::ToChronoNanoseconds(world_.lease / 10),
                 [this, connection] { Beat(connection); });
}

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATED_GATEWAY_H_
