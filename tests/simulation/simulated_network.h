// Programs and the connections between them, in a simulation: they are stopped, slow or dead, and
// what they say is late, cut off, or lost with the connection.
#ifndef TANDEM_TESTS_SIMULATION_SIMULATED_NETWORK_H_
#define TANDEM_TESTS_SIMULATION_SIMULATED_NETWORK_H_

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "tests/simulation/simulated_time.h"
#include "tests/simulation/trace.h"

namespace tandem {

using Nanoseconds = std::chrono::nanoseconds;

// Draws by a seed.
class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(double probability) {
    return static_cast<double>(random_() >> 11) * 0x1p-53 < probability;
  }
  Nanoseconds Between(Nanoseconds low, Nanoseconds high) {
    return Nanoseconds(Between(low.count(), high.count()));
  }
  template <typename Choices>
  auto& Of(Choices& choices) {
    return choices[Between(int64_t{0}, static_cast<int64_t>(choices.size()) - 1)];
  }

 private:
  std::mt19937_64 random_;
};

// One life of a program. What it is to do later it does not do once it is dead, and when it is
// stopped, after that.
class SimulatedProcess {
 public:
  using TimePoint = SimulatedTime::Clock::time_point;

  SimulatedProcess(SimulatedTime* time, std::string name, int host)
      : time_(*time), state_(std::make_shared<State>()) {
    state_->name = std::move(name);
    state_->host = host;
  }
  ~SimulatedProcess() { state_->alive = false; }
  SimulatedProcess(const SimulatedProcess&) = delete;
  SimulatedProcess& operator=(const SimulatedProcess&) = delete;

  void After(Nanoseconds delay, std::function<void()> what) {
    At(time_.now() + delay, std::move(what));
  }
  void At(TimePoint when, std::function<void()> what) {
    Post(&time_, state_, when, std::move(what));
  }
  // Work that takes so long where nothing slows it down.
  void AfterWork(Nanoseconds work, std::function<void()> what) {
    After(work * state_->slowness, std::move(what));
  }

  void StopUntil(TimePoint until) {
    state_->stopped_until = std::max(state_->stopped_until, until);
  }
  void set_slowness(int factor) { state_->slowness = factor; }
  const std::string& name() const { return state_->name; }
  int host() const { return state_->host; }
  bool is_stopped() const { return state_->stopped_until > time_.now(); }

 private:
  friend class SimulatedNetwork;
  friend class SimulatedConnection;
  struct State {
    std::string name;
    int host = 0;
    bool alive = true;
    TimePoint stopped_until = TimePoint::min();
    int slowness = 1;
  };

  static void Post(SimulatedTime* time, std::shared_ptr<State> state, TimePoint when,
                   std::function<void()> what) {
    time->At(when, [time, state = std::move(state), what = std::move(what)]() mutable {
      if (!state->alive) return;
      if (state->stopped_until > time->now()) {
        const TimePoint until = state->stopped_until;
        return Post(time, std::move(state), until, std::move(what));
      }
      what();
    });
  }

  SimulatedTime& time_;
  const std::shared_ptr<State> state_;
};

class SimulatedNetwork;

// As TCP: what one side says reaches the other in order, until it breaks; then both sides hear of
// it, and nothing of what was under way arrives. Each side is a process.
class SimulatedConnection : public std::enable_shared_from_this<SimulatedConnection> {
 public:
  // From side 0 or 1 to the other.
  void Send(int from, std::function<void()> arrive);
  // Called once when it breaks, unless this side has closed it.
  void OnBreak(int side, std::function<void()> on_break) {
    ends_[side].on_break = std::move(on_break);
  }
  // The other side sees it break.
  void Close(int side);
  void Reset();
  bool broken() const { return broken_; }

 private:
  friend class SimulatedNetwork;
  struct End {
    std::shared_ptr<SimulatedProcess::State> process;
    std::function<void()> on_break;
    std::deque<std::function<void()>> to_here;  // under way
    SimulatedTime::Clock::time_point last_arrival;
  };

  explicit SimulatedConnection(SimulatedNetwork* network) : network_(*network) {}
  void Arrive(int to);
  void Notify(int side, Nanoseconds delay);

  SimulatedNetwork& network_;
  std::array<End, 2> ends_;
  bool broken_ = false;
};

class SimulatedNetwork {
 public:
  using TimePoint = SimulatedTime::Clock::time_point;
  static constexpr std::chrono::seconds kSilenceLimit{10};  // after which a dead host is noticed

  SimulatedNetwork(SimulatedTime* time, uint64_t seed) : time_(*time), dice_(seed) {}

