// A deployment, its clients, and what breaks meanwhile: all of it follows from a seed.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATION_H_
#define TANDEM_TESTS_SIMULATION_SIMULATION_H_

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulation/simulated_gateway.h"

namespace tandem {

// What was seen, summed over simulations.
struct SimulationCounts {
  std::map<std::string, int64_t> faults;  // by kind
  std::map<std::string, int64_t> seen;    // by what
};

class Simulation {
 public:
  Simulation(const TinyModel* model, uint64_t seed, bool traced)
      : world_(model, seed, traced), dice_(seed ^ 0x5eed) {
    Build();
  }
  ~Simulation() {
    if (gateway_ != nullptr) world_.network.Kill(gateway_->process(), false);
    gateway_.reset();
    for (auto& place : experts_) {
      if (place.life != nullptr) world_.network.Kill(place.life->process(), false);
      place.life.reset();
    }
    for (auto& place : attention_) {
      if (place.life != nullptr) world_.network.Kill(place.life->process(), false);
      place.life.reset();
    }
  }

  // To its end, which is good if there are no violations.
  const Trace& Run() {
    const auto deadline = world_.time.now() + std::chrono::minutes(10);
    while (!IsOver()) {
      if (world_.time.now() >= deadline) {
        world_.trace.Violation("it does not come to an end: ", streams_.size() - num_ended_,
                               " streams have not ended");
        break;
      }
      const auto until = world_.time.now() + std::chrono::milliseconds(200);
      world_.time.AdvanceTo(until);
      Bury();
    }
    for (const Stream& stream : streams_) CheckStream(stream);
    if (world_.trace.violations().empty()) gateway_->CheckAtEnd();
    return world_.trace;
  }

  const Trace& trace() const { return world_.trace; }

  void AddTo(SimulationCounts* counts) const {
    for (const auto& [kind, count] : faults_) counts->faults[kind] += count;
    auto& seen = counts->seen;
    seen["steps"] += world_.steps;
    seen["parts"] += world_.parts;
    seen["parts that failed"] += world_.failed_parts;
    seen["streams"] += static_cast<int64_t>(streams_.size());
    seen["preemptions"] += preemptions_ + gateway_->scheduler().preemptions();
    seen["tokens found in a cache"] += prefix_hits_ + gateway_->scheduler().prefix_hits();
    seen["placements"] += static_cast<int64_t>(placements_) +
                          static_cast<int64_t>(gateway_->membership().placement().version.counter);
    for (const Stream& stream : streams_) {
      seen["streams asked again"] += stream.times_asked - 1;
      seen["streams cancelled"] += absl::IsCancelled(stream.end) ? 1 : 0;
      seen["streams given up"] += absl::IsUnavailable(stream.end) ? 1 : 0;
      seen["streams out of time"] += absl::IsDeadlineExceeded(stream.end) ? 1 : 0;
    }
    seen["attention workers silent"] += world_.silences;
    seen["moves of streams"] += moves_ + gateway_->scheduler().moves();
    seen["frames lost"] += world_.frames_lost;
    seen["frames that came twice"] += world_.frames_twice;
    seen["frames damaged"] += world_.frames_corrupt;
    seen["simulated seconds"] += std::chrono::duration_cast<std::chrono::seconds>(
                                     world_.time.now().time_since_epoch() - std::chrono::hours(1))
                                     .count();
  }

 private:
  using TimePoint = SimulatedTime::Clock::time_point;
  using Milliseconds = std::chrono::milliseconds;

  // A place where lives of a worker's program follow each other.
  template <typename Worker>
  struct Place {
    int number = 0;
    int host = 0;
    int lives = 0;
    std::string address;
    SimulatedExpertOptions expert;
    int pages = 0;
    std::unique_ptr<Worker> life;  // null: none now
    bool may_return = false;       // a new life has been arranged
  };
  struct Stream {
    const KnownJob* known = nullptr;
    absl::Duration deadline = absl::InfiniteDuration();
    bool cancelled = false;
    int times_asked = 0;
    JobId job = 0;  // at the gateway; 0: it is not there
    size_t heard = 0;
    bool ended = false;
    absl::Status end;
    int64_t steps_unavailable = 0;   // of the world, since it was asked last
    int64_t attention_removals = 0;  // likewise
    JobEnd how = JobEnd::kFailed;
  };

