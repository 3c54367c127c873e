// One life of an attention worker's program in a simulation. Dispatcher, engine and model are the
// real ones.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATED_ATTENTION_H_
#define TANDEM_TESTS_SIMULATION_SIMULATED_ATTENTION_H_

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "attention_worker/dispatched_experts.h"
#include "attention_worker/engine_core.h"
#include "common/transport/expert_dispatcher.h"
#include "tests/simulation/simulated_expert.h"
#include "tests/simulation/simulated_worker.h"

namespace tandem {

class SimulatedAttention : public SimulatedWorker {
 public:
  // A session of a gateway: what it is told of.
  class Session : public AttentionLink::Observer {
   public:
    virtual ~Session() = default;
    std::unique_ptr<AttentionLink> link;
  };

  SimulatedAttention(SimulatedWorld* world, const std::string& name, int host,
                     const std::string& address, uint64_t incarnation, int total_pages,
                     DispatcherOptions options)
      : SimulatedWorker(world, name, host, address, incarnation),
        total_pages_(total_pages),
        ledger_(&world->time),
        dispatcher_(incarnation, WithClock(std::move(options), &world->time),
                    [this](const Placement::Worker& worker) {
                      return std::make_shared<SimulatedExpertLink>(&world_, &process_, &ledger_,
                                                                   worker);
                    }),
        experts_(world->model.backend(), world->model.config().experts_per_token, &dispatcher_),
        checked_experts_(world->model.backend(), &experts_, &ledger_, &world->trace),
        core_(TinyModel::Value(AttentionEngineCore::Create(
            world->model.backend(), world->model.model(), &checked_experts_,
            {.total_pages = total_pages, .ids_with_token = {}}, [this] { ScheduleTurn(); },
            [world] { return world->time.now(); }))) {}
  ~SimulatedAttention() override {
    ended_ = true;
    sessions_.clear();
    while (core_->Turn()) continue;  // it lets go of what its sessions had
    core_.reset();
  }

  ExpertDispatcher& dispatcher() { return dispatcher_; }
  const DispatchLedger& ledger() const { return ledger_; }
  AttentionEngineCore& core() { return *core_; }

  // A gateway's session over a connection, of which this is side 1.
  template <typename MakeObserver>
  void Accept(const std::shared_ptr<SimulatedConnection>& connection,
              const MakeObserver& make_observer) {
    const SimulatedConnection* const key = connection.get();
    std::unique_ptr<Session> session = make_observer();
    session->link = core_->Connect(session.get());
    sessions_[key] = std::move(session);
    connection->OnBreak(1, [this, key] { sessions_.erase(key); });
  }
  // Null once it has ended.
  AttentionLink* LinkOf(const SimulatedConnection* connection) {
    const auto it = sessions_.find(connection);
    return it == sessions_.end() ? nullptr : it->second->link.get();
  }

  void CheckAtEnd() {
    for (const auto& [name, value] : core_->Counters()) {
      const int64_t expected = name == "pages_free"      ? total_pages_
                               : name == "sessions_live" ? 1
                                                         : 0;
      if ((name == "pages_free" || name.ends_with("_live")) && value != expected) {
        world_.trace.Violation(process_.name(), ": ", name, " is ", value, ", not ", expected);
      }
    }
    for (const auto& [name, value] : dispatcher_.Counters()) {
      if (name == "parts_live" && value != 0) {
        world_.trace.Violation(process_.name(), " has ", value, " parts out");
      }
    }
  }

 protected:
  JoinRequest Hello() override {
    JoinRequest hello;
    hello.kind = WorkerKind::kAttention;
    hello.address = address();
    hello.incarnation = incarnation();
    hello.busy = busy();
    return hello;
  }
  MemberHealth Health() override {
    MemberHealth health;
    health.placement = dispatcher_.oldest_in_use();
    if (ledger_.Order(health.placement) > ledger_.OldestInUse()) {
      world_.trace.Violation(process_.name(), " says that it uses version ",
                             health.placement.counter, " at least, but has older parts out");
    }
    health.ready = health.placement.counter > 0;
    ReportDrain(&health);
    return health;
  }
  bool has_loaded() const override { return true; }
  void Use(const Placement& placement) override {
    ledger_.OnPlacement(placement);
    dispatcher_.SetPlacement(placement);
  }
  void DoDuties() override { duties_.TakeWork(); }

 private:
  static DispatcherOptions WithClock(DispatcherOptions options, SimulatedTime* time) {
    options.now = [time] { return time->now(); };
    return options;
  }
  void ScheduleTurn() {
    if (turn_scheduled_ || ended_) return;
    turn_scheduled_ = true;
    AfterEngineWork(std::chrono::microseconds(20), [this] {
      turn_scheduled_ = false;
      Turn();
    });
  }
  void Turn() {
    if (core_->Turn()) return ScheduleTurn();
    const auto wake = core_->wake_time();
    if (!wake.has_value() || *wake == AttentionEngineCore::Clock::time_point::max()) return;
    if (alarm_ > world_.time.now() && alarm_ <= *wake) return;
    alarm_ = *wake;
    process_.At(alarm_, [this] { ScheduleTurn(); });
  }

  const int total_pages_;
  bool turn_scheduled_ = false;
  bool ended_ = false;
  AttentionEngineCore::Clock::time_point alarm_;
  DispatchLedger ledger_;
  ExpertDispatcher dispatcher_;
  DispatchedExperts experts_;
  CheckedExperts checked_experts_;
  std::unique_ptr<AttentionEngineCore> core_;
  std::map<const SimulatedConnection*, std::unique_ptr<Session>> sessions_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATED_ATTENTION_H_
