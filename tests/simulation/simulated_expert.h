// One life of an expert worker's program in a simulation, and the link to it. Engine, weights and
// the wire's frames are the real ones.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATED_EXPERT_H_
#define TANDEM_TESTS_SIMULATION_SIMULATED_EXPERT_H_

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/transport/expert_frame.h"
#include "common/transport/expert_link.h"
#include "expert_worker/engine_core.h"
#include "expert_worker/loaded_experts.h"
#include "tests/simulation/dispatch_ledger.h"
#include "tests/simulation/simulated_worker.h"

namespace tandem {

struct SimulatedExpertOptions {
  int64_t said_capacity = 0;  // in experts
  int64_t capacity = 0;       // that there is in truth; less: loading fails then
  Nanoseconds load_time = std::chrono::milliseconds(5);  // of one expert
};

class SimulatedExpert : public SimulatedWorker {
 public:
  SimulatedExpert(SimulatedWorld* world, const std::string& name, int host,
                  const std::string& address, uint64_t incarnation, SimulatedExpertOptions options)
      : SimulatedWorker(world, name, host, address, incarnation),
        options_(options),
        capacity_(options.said_capacity),
        experts_(TinyModel::Value(LoadedExperts::Create(
            world->model.checkpoint(), world->model.backend(), TinyModel::kFormat))),
        engine_(std::make_unique<ExpertEngineCore>(
            world->model.backend(), &world->model.config(), experts_.get(),
            ExpertEngineOptions{.dtype = TinyModel::kMode}, [this] { ScheduleTurn(); },
            [world] { return world->time.now(); })) {}
  ~SimulatedExpert() override {
    ended_ = true;
    engine_.reset();
  }

  void CheckRefusal(const ExpertRequest& request, const Placement::Worker& named,
                    const absl::Status& status);

  LoadedExperts& experts() { return *experts_; }
  PlacementVersion placement() const { return placement_; }
  int64_t capacity() const { return capacity_; }

  // What the service does with a request that has come whole.
  void Serve(std::shared_ptr<const ExpertRequest> request, const Placement::Worker& named,
             ExpertLink::Done done) {
    engine_->Send(request, [this, request, named, done = std::move(done)](ExpertReply reply) {
      const PlacementVersion stamp = request->placement;
      CheckRefusal(*request, named, reply.status);
      if (reply.status.ok() && stamp.epoch == floor_.epoch && stamp < floor_) {
        world_.trace.Violation(process_.name(), " computed under version ", stamp.counter,
                               " after it had let go of all below ", floor_.counter);
      }
      if (!ended_) done(std::move(reply));
    });
  }

  // At the end of a simulation.
  void CheckAtEnd(const Member* member) {
    if (member == nullptr) {
      return world_.trace.Violation(process_.name(), " is no member in the end");
    }
    if (experts_->Loaded() != member->held) {
      world_.trace.Violation(process_.name(), " has ", experts_->num_loaded(),
                             " experts loaded, which are not those that the gateway reckons with");
    }
    if (experts_->num_loads() > loads_ordered_) {
      world_.trace.Violation(process_.name(), " loaded ", experts_->num_loads(),
                             " experts, was told to load ", loads_ordered_);
    }
    for (const auto& [name, value] : engine_->Counters()) {
      if (name == "requests_live" && value != 0) {
        world_.trace.Violation(process_.name(), " has ", value, " requests left");
      }
    }
  }