  Milliseconds Ms(int64_t low, int64_t high) { return Milliseconds(dice_.Between(low, high)); }

  // ---- what there is ----

  void Build() {
    const int num_experts = static_cast<int>(world_.model.config().num_routed_experts());
    world_.lease = absl::Milliseconds(dice_.Between(5, 30) * 100);
    const auto most = std::chrono::microseconds(dice_.Of(kMostLatenciesUs));
    world_.network.set_latency(most / 10, most);
    latency_ = most;
    if (dice_.Chance(0.3)) {
      world_.frame_faults = {0.002 * dice_.Between(0, 5), 0.01 * dice_.Between(0, 5),
                             0.004 * dice_.Between(0, 5)};
    }

    membership_.lease = world_.lease;
    membership_.settle = world_.lease / 2;
    membership_.busy_limit = absl::Milliseconds(dice_.Between(5, 30) * 100);
    membership_.rebalance = absl::Seconds(dice_.Between(1, 60));
    membership_.expert_copies = static_cast<int>(dice_.Between(1, 3));
    policy_.decode_groups = static_cast<int>(dice_.Between(0, 2));
    policy_.max_batch_rows = static_cast<int>(dice_.Chance(0.5) ? 2048 : dice_.Between(16, 100));
    policy_.max_layers_per_step = static_cast<int>(dice_.Between(0, 2));
    policy_.prefix_caching = dice_.Chance(0.8);
    if (dice_.Chance(0.3)) policy_.test_seed = static_cast<uint64_t>(dice_.Between(1, 1000000));
    dispatch_.attempt_timeout = absl::Milliseconds(dice_.Of(kAttemptTimeoutsMs));
    dispatch_.least_patience = absl::Milliseconds(dice_.Of(kLeastPatiencesMs));
    dispatch_.first_patience = 3 * dispatch_.least_patience;
    dispatch_.layer_timeout = absl::Milliseconds(dice_.Of(kLayerTimeoutsMs));

    const int num_attention = static_cast<int>(dice_.Between(1, 3));
    const int num_workers = static_cast<int>(dice_.Between(1, 5));
    for (int i = 0; i < num_attention; ++i) {
      auto& place = attention_.emplace_back();
      place.number = i;
      place.host = 1 + i;
      place.pages = static_cast<int>(dice_.Between(TinyModel::kMostPages, 8));
    }
    for (int i = 0; i < num_workers; ++i) AddExpertPlace(num_experts, num_workers);
    membership_.attention_workers = static_cast<int>(dice_.Between(1, num_attention));
    membership_.expert_workers = static_cast<int>(dice_.Between(1, num_workers));

    // Workers come before or after the gateway.
    world_.time.After(Ms(0, 300), [this] { StartGateway(); });
    for (auto& place : attention_) {
      world_.time.After(Ms(0, 300), [this, &place] { StartAttention(place); });
    }
    for (auto& place : experts_) {
      world_.time.After(Ms(0, 300), [this, &place] { StartExpert(place); });
    }
    PlanStreams();
    PlanFaults();
  }

  void AddExpertPlace(int num_experts, int num_workers) {
    auto& place = experts_.emplace_back();
    place.number = static_cast<int>(experts_.size()) - 1;
    place.host = 10 + place.number;
    const int fair = (num_experts + num_workers - 1) / num_workers;
    place.expert.said_capacity = dice_.Chance(0.3) ? num_experts : dice_.Between(fair, num_experts);
    place.expert.capacity = place.expert.said_capacity;
    if (num_workers > 1 && dice_.Chance(kShortMemory)) {
      place.expert.capacity = dice_.Between(fair, place.expert.said_capacity);
    }
    place.expert.load_time = Ms(1, 30);
  }

  void PlanStreams() {
    const int64_t count = dice_.Between(3, 7);
    streams_.resize(count);
    for (Stream& stream : streams_) {
      stream.known = &dice_.Of(world_.model.jobs());
      if (dice_.Chance(0.1)) stream.deadline = absl::Milliseconds(dice_.Between(10, 5000));
      const auto start = Ms(0, 3000);
      starts_.push_back(start);
      world_.time.After(start, [this, &stream] { Ask(stream); });
      if (dice_.Chance(0.15)) {
        world_.time.After(start + Ms(1, 1500), [this, &stream] { CancelStream(stream); });
      }
    }
  }

