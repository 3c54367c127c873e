#include "gateway/coordinator.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "common/service/registry_client.h"
#include "common/status.h"
#include "proto/registry.grpc.pb.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// Often enough to keep the connection's polling hot.
constexpr uint32_t kHeartbeatMs = 300;
// Between two looks at what has changed: the reports of many workers are looked at together.
constexpr std::chrono::milliseconds kLeastPause(10);
constexpr uint64_t kMaxDrainMs = 86'400'000;  // that is believed: a day

int64_t Count(uint64_t value) {
  return static_cast<int64_t>(
      std::min(value, static_cast<uint64_t>(std::numeric_limits<int64_t>::max())));
}

absl::StatusOr<JoinRequest> FromProto(const v1::WorkerHello& hello) {
  JoinRequest request;
  switch (hello.kind()) {
    case v1::WORKER_KIND_ATTENTION:
      request.kind = WorkerKind::kAttention;
      break;
    case v1::WORKER_KIND_EXPERT:
      request.kind = WorkerKind::kExpert;
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("the worker at ", hello.address(),
                                                     " is of the unknown kind ",
                                                     static_cast<int>(hello.kind())));
  }
  request.address = hello.address();
  request.incarnation = hello.incarnation();
  request.digest = hello.digest();
  request.dtype = hello.dtype();
  request.numerics_class = hello.numerics_class();
  request.device = hello.device();
  request.build = hello.build();
  request.busy = absl::Milliseconds(hello.busy_ms());
  if (request.kind == WorkerKind::kExpert) {
    request.expert_capacity = Count(hello.expert_capacity());
    request.memory = hello.memory();
    request.held = UnpackBits(hello.held_experts());
  }
  return request;
}

MemberHealth FromProto(const v1::WorkerHeartbeat& heartbeat) {
  MemberHealth health;
  health.ready = heartbeat.ready();
  health.loaded = heartbeat.loaded();
  health.placement = {heartbeat.placement_epoch(), heartbeat.placement_counter()};
  health.busy = absl::Milliseconds(heartbeat.busy_ms());
  health.load_idle = absl::Milliseconds(Count(heartbeat.load_idle_ms()));
  health.counters.assign(heartbeat.counters().begin(), heartbeat.counters().end());
  std::sort(health.counters.begin(), health.counters.end());
  health.draining = heartbeat.draining();
  health.drain_left =
      absl::Milliseconds(std::min<uint64_t>(heartbeat.drain_left_ms(), kMaxDrainMs));
  if (heartbeat.has_expert_capacity()) health.expert_capacity = Count(heartbeat.expert_capacity());
  health.failed = {heartbeat.failed_epoch(), heartbeat.failed_counter()};
  health.held = UnpackBits(heartbeat.held_experts());
  for (const uint64_t tokens : heartbeat.expert_tokens()) {
    health.expert_tokens.push_back(Count(tokens));
  }
  return health;
}

}  // namespace

class Coordinator::Impl {
 public:
  Impl(const ModelConfig* config, MembershipOptions options, StepDriver* driver,
       AttentionDialer dial, std::function<void(bool)> on_serving_changed)
      : membership_(config, options),
        interval_(absl::ToChronoMilliseconds(options.lease / 10)),
        driver_(driver),
        dial_(std::move(dial)),
        on_serving_changed_(std::move(on_serving_changed)),
        epoch_(options.epoch),
        service_(this),
        thread_([this] { Run(); }) {}