 protected:
  JoinRequest Hello() override {
    JoinRequest hello;
    hello.kind = WorkerKind::kExpert;
    hello.address = address();
    hello.incarnation = incarnation();
    hello.busy = busy();
    hello.expert_capacity = capacity_;
    hello.held = experts_->Loaded();
    return hello;
  }
  MemberHealth Health() override {
    MemberHealth health;
    health.placement = placement_;
    health.ready = placement_.counter > 0;
    health.expert_capacity = capacity_;
    health.failed = failed_;
    if (failed_.counter > 0) health.held = experts_->Loaded();
    if (++beats_ % 10 == 0) health.expert_tokens = engine_->TakeExpertTokens();
    ReportDrain(&health);
    return health;
  }
  bool has_loaded() const override { return placement_.counter > 0; }
  // As WorkerHost::RunLoads.
  void DoDuties() override {
    if (loading_ || !duties_.has_work()) return;
    WorkerDuties::Work work = duties_.TakeWork();
    if (work.retire.has_value()) {
      experts_->Retire(*work.retire);
      // It lets go of what is older only once it has something newer.
      if (placement_.epoch == work.retire->epoch && placement_ >= *work.retire) {
        floor_ = *work.retire;
        Forget();
      }
      world_.trace.Note(process_.name(), " retires below ", work.retire->counter, ": ",
                        experts_->num_loaded(), " experts left");
    }
    if (work.load.has_value()) {
      loading_ = true;
      const std::vector<bool> given = work.load->placement.GivenTo(work.load->self);
      const std::vector<bool> loaded = experts_->Loaded();
      wanted_[work.load->placement.version] = given;
      for (size_t i = 0; i < given.size(); ++i) loads_ordered_ += given[i] && !loaded[i] ? 1 : 0;
      world_.trace.Note(process_.name(), " loads version ", work.load->placement.version.counter);
      LoadSome(std::make_shared<WorkerDuties::LoadOrder>(*std::move(work.load)));
    } else {
      DoDuties();
    }
  }

 private:
  // One expert after the other, with time between them, as ExpertRole::Load otherwise.
  void LoadSome(const std::shared_ptr<WorkerDuties::LoadOrder>& order) {
    bool in_pieces = false;
    int count = 0;
    const absl::Status loaded = experts_->Load(order->placement, order->self, nullptr, [&] {
      if (duties_.IsSuperseded(*order)) return absl::AbortedError("there is a newer order");
      if (experts_->num_loaded() >= options_.capacity) {
        return absl::ResourceExhaustedError("there is no memory");
      }
      if (count++ == 0) return absl::OkStatus();
      in_pieces = true;
      return absl::AbortedError("the next one later");
    });
    if (in_pieces) {
      return process_.AfterWork(options_.load_time, [this, order] { LoadSome(order); });
    }
    if (absl::IsResourceExhausted(loaded)) {
      capacity_ = experts_->num_loaded();
      experts_->DropUnwanted();
      failed_ = order->placement.version;
      world_.trace.Note(process_.name(), " has memory for ", capacity_, " experts only");
    }
    if (loaded.ok()) {
      placement_ = order->placement.version;
      failed_ = {};
      world_.trace.Note(process_.name(), " has loaded version ", placement_.counter);
    }
    process_.AfterWork(options_.load_time, [this] {
      loading_ = false;
      DoDuties();
    });
  }
  void Forget() {
    std::erase_if(wanted_, [this](const auto& entry) { return entry.first < floor_; });
  }
  void ScheduleTurn() {
    if (turn_scheduled_ || ended_) return;
    turn_scheduled_ = true;
    AfterEngineWork(world_.network.dice().Between(std::chrono::microseconds(30),
                                                  std::chrono::microseconds(300)),
                    [this] {
                      turn_scheduled_ = false;
                      if (engine_->Turn()) ScheduleTurn();
                    });
  }