  // ---- streams ----

  void Ask(Stream& stream) {
    if (stream.ended) return;
    if (gateway_ == nullptr) {
      world_.time.After(Ms(20, 100), [this, &stream] { Ask(stream); });
      return;
    }
    ++stream.times_asked;
    stream.attention_removals = -world_.attention_removals;
    stream.steps_unavailable = -world_.steps_unavailable;
    stream.heard = 0;
    Job job = stream.known->job;
    if (stream.deadline != absl::InfiniteDuration()) {
      job.deadline = world_.time.wall_now() + stream.deadline;
    }
    gateway_->Submit(
        job, [this, &stream](const SchedulerEvent& event) { Hear(stream, event); }, &stream.job);
    world_.trace.Note("stream ", Number(stream), " is job ", stream.job, ": prompt of ",
                      job.prompt.size(), ", at most ", job.max_new_tokens, " tokens");
  }
  void CancelStream(Stream& stream) {
    if (stream.ended || gateway_ == nullptr || stream.job == 0) return;
    world_.trace.Note("stream ", Number(stream), " is cancelled");
    stream.cancelled = true;
    gateway_->Cancel(stream.job);
  }
  int64_t Number(const Stream& stream) const { return &stream - streams_.data(); }

  void Hear(Stream& stream, const SchedulerEvent& event) {
    Trace& trace = world_.trace;
    if (stream.ended) return trace.Violation("stream ", Number(stream), " goes on after its end");
    const std::vector<Heard>& answer = stream.known->answer;
    switch (event.kind) {
      case SchedulerEvent::Kind::kAdmitted:
        return;
      case SchedulerEvent::Kind::kScored:
      case SchedulerEvent::Kind::kToken: {
        const Heard heard = HeardOf(event);
        if (stream.heard >= answer.size() || heard != answer[stream.heard]) {
          trace.Violation("stream ", Number(stream), ", answer ", stream.heard, " of ",
                          answer.size(), ": token ", heard.token, " (position ", heard.position,
                          "), undisturbed it is ",
                          stream.heard < answer.size() ? answer[stream.heard].token : -2);
        }
        ++stream.heard;
        return;
      }
      case SchedulerEvent::Kind::kDone:
        stream.ended = true;
        ++num_ended_;
        stream.end = event.status;
        stream.how = event.end;
        stream.attention_removals += world_.attention_removals;
        stream.steps_unavailable += world_.steps_unavailable;
        trace.Note("stream ", Number(stream), " ends after ", stream.heard, " of ", answer.size(),
                   ": ", event.status.ToString());
    }
  }
  // Of its gateway.
  void Interrupt(Stream& stream) {
    if (stream.ended || stream.job == 0) return;
    stream.job = 0;
    if (stream.cancelled) {
      stream.ended = true;
      ++num_ended_;
      stream.end = absl::CancelledError("");
      return;
    }
    world_.time.After(Ms(20, 100), [this, &stream] { Ask(stream); });
  }
  void CheckStream(const Stream& stream) {
    if (!stream.ended || (absl::IsCancelled(stream.end) && stream.cancelled)) return;
    if (absl::IsDeadlineExceeded(stream.end) && stream.deadline != absl::InfiniteDuration()) return;
    // What the scheduler says it does; not sooner.
    if (absl::IsUnavailable(stream.end) && (stream.steps_unavailable >= kMostUnavailable ||
                                            stream.attention_removals >= kMostRemovals)) {
      return;
    }
    if (!stream.end.ok()) {
      return world_.trace.Violation("stream ", Number(stream), " failed: ", stream.end.ToString());
    }
    if (stream.heard != stream.known->answer.size() || stream.how != stream.known->end) {
      world_.trace.Violation("stream ", Number(stream), " ended after ", stream.heard, " of ",
                             stream.known->answer.size(), " answers");
    }
  }

  // ---- lives ----

  uint64_t NewIncarnation() { return ++incarnations_ * 7919; }