  ~Impl() {
    {
      MutexLock lock(mutex_);
      ended_ = true;
      wake_.NotifyAll();
      for (auto& [id, stream] : streams_)
        stream->End(grpc::Status(grpc::UNAVAILABLE, "the gateway ends"));
      wake_.Wait(lock,
                 [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_streams_ == 0; });
    }
    thread_.join();
    MutexLock lock(mutex_);
    wake_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return std::all_of(dials_.begin(), dials_.end(),
                         [](const auto& entry) { return entry.second.done; });
    });
    for (auto& [id, dial] : dials_) dial.thread.join();
  }

  grpc::Service* service() { return &service_; }

  View Look() const {
    MutexLock lock(mutex_);
    View view;
    view.serving = IsServing();
    view.detail = Detail();
    view.now = absl::Now();
    view.placement = membership_.placement();
    view.target = membership_.target();
    for (const auto& [id, member] : membership_.members()) {
      view.members.push_back({member, membership_.StateOf(member)});
    }
    for (const auto& [address, why] : refused_) view.refused.push_back(why);
    return view;
  }

  CounterSnapshot Counters() const {
    MutexLock lock(mutex_);
    int64_t total[2] = {}, ready[2] = {};
    for (const auto& [id, member] : membership_.members()) {
      const auto kind = static_cast<size_t>(member.join.kind);
      ++total[kind];
      if (membership_.StateOf(member) == MemberState::kReady) ++ready[kind];
    }
    const auto attention = static_cast<size_t>(WorkerKind::kAttention);
    const auto expert = static_cast<size_t>(WorkerKind::kExpert);
    const Membership::Coverage coverage = membership_.ExpertCoverage();
    return {{"attention_workers", total[attention]},
            {"attention_workers_ready", ready[attention]},
            {"expert_workers", total[expert]},
            {"expert_workers_ready", ready[expert]},
            {"workers_refused_total", workers_refused_},
            {"model_experts", coverage.experts},
            {"experts_without_holder", coverage.without_holder},
            {"experts_with_one_holder", coverage.with_one_holder}};
  }

 private:
  // One worker's membership. Reads reports, writes queued orders. Lives until OnDone.
  class Stream : public grpc::ServerBidiReactor<v1::WorkerReport, v1::WorkerOrder> {
   public:
    explicit Stream(Impl* owner) : owner_(owner) { StartRead(&report_); }

    // The owner's mutex is held by the callers of these four.
    void Send(v1::WorkerOrder order) {
      owner_->mutex_.AssertHeld();
      orders_.push_back(std::move(order));
      if (orders_.size() == 1 && !ended_) StartWrite(&orders_.front());
    }
    void End(grpc::Status status) {
      owner_->mutex_.AssertHeld();
      if (!std::exchange(ended_, true)) Finish(std::move(status));
    }
    WorkerId worker() const {
      owner_->mutex_.AssertHeld();
      return worker_;
    }
    void set_worker(WorkerId worker) {
      owner_->mutex_.AssertHeld();
      worker_ = worker;
    }

    void OnReadDone(bool ok) override {
      MutexLock lock(owner_->mutex_);
      if (!ok) return End(grpc::Status::OK);
      owner_->OnReport(this, report_);
      if (!ended_) StartRead(&report_);
    }
    void OnWriteDone(bool ok) override {
      MutexLock lock(owner_->mutex_);
      orders_.pop_front();
      if (ok && !orders_.empty() && !ended_) StartWrite(&orders_.front());
    }
    void OnCancel() override {
      MutexLock lock(owner_->mutex_);
      End(grpc::Status::CANCELLED);
    }
    void OnDone() override {
      {
        MutexLock lock(owner_->mutex_);
        owner_->OnStreamDone(this);
      }
      delete this;
    }

   private:
    Impl* const owner_;
    v1::WorkerReport report_;
    // The first is being written.
    std::deque<v1::WorkerOrder> orders_ ABSL_GUARDED_BY(owner_->mutex_);
    bool ended_ ABSL_GUARDED_BY(owner_->mutex_) = false;
    WorkerId worker_ ABSL_GUARDED_BY(owner_->mutex_) = 0;  // 0: not joined
  };

  class Service : public v1::Registry::CallbackService {
   public:
    explicit Service(Impl* owner) : owner_(owner) {}
    grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                    const v1::DrainRequest* request, v1::DrainResponse*) override {
      grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
      reactor->Finish(ToGrpc(owner_->Drain(request->worker_id())));
      return reactor;
    }
    grpc::ServerBidiReactor<v1::WorkerReport, v1::WorkerOrder>* Join(
        grpc::CallbackServerContext*) override {
      MutexLock lock(owner_->mutex_);
      ++owner_->live_streams_;
      auto* stream = new Stream(owner_);
      if (owner_->ended_) stream->End(grpc::Status(grpc::UNAVAILABLE, "the gateway ends"));
      return stream;
    }

   private:
    Impl* const owner_;
  };

  // A session that is being made with an attention worker, on a thread of its own: who does not
  // answer holds up nobody else.
  struct Dial {
    std::thread thread;
    bool done = false;      // the thread is at its end
    absl::Status status;    // of what is done
    absl::Time done_at;     // likewise
    bool unwanted = false;  // the worker is no member any more
    bool drain = false;     // the driver is to be told so when it has the worker
    bool move = false;      // likewise, with what the worker has
  };

  absl::Status Drain(WorkerId worker) {
    MutexLock lock(mutex_);
    TANDEM_RETURN_IF_ERROR(membership_.Drain(worker));
    changed_ = true;
    wake_.NotifyAll();
    return absl::OkStatus();
  }

  void OnReport(Stream* stream, const v1::WorkerReport& report)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (report.has_hello() && stream->worker() == 0) {
      if (const absl::Status joined = OnHello(stream, report.hello()); !joined.ok()) {
        spdlog::warn("refused: {}", std::string(joined.message()));
        const grpc::Status refusal = ToGrpc(joined);  // whose message is not longer than it may be
        NoteRefusal(report.hello().address(), refusal.error_message());
        stream->End(refusal);
        return;
      }
    } else if (report.has_heartbeat() && stream->worker() != 0) {
      membership_.Heartbeat(stream->worker(), FromProto(report.heartbeat()), absl::Now());
    } else {
      stream->End(grpc::Status(grpc::INVALID_ARGUMENT, "a worker says hello once, and first"));
      return;
    }
    changed_ = true;
    wake_.NotifyAll();
  }

  void NoteRefusal(const std::string& address, std::string why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    constexpr size_t kMaxKept = 16;
    ++workers_refused_;
    std::erase_if(refused_, [&](const auto& refusal) { return refusal.first == address; });
    if (refused_.size() == kMaxKept) refused_.pop_front();
    refused_.emplace_back(address, std::move(why));
  }

  absl::Status OnHello(Stream* stream, const v1::WorkerHello& hello)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    TANDEM_ASSIGN_OR_RETURN(const JoinRequest request, FromProto(hello));
    TANDEM_ASSIGN_OR_RETURN(const WorkerId id, membership_.Join(request, absl::Now()));
    spdlog::info("{} worker {} at {} joined ({})", WorkerKindName(request.kind), id,
                 request.address, request.device);
    stream->set_worker(id);
    streams_[id] = stream;
    v1::WorkerOrder order;
    order.mutable_accepted()->set_worker_id(id);
    order.mutable_accepted()->set_gateway_incarnation(epoch_);
    order.mutable_accepted()->set_heartbeat_ms(kHeartbeatMs);
    stream->Send(std::move(order));
    return absl::OkStatus();
  }

  void OnStreamDone(Stream* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = streams_.find(stream->worker());
    if (it != streams_.end() && it->second == stream) {
      spdlog::warn("worker {} left", stream->worker());
      streams_.erase(it);
      membership_.Leave(stream->worker());
    }
    --live_streams_;
    changed_ = true;
    wake_.NotifyAll();
  }

  void Run() {
    MutexLock lock(mutex_);
    PlacementVersion target, in_use;
    std::string plan_error;
    while (!ended_) {
      // A link may break while its worker's membership goes on.
      EndDials();
      for (const auto& [id, member] : membership_.members()) {
        if (dials_.contains(id)) continue;
        if (member.serving && !driver_->HasWorker(id)) membership_.SessionLost(id);
        if (member.closed && driver_->IsDrained(id)) membership_.SequencesGone(id);
      }
      const std::vector<MembershipAction> actions = membership_.Advance(absl::Now());
      for (const MembershipAction& action : actions) CarryOut(action);
      if (membership_.plan_error() != plan_error) {
        plan_error = membership_.plan_error();
        if (!plan_error.empty()) spdlog::warn("{}", plan_error);
      }
      if (membership_.target().version != target) {
        target = membership_.target().version;
        spdlog::info("placement {} over {} expert workers is being loaded", target.counter,
                     membership_.target().workers.size());
      }
      if (membership_.placement().version != in_use) {
        in_use = membership_.placement().version;
        spdlog::info("placement {} is in use", in_use.counter);
      }
      if (const bool serving = IsServing(); serving != serving_) {
        serving_ = serving;
        spdlog::info("{}{}", serving ? "serving: " : "", Detail());
        lock.Unlock();
        on_serving_changed_(serving);
        lock.Lock();
      }
      const auto next = std::chrono::steady_clock::now() + kLeastPause;
      wake_.WaitFor(lock, interval_,
                    [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return changed_ || ended_; });
      wake_.WaitUntil(lock, next,
                      [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_; });
      changed_ = false;
    }
  }

  // Whether requests get to an attention worker, and have all experts. While one is being dialed
  // it stays as it was: most answer at once.
  bool IsServing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto takes_requests = [this](const auto& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      const auto& [id, member] = entry;
      if (!member.serving || member.draining) return false;
      const auto dial = dials_.find(id);
      if (dial == dials_.end()) return true;
      return dial->second.done ? dial->second.status.ok() : serving_;
    };
    const auto& members = membership_.members();
    return membership_.serving() && std::any_of(members.begin(), members.end(), takes_requests);
  }

  std::string Detail() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (IsServing() || !membership_.serving() || dials_.empty()) return membership_.Detail();
    const auto& [worker, dial] = *dials_.begin();
    return absl::StrCat("attention worker ", worker,
                        dial.done ? " does not answer" : " has not answered yet");
  }

  void StartDial(WorkerId worker, const std::string& address)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    dials_[worker].thread = std::thread([this, worker, address] {
      absl::Status status = driver_->AddWorker(
          worker, [&](AttentionLink::Observer* observer) { return dial_(address, observer); });
      MutexLock lock(mutex_);
      Dial& dial = dials_.at(worker);
      if (status.ok() && dial.unwanted) {
        lock.Unlock();
        driver_->RemoveWorker(worker);
        lock.Lock();
      }
      dial.status = std::move(status);
      dial.done_at = absl::Now();
      dial.done = true;
      changed_ = true;
      wake_.NotifyAll();
    });
  }

  // Of those that are done. One that failed is kept for an interval, so that it is not tried again
  // at once.
  void EndDials() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (auto it = dials_.begin(); it != dials_.end();) {
      const WorkerId worker = it->first;
      Dial& dial = it->second;
      const bool failed = dial.done && !dial.status.ok() && !dial.unwanted;
      if (!dial.done || (failed && absl::Now() - dial.done_at < absl::FromChrono(interval_))) {
        ++it;
        continue;
      }
      dial.thread.join();
      if (failed) {
        spdlog::warn("attention worker {} does not answer: {}", worker,
                     std::string(dial.status.message()));
        membership_.SessionLost(worker);
      } else if (!dial.unwanted && dial.drain) {
        driver_->DrainWorker(worker, dial.move);
      }
      it = dials_.erase(it);
    }
  }

  void DrainAttention(WorkerId worker, bool move) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto dial = dials_.find(worker);
    if (dial == dials_.end()) return driver_->DrainWorker(worker, move);
    dial->second.drain = true;
    dial->second.move = move;
  }

  // Encoded once for all workers. What is in use names no sources.
  const v1::PlacementOrder& OrderOf(const Placement& placement)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (order_.counter() != placement.version.counter ||
        order_.sources_size() != static_cast<int>(placement.sources.size())) {
      order_ = PlacementToProto(placement);
    }
    return order_;
  }

  // Lets go of the mutex while it waits for others.
  void CarryOut(const MembershipAction& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    using Kind = MembershipAction::Kind;
    const auto stream = streams_.find(action.worker);
    switch (action.kind) {
      case Kind::kLoad:
      case Kind::kUse: {
        if (stream == streams_.end()) return;
        v1::WorkerOrder order;
        *(action.kind == Kind::kLoad ? order.mutable_load() : order.mutable_use()) =
            OrderOf(action.kind == Kind::kLoad ? membership_.target() : membership_.placement());
        stream->second->Send(std::move(order));
        return;
      }
      case Kind::kDrain: {
        if (stream == streams_.end()) return;
        spdlog::info("worker {} is told to drain", action.worker);
        v1::WorkerOrder order;
        order.mutable_drain();
        stream->second->Send(std::move(order));
        return;
      }
      case Kind::kRelease: {
        if (stream == streams_.end()) return;
        spdlog::info("worker {} has nothing any more, and may end", action.worker);
        v1::WorkerOrder order;
        order.mutable_released();
        stream->second->Send(std::move(order));
        return;
      }
      case Kind::kDrop:
        if (stream == streams_.end()) return;
        spdlog::warn("worker {} is let go: {}", action.worker, action.why);
        stream->second->End(grpc::Status(grpc::DEADLINE_EXCEEDED, action.why));
        streams_.erase(stream);
        return;
      case Kind::kStartAttention:
        StartDial(action.worker, action.address);
        return;
      case Kind::kDrainAttention:
        spdlog::info("attention worker {} drains: it gets no new requests", action.worker);
        DrainAttention(action.worker, false);
        return;
      case Kind::kMoveAttention:
        spdlog::info("attention worker {} drains: what it still has goes to others", action.worker);
        DrainAttention(action.worker, true);
        return;
      case Kind::kStopAttention:
        if (const auto dial = dials_.find(action.worker); dial != dials_.end()) {
          dial->second.unwanted = true;
          if (!dial->second.done) return;  // its thread sees to it
        }
        mutex_.Unlock();
        driver_->RemoveWorker(action.worker);
        mutex_.Lock();
        return;
    }
  }

  mutable Mutex mutex_;
  CondVar wake_;
  Membership membership_ ABSL_GUARDED_BY(mutex_);
  std::map<WorkerId, Stream*> streams_ ABSL_GUARDED_BY(mutex_);
  std::map<WorkerId, Dial> dials_ ABSL_GUARDED_BY(mutex_);
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;      // as was told last
  v1::PlacementOrder order_ ABSL_GUARDED_BY(mutex_);  // the last that was encoded
  // Addresses and why they were refused, the oldest first.
  std::deque<std::pair<std::string, std::string>> refused_ ABSL_GUARDED_BY(mutex_);
  int64_t workers_refused_ ABSL_GUARDED_BY(mutex_) = 0;
  int live_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;

  const std::chrono::milliseconds interval_;
  StepDriver* const driver_;
  const AttentionDialer dial_;
  const std::function<void(bool)> on_serving_changed_;
  const uint64_t epoch_;
  Service service_;
  std::thread thread_;
};

Coordinator::Coordinator(const ModelConfig* config, MembershipOptions options, StepDriver* driver,
                         AttentionDialer dial, std::function<void(bool)> on_serving_changed)
    : impl_(std::make_unique<Impl>(config, std::move(options), driver, std::move(dial),
                                   std::move(on_serving_changed))) {}
Coordinator::~Coordinator() = default;
grpc::Service* Coordinator::service() { return impl_->service(); }
Coordinator::View Coordinator::Look() const { return impl_->Look(); }
CounterSnapshot Coordinator::Counters() const { return impl_->Counters(); }

}  // namespace tandem