  const SimulatedExpertOptions options_;
  int64_t capacity_;
  const std::unique_ptr<LoadedExperts> experts_;
  std::unique_ptr<ExpertEngineCore> engine_;
  PlacementVersion placement_;  // newest loaded
  PlacementVersion failed_;     // newest that there was no memory for
  PlacementVersion floor_;      // of what it still has
  std::map<PlacementVersion, std::vector<bool>> wanted_;
  int64_t loads_ordered_ = 0;
  int beats_ = 0;
  bool loading_ = false;
  bool turn_scheduled_ = false;
  bool ended_ = false;
};

// To whoever listens at a worker's address, as over gRPC: in frames, of which some are lost, come
// twice or are damaged. One reply or an error for each request, in time.
class SimulatedExpertLink : public ExpertLink {
 public:
  SimulatedExpertLink(SimulatedWorld* world, SimulatedProcess* owner, DispatchLedger* ledger,
                      Placement::Worker worker)
      : state_(std::make_shared<State>(
            State{*world, *owner, *ledger, std::move(worker), {}, nullptr})) {}
  ~SimulatedExpertLink() override {
    if (state_->connection != nullptr) state_->connection->Close(0);
  }

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
    ++state_->world.parts;
    state_->ledger.OnSend(*request, state_->worker);
    if (request->time_left <= absl::ZeroDuration()) {
      state_->ledger.OnDone(request->id.part, false);
      return done({absl::DeadlineExceededError("no time was left"), {}, nullptr});
    }
    if (!Connect()) {
      // Refused, on the next turn of the network.
      state_->owner.After(state_->world.network.Latency(),
                          [state = state_, done = std::move(done), part = request->id.part] {
                            state->ledger.OnDone(part, false);
                            done({absl::UnavailableError("nobody listens there"), {}, nullptr});
                          });
      return;
    }
    const DispatchId id = request->id;
    const auto time_left = absl::ToChronoNanoseconds(std::min(request->time_left, absl::Hours(24)));
    TANDEM_CHECK(
        state_->outstanding.emplace(KeyOf(id), Outstanding{request, std::move(done)}).second);
    state_->owner.After(time_left, [state = state_, id] {
      Finish(state, id, {absl::DeadlineExceededError("it did not answer in time"), {}, nullptr});
    });
    SendRequest(std::move(request));
  }

 private:
  using Key = std::pair<uint64_t, uint32_t>;
  static Key KeyOf(const DispatchId& id) { return {id.step, id.part}; }
  struct Outstanding {
    std::shared_ptr<const ExpertRequest> request;
    Done done;
  };
  struct State {
    SimulatedWorld& world;
    SimulatedProcess& owner;
    DispatchLedger& ledger;
    const Placement::Worker worker;
    std::map<Key, Outstanding> outstanding;
    std::shared_ptr<SimulatedConnection> connection;
  };

  static void Finish(const std::shared_ptr<State>& state, const DispatchId& id, ExpertReply reply) {
    const auto it = state->outstanding.find(KeyOf(id));
    if (it == state->outstanding.end()) return;       // late
    const Outstanding ended = std::move(it->second);  // whose request `id` may be part of
    state->outstanding.erase(it);
    state->ledger.OnDone(id.part, reply.status.ok());
    if (!reply.status.ok()) ++state->world.failed_parts;
    if (!reply.status.ok()) {
      state->world.trace.Note(state->owner.name(), ": part ", id.part, " of layer ", id.layer,
                              " at ", state->worker.address, ": ", reply.status.ToString());
    }
    ended.done(std::move(reply));
  }

  bool Connect() {
    State& state = *state_;
    if (state.connection != nullptr && !state.connection->broken()) return true;
    const auto it = state.world.experts.find(state.worker.address);
    if (it == state.world.experts.end()) return false;
    peer_ = it->second;
    state.connection = state.world.network.Connect(state.owner, peer_->process());
    state.connection->OnBreak(0, [weak = std::weak_ptr(state_), broken = state.connection.get()] {
      const auto state = weak.lock();
      if (state == nullptr || state->connection.get() != broken) return;
      while (!state->outstanding.empty()) {
        Finish(state, state->outstanding.begin()->second.request->id,
               {absl::UnavailableError("the connection broke"), {}, nullptr});
      }
    });
    return true;
  }