  void StartGateway() {
    if (gateway_ != nullptr) return;
    MembershipOptions options = membership_;
    options.epoch = NewIncarnation();
    const std::string name = absl::StrCat("gateway.", ++gateway_lives_);
    world_.trace.Note(name, " starts");
    gateway_ = std::make_unique<SimulatedGateway>(&world_, name, 0, options, policy_);
    world_.gateway = gateway_.get();
  }
  void KillGateway(bool silently) {
    if (gateway_ == nullptr) return;
    preemptions_ += gateway_->scheduler().preemptions();
    moves_ += gateway_->scheduler().moves();
    prefix_hits_ += gateway_->scheduler().prefix_hits();
    placements_ += gateway_->membership().placement().version.counter;
    world_.network.Kill(gateway_->process(), silently);
    world_.gateway = nullptr;
    gateway_.reset();
    for (Stream& stream : streams_) Interrupt(stream);
  }

  void StartAttention(Place<SimulatedAttention>& place) {
    place.may_return = false;
    if (place.life != nullptr) return;
    if (place.address.empty() || dice_.Chance(0.3)) {
      place.address = absl::StrCat("attention", place.number, ":", ++ports_);
    }
    const std::string name = absl::StrCat("attention", place.number, ".", ++place.lives);
    world_.trace.Note(name, " starts at ", place.address, ", ", place.pages, " pages");
    place.life = std::make_unique<SimulatedAttention>(&world_, name, place.host, place.address,
                                                      NewIncarnation(), place.pages, dispatch_);
    world_.attention[place.address] = place.life.get();
    place.life->Start();
  }
  void StartExpert(Place<SimulatedExpert>& place) {
    place.may_return = false;
    if (place.life != nullptr) return;
    if (place.address.empty() || dice_.Chance(0.3)) {
      place.address = absl::StrCat("expert", place.number, ":", ++ports_);
    }
    const std::string name = absl::StrCat("expert", place.number, ".", ++place.lives);
    world_.trace.Note(name, " starts at ", place.address, " with memory for ",
                      place.expert.capacity, " experts, says ", place.expert.said_capacity);
    place.life = std::make_unique<SimulatedExpert>(&world_, name, place.host, place.address,
                                                   NewIncarnation(), place.expert);
    world_.experts[place.address] = place.life.get();
    place.life->Start();
  }
  template <typename Worker>
  void Kill(Place<Worker>& place, std::map<std::string, Worker*>& all, bool silently) {
    if (place.life == nullptr) return;
    world_.network.Kill(place.life->process(), silently);
    all.erase(place.address);
    place.life.reset();
  }
  void Bury() {
    for (auto& place : experts_) {
      if (place.life == nullptr || !place.life->has_ended()) continue;
      Kill(place, world_.experts, false);
      if (std::exchange(place.may_return, true)) continue;
      world_.time.After(Ms(100, 4000), [this, &place] { StartExpert(place); });
    }
    for (auto& place : attention_) {
      if (place.life == nullptr || !place.life->has_ended()) continue;
      Kill(place, world_.attention, false);
      if (std::exchange(place.may_return, true)) continue;
      world_.time.After(Ms(100, 2000), [this, &place] { StartAttention(place); });
    }
  }

  // ---- what breaks ----

  void PlanFaults() {
    const int64_t count = dice_.Between(2, 7);
    TimePoint last = world_.time.now();
    for (int64_t i = 0; i < count; ++i) {
      // Most while something runs.
      const TimePoint when =
          world_.time.now() +
          (dice_.Chance(0.3) ? Ms(100, 5000)
                             : dice_.Of(starts_) + dice_.Between(Nanoseconds(0), 200 * latency_));
      last = std::max(last, when);
      world_.time.At(when, [this] { Break(); });
    }
    faults_over_ = last;
  }

  SimulatedProcess* SomeProcess() {
    std::vector<SimulatedProcess*> all;
    for (auto& place : attention_) {
      if (place.life != nullptr) all.push_back(&place.life->process());
    }
    for (auto& place : experts_) {
      if (place.life != nullptr) all.push_back(&place.life->process());
    }
    if (gateway_ != nullptr) all.push_back(&gateway_->process());
    return all.empty() ? nullptr : dice_.Of(all);
  }
  Milliseconds SomeTime() { return dice_.Chance(0.7) ? Ms(10, 1000) : Ms(1000, 5000); }
  void NoteFault(const char* kind, const std::string& what) {
    ++faults_[kind];
    world_.trace.Note("FAULT ", kind, ": ", what);
  }