  std::shared_ptr<SimulatedConnection> Connect(SimulatedProcess& a, SimulatedProcess& b) {
    std::shared_ptr<SimulatedConnection> connection(new SimulatedConnection(this));
    connection->ends_[0].process = a.state_;
    connection->ends_[1].process = b.state_;
    std::erase_if(connections_, [](const auto& other) { return other.expired(); });
    connections_.push_back(connection);
    return connection;
  }
  // Breaks what the process is connected with; the others notice at once, or, where its host went
  // silently, only after kSilenceLimit. Call before the process is destroyed.
  void Kill(SimulatedProcess& process, bool silently) {
    process.state_->alive = false;
    for (const auto& weak : connections_) {
      const auto connection = weak.lock();
      if (connection == nullptr || connection->broken_) continue;
      for (int side = 0; side < 2; ++side) {
        if (connection->ends_[side].process != process.state_) continue;
        connection->broken_ = true;
        connection->Notify(1 - side, silently ? Nanoseconds(kSilenceLimit) : Latency());
      }
    }
  }
  // Connections of the host break, each with this probability.
  int ResetSome(int host, double probability) {
    int count = 0;
    const std::vector<std::weak_ptr<SimulatedConnection>> connections = connections_;
    for (const auto& weak : connections) {
      const auto connection = weak.lock();
      if (connection == nullptr || connection->broken_) continue;
      const auto& ends = connection->ends_;
      if (ends[0].process->host != host && ends[1].process->host != host) continue;
      if (!dice_.Chance(probability)) continue;
      connection->Reset();
      ++count;
    }
    return count;
  }
  // Until then nothing passes between two hosts.
  void Partition(int host, int other, TimePoint until) {
    TimePoint& end = blocked_until_[std::minmax(host, other)];
    end = std::max(end, until);
  }
  TimePoint BlockedUntil(int host, int other) const {
    const auto it = blocked_until_.find(std::minmax(host, other));
    return it == blocked_until_.end() ? TimePoint::min() : it->second;
  }
  void set_latency(Nanoseconds least, Nanoseconds most) {
    least_latency_ = least;
    most_latency_ = most;
  }
  // Of one message: mostly short, seldom 20 times as long.
  Nanoseconds Latency() {
    const Nanoseconds latency = dice_.Between(least_latency_, most_latency_);
    return dice_.Chance(0.02) ? 20 * latency : latency;
  }
  Dice& dice() { return dice_; }
  SimulatedTime& time() { return time_; }

 private:
  SimulatedTime& time_;
  Dice dice_;
  Nanoseconds least_latency_ = std::chrono::microseconds(50);
  Nanoseconds most_latency_ = std::chrono::microseconds(500);
  std::vector<std::weak_ptr<SimulatedConnection>> connections_;
  std::map<std::pair<int, int>, TimePoint> blocked_until_;
};

inline void SimulatedConnection::Send(int from, std::function<void()> arrive) {
  if (broken_) return;
  End& to = ends_[1 - from];
  to.to_here.push_back(std::move(arrive));
  SimulatedTime& time = network_.time();
  to.last_arrival = std::max(to.last_arrival, time.now() + network_.Latency());
  time.At(to.last_arrival, [self = shared_from_this(), from] { self->Arrive(1 - from); });
}

inline void SimulatedConnection::Arrive(int to) {
  End& end = ends_[to];
  if (broken_ || !end.process->alive) return;
  SimulatedTime& time = network_.time();
  const auto blocked = network_.BlockedUntil(ends_[0].process->host, ends_[1].process->host);
  if (const auto later = std::max(blocked, end.process->stopped_until); later > time.now()) {
    end.last_arrival = std::max(end.last_arrival, later);
    return time.At(later, [self = shared_from_this(), to] { self->Arrive(to); });
  }
  const std::function<void()> arrive = std::move(end.to_here.front());
  end.to_here.pop_front();
  arrive();
}

inline void SimulatedConnection::Notify(int side, Nanoseconds delay) {
  std::function<void()> on_break = std::exchange(ends_[side].on_break, nullptr);
  if (on_break == nullptr) return;
  SimulatedTime& time = network_.time();
  const auto blocked = network_.BlockedUntil(ends_[0].process->host, ends_[1].process->host);
  SimulatedProcess::Post(&time, ends_[side].process, std::max(time.now() + delay, blocked),
                         std::move(on_break));
}

inline void SimulatedConnection::Close(int side) {
  ends_[side].on_break = nullptr;
  if (std::exchange(broken_, true)) return;
  Notify(1 - side, network_.Latency());
}

inline void SimulatedConnection::Reset() {
  if (std::exchange(broken_, true)) return;
  for (int side = 0; side < 2; ++side) Notify(side, network_.Latency());
}

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_SIMULATED_NETWORK_H_