  // How often a frame arrives, and whether it is whole.
  static int Fate(SimulatedWorld& world, bool* corrupt) {
    const FrameFaults& faults = world.frame_faults;
    Dice& dice = world.network.dice();
    if (dice.Chance(faults.lost)) return ++world.frames_lost, 0;
    *corrupt = dice.Chance(faults.corrupt);
    if (*corrupt) return ++world.frames_corrupt, 1;
    if (dice.Chance(faults.twice)) return ++world.frames_twice, 2;
    return 1;
  }
  // The message's frames as they come, put together again.
  static absl::StatusOr<ExpertMessage> Cross(SimulatedWorld& world,
                                             absl::StatusOr<std::vector<EncodedFrame>> frames,
                                             bool corrupt) {
    TANDEM_CHECK(frames.ok());
    ExpertMessageAssembler assembler;
    for (EncodedFrame& encoded : *frames) {
      if (corrupt) Damage(world, &encoded.buffer);
      absl::StatusOr<DecodedFrame> frame = DecodeFrame(encoded.buffer);
      if (!frame.ok()) return frame.status();
      if (!frame->intact) return absl::DataLossError("it does not match its checksum");
      absl::StatusOr<std::optional<ExpertMessage>> message = assembler.Add(*frame);
      if (!message.ok()) return message.status();
      if (message->has_value()) return **std::move(message);
    }
    return absl::DataLossError("a part of it is missing");
  }
  static void Damage(SimulatedWorld& world, grpc::ByteBuffer* buffer) {
    std::vector<grpc::Slice> slices;
    TANDEM_CHECK(buffer->Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) {
      bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    const int64_t bit = world.network.dice().Between(0, static_cast<int64_t>(bytes.size()) * 8 - 1);
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    const grpc::Slice slice(bytes);
    *buffer = grpc::ByteBuffer(&slice, 1);
  }

  void SendRequest(std::shared_ptr<const ExpertRequest> request) {
    bool corrupt = false;
    for (int n = Fate(state_->world, &corrupt); n > 0; --n) {
      state_->connection->Send(0, [state = std::weak_ptr(state_), peer = peer_, request, corrupt,
                                   connection = state_->connection.get(), world = &state_->world] {
        Receive(*world, *peer, state, connection->shared_from_this(), request, corrupt);
      });
    }
  }
  // At the worker. Frames of whole messages cost time to make: only some are made.
  static void Receive(SimulatedWorld& world, SimulatedExpert& peer, std::weak_ptr<State> state,
                      std::shared_ptr<SimulatedConnection> connection,
                      std::shared_ptr<const ExpertRequest> request, bool corrupt) {
    const auto sender = state.lock();
    if (sender == nullptr) return;
    const Placement::Worker named = sender->worker;
    const DispatchId id = request->id;
    const bool encoded = corrupt || world.network.dice().Chance(0.05);
    const auto reply_with = [&world, state, connection, id, request](ExpertReply reply) {
      bool corrupt = false;
      for (int n = Fate(world, &corrupt); n > 0; --n) {
        connection->Send(1, [&world, state, id, request, reply, corrupt] {
          const auto alive = state.lock();
          if (alive != nullptr) TakeReply(world, alive, id, *request, reply, corrupt);
        });
      }
    };
    if (!encoded) return peer.Serve(std::move(request), named, reply_with);
    absl::StatusOr<ExpertMessage> message = Cross(world, EncodeRequest(request), corrupt);
    absl::Status status = message.status();
    if (status.ok()) status = CheckRequestHeader(message->header);
    if (status.ok()) {
      absl::StatusOr<std::shared_ptr<const ExpertRequest>> decoded = DecodeRequest(*message);
      status = decoded.status();
      if (status.ok()) return peer.Serve(*std::move(decoded), named, reply_with);
    }
    if (absl::IsInvalidArgument(status)) return connection->Reset();  // no frame at all
    reply_with({std::move(status), {}, nullptr});
  }
  static void TakeReply(SimulatedWorld& world, const std::shared_ptr<State>& state,
                        const DispatchId& id, const ExpertRequest& request, ExpertReply reply,
                        bool corrupt) {
    if (corrupt || world.network.dice().Chance(0.05)) {
      absl::StatusOr<ExpertMessage> message = Cross(world, EncodeReply(id, reply), corrupt);
      absl::Status status = message.status();
      if (absl::IsInvalidArgument(status)) return state->connection->Reset();
      if (status.ok()) status = CheckReplyHeader(message->header, request);
      reply = status.ok() ? DecodeReply(*message) : ExpertReply{std::move(status), {}, nullptr};
    }
    Finish(state, id, std::move(reply));
  }

  const std::shared_ptr<State> state_;
  SimulatedExpert* peer_ = nullptr;  // of the connection
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATED_EXPERT_H_