  void Break() {
    const int64_t kind = dice_.Between(0, 99);
    if (kind < 25) return KillExpert();
    if (kind < 35) return KillSomeAttention();
    if (kind < 42) return RestartGateway();
    if (kind < 54) return Stop();
    if (kind < 62) return SlowDown();
    if (kind < 74) return Partition();
    if (kind < 80) return Reset();
    if (kind < 84) return Hang();
    if (kind < 91) return DrainSome();
    if (kind < 95) return Join();
    Disturb();
  }
  void KillExpert() {
    auto& place = dice_.Of(experts_);
    if (place.life == nullptr) return;
    const bool silently = dice_.Chance(0.2);
    NoteFault("expert worker killed", place.life->process().name());
    Kill(place, world_.experts, silently);
    if (std::exchange(place.may_return, true)) return;
    world_.time.After(SomeTime(), [this, &place] { StartExpert(place); });
  }
  void KillSomeAttention() {
    auto& place = dice_.Of(attention_);
    if (place.life == nullptr || attention_losses_ >= kMostAttentionLosses) return;
    ++attention_losses_;
    NoteFault("attention worker killed", place.life->process().name());
    Kill(place, world_.attention, dice_.Chance(0.2));
    if (std::exchange(place.may_return, true)) return;
    world_.time.After(SomeTime(), [this, &place] { StartAttention(place); });
  }
  void RestartGateway() {
    if (gateway_ == nullptr) return;
    NoteFault("gateway killed", gateway_->process().name());
    KillGateway(dice_.Chance(0.2));
    world_.time.After(SomeTime(), [this] { StartGateway(); });
  }
  void Stop() {
    SimulatedProcess* const process = SomeProcess();
    if (process == nullptr) return;
    const Milliseconds time = SomeTime();
    NoteFault("process stopped", absl::StrCat(process->name(), " for ", time.count(), " ms"));
    process->StopUntil(world_.time.now() + time);
    faults_over_ = std::max(faults_over_, world_.time.now() + time);
  }
  void SlowDown() {
    auto& place = dice_.Of(experts_);
    if (place.life == nullptr) return;
    const int factor = static_cast<int>(dice_.Between(2, 100));
    NoteFault("expert worker slow",
              absl::StrCat(place.life->process().name(), ", ", factor, " times"));
    place.life->process().set_slowness(factor);
    world_.time.After(SomeTime(), [this, &place, incarnation = place.life->incarnation()] {
      if (place.life == nullptr || place.life->incarnation() != incarnation) return;
      place.life->process().set_slowness(1);
    });
  }
  void Partition() {
    SimulatedProcess* const a = SomeProcess();
    SimulatedProcess* const b = SomeProcess();
    if (a == nullptr || b == nullptr || a->host() == b->host()) return;
    const Milliseconds time = SomeTime();
    NoteFault("partition",
              absl::StrCat(a->name(), " and ", b->name(), " for ", time.count(), " ms"));
    world_.network.Partition(a->host(), b->host(), world_.time.now() + time);
    faults_over_ = std::max(faults_over_, world_.time.now() + time);
  }
  void Reset() {
    SimulatedProcess* const process = SomeProcess();
    if (process == nullptr) return;
    const int count = world_.network.ResetSome(process->host(), dice_.Chance(0.5) ? 1.0 : 0.4);
    NoteFault("connections reset", absl::StrCat(count, " of ", process->name()));
  }
  SimulatedWorker* SomeWorker() {
    if (dice_.Chance(0.5)) return dice_.Of(attention_).life.get();
    return dice_.Of(experts_).life.get();
  }
  void Hang() {
    SimulatedWorker* const worker = SomeWorker();
    if (worker == nullptr) return;
    const Milliseconds time = SomeTime();
    NoteFault("engine hangs", absl::StrCat(worker->process().name(), " for ", time.count(), " ms"));
    worker->HangUntil(world_.time.now() + time);
    faults_over_ = std::max(faults_over_, world_.time.now() + time);
  }
  void DrainSome() {
    SimulatedWorker* const worker = SomeWorker();
    if (worker == nullptr) return;
    const bool is_attention = world_.attention.contains(worker->address());
    if (is_attention && attention_losses_++ >= kMostAttentionLosses) return;
    NoteFault(is_attention ? "attention worker drained" : "expert worker drained",
              worker->process().name());
    if (gateway_ == nullptr || dice_.Chance(0.5)) return worker->Terminate();
    for (const auto& [id, member] : gateway_->membership().members()) {
      if (member.join.incarnation == worker->incarnation()) return gateway_->Drain(id);
    }
  }
  void Join() {
    if (experts_.size() >= kMostExpertWorkers) return;
    const int num_experts = static_cast<int>(world_.model.config().num_routed_experts());
    AddExpertPlace(num_experts, static_cast<int>(dice_.Between(1, 4)));
    NoteFault("expert worker joins", absl::StrCat("expert", experts_.size() - 1));
    StartExpert(experts_.back());
  }
  void Disturb() {
    world_.frame_faults = {0.02 * dice_.Between(0, 5), 0.05 * dice_.Between(0, 5),
                           0.04 * dice_.Between(0, 5)};
    const Milliseconds time = SomeTime();
    NoteFault("frames disturbed", absl::StrCat("for ", time.count(), " ms"));
    world_.time.After(time, [this] { world_.frame_faults = {}; });
    faults_over_ = std::max(faults_over_, world_.time.now() + time);
  }

  // ---- the end ----

  bool IsOver() {
    if (num_ended_ < streams_.size() || world_.time.now() < faults_over_) return false;
    world_.frame_faults = {};
    if (gateway_ == nullptr) return false;
    // Everybody is back, and what there is is where it should be.
    for (auto& place : attention_) {
      if (place.life == nullptr || !place.life->is_member()) return false;
    }
    for (auto& place : experts_) {
      if (place.life == nullptr || !place.life->is_member()) return false;
    }
    const Membership& membership = gateway_->membership();
    for (const auto& [id, member] : membership.members()) {
      if (member.draining || membership.StateOf(member) != MemberState::kReady) return false;
    }
    if (membership.placement().version != membership.target().version) return false;
    // So that what was said last has arrived.
    if (quiet_since_ == TimePoint() || membership.target().version != quiet_version_) {
      quiet_since_ = world_.time.now();
      quiet_version_ = membership.target().version;
    }
    return world_.time.now() - quiet_since_ >= std::chrono::seconds(12);
  }

  static constexpr double kShortMemory = 0.1;
  // Steps answered with UNAVAILABLE, and attention workers lost, before a stream may fail.
  static constexpr int kMostUnavailable = 5;
  static constexpr int kMostRemovals = 5;
  static constexpr int kMostAttentionLosses = 3;
  static constexpr size_t kMostExpertWorkers = 8;
  static constexpr std::array<int, 4> kMostLatenciesUs = {100, 500, 2000, 10000};
  static constexpr std::array<int, 4> kLeastPatiencesMs = {1, 5, 20, 100};
  static constexpr std::array<int, 3> kAttemptTimeoutsMs = {500, 2000, 10000};
  static constexpr std::array<int, 4> kLayerTimeoutsMs = {400, 3000, 10000, 60000};

  SimulatedWorld world_;
  Dice dice_;
  MembershipOptions membership_;
  SchedulerPolicy policy_;
  DispatcherOptions dispatch_;
  std::vector<Place<SimulatedAttention>> attention_;
  std::deque<Place<SimulatedExpert>> experts_;  // stay where they are
  std::unique_ptr<SimulatedGateway> gateway_;
  std::vector<Stream> streams_;
  size_t num_ended_ = 0;
  uint64_t incarnations_ = 0;
  int ports_ = 0;
  int gateway_lives_ = 0;
  int attention_losses_ = 0;
  Nanoseconds latency_{};             // the usual most
  std::vector<Milliseconds> starts_;  // of streams
  TimePoint faults_over_;
  TimePoint quiet_since_;
  PlacementVersion quiet_version_;  // since then
  std::map<std::string, int64_t> faults_;
  // Of gateways that are gone.
  int64_t preemptions_ = 0;
  int64_t moves_ = 0;
  int64_t prefix_hits_ = 0;
  uint64_t placements_ = 0;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATION_H_
