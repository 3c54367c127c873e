#include "common/service/registry_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "common/mutex.h"
#include "common/service/grpc_channel.h"
#include "common/service/grpc_status.h"
#include "proto/registry.grpc.pb.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr auto kFirstPause = std::chrono::milliseconds(50);
constexpr auto kLongestPause = std::chrono::milliseconds(1000);

// `number` counts the reports, so that who reads counters can tell how fresh they are.
v1::WorkerReport HeartbeatReport(const WorkerHealth& health, int64_t number) {
  v1::WorkerReport report;
  v1::WorkerHeartbeat& heartbeat = *report.mutable_heartbeat();
  heartbeat.set_ready(health.ready);
  heartbeat.set_loaded(health.loaded);
  heartbeat.set_placement_epoch(health.placement.epoch);
  heartbeat.set_placement_counter(health.placement.counter);
  heartbeat.set_busy_ms(absl::ToInt64Milliseconds(health.busy));
  heartbeat.set_load_idle_ms(absl::ToInt64Milliseconds(health.load_idle));
  heartbeat.set_draining(health.draining);
  heartbeat.set_drain_left_ms(absl::ToInt64Milliseconds(health.drain_left));
  if (health.expert_capacity.has_value()) heartbeat.set_expert_capacity(*health.expert_capacity);
  if (health.failed.counter > 0) {
    heartbeat.set_failed_epoch(health.failed.epoch);
    heartbeat.set_failed_counter(health.failed.counter);
    heartbeat.set_held_experts(PackBits(health.held_experts));
  }
  for (const int64_t tokens : health.expert_tokens) {
    heartbeat.add_expert_tokens(static_cast<uint64_t>(tokens));
  }
  for (const auto& [name, value] : health.counters) (*heartbeat.mutable_counters())[name] = value;
  (*heartbeat.mutable_counters())["reports_total"] = number;
  return report;
}

bool IsRefusal(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::FAILED_PRECONDITION ||
         status.error_code() == grpc::StatusCode::INVALID_ARGUMENT;
}

}  // namespace

Placement PlacementFromProto(const v1::PlacementOrder& order) {
  Placement placement;
  placement.version = {order.epoch(), order.counter()};
  placement.urgent = order.urgent();
  placement.num_layers = static_cast<int>(order.num_layers());
  placement.num_experts = static_cast<int>(order.num_experts());
  const auto from = [](const v1::PlacementOrder::Worker& worker) {
    return Placement::Worker{worker.id(), worker.address(), worker.incarnation()};
  };
  for (const auto& worker : order.workers()) placement.workers.push_back(from(worker));
  for (const auto& source : order.sources()) {
    placement.sources.push_back({from(source.worker()), UnpackBits(source.experts())});
  }
  for (const auto& holders : order.holders()) {
    placement.holders.emplace_back(holders.worker_ids().begin(), holders.worker_ids().end());
  }
  placement.holders.resize(static_cast<size_t>(placement.num_layers) * placement.num_experts);
  return placement;
}

v1::PlacementOrder PlacementToProto(const Placement& placement) {
  v1::PlacementOrder order;
  order.set_epoch(placement.version.epoch);
  order.set_counter(placement.version.counter);
  order.set_urgent(placement.urgent);
  order.set_num_layers(placement.num_layers);
  order.set_num_experts(placement.num_experts);
  const auto put = [](const Placement::Worker& worker, v1::PlacementOrder::Worker* to) {
    to->set_id(worker.id);
    to->set_address(worker.address);
    to->set_incarnation(worker.incarnation);
  };
  for (const Placement::Worker& worker : placement.workers) put(worker, order.add_workers());
  for (const Placement::Source& source : placement.sources) {
    auto& to = *order.add_sources();
    put(source.worker, to.mutable_worker());
    to.set_experts(PackBits(source.experts));
  }
  for (const auto& holders : placement.holders) {
    auto& to = *order.add_holders();
    for (WorkerId id : holders) to.add_worker_ids(id);
  }
  return order;
}

std::string PackBits(const std::vector<bool>& bits) {
  std::string bytes((bits.size() + 7) / 8, '\0');
  for (size_t i = 0; i < bits.size(); ++i) {
    if (bits[i]) bytes[i / 8] = static_cast<char>(bytes[i / 8] | 1 << (i % 8));
  }
  return bytes;
}

std::vector<bool> UnpackBits(const std::string& bytes) {
  std::vector<bool> bits(bytes.size() * 8);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = (bytes[i / 8] >> (i % 8) & 1) != 0;
  return bits;
}

class RegistryClient::Impl {
 public:
  Impl(std::string address, Callbacks callbacks, std::shared_ptr<const ClientTrust> trust)
      : address_(std::move(address)), callbacks_(std::move(callbacks)), trust_(std::move(trust)) {
    thread_ = std::thread([this] { Run(); });
  }

  ~Impl() {
    {
      MutexLock lock(mutex_);
      ended_ = true;
      if (context_ != nullptr) context_->TryCancel();
    }
    wake_.NotifyAll();
    thread_.join();
  }

  void ReportNow() {
    {
      MutexLock lock(mutex_);
      report_now_ = true;
    }
    wake_.NotifyAll();
  }

 private:
  void Run() {
    auto pause = kFirstPause;
    while (true) {
      const bool was_accepted = Session();
      pause = was_accepted ? kFirstPause
                           : std::min<std::chrono::milliseconds>(pause * 2, kLongestPause);
      MutexLock lock(mutex_);
      const auto over = [this]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ || refused_; };
      if (wake_.WaitFor(lock, pause, over)) return;
    }
  }

  // One connection, to its end. Returns whether the registry accepted this worker.
  bool Session() {
    grpc::ClientContext context;
    {
      MutexLock lock(mutex_);
      if (ended_) return false;
      context_ = &context;
    }
    // A channel for each: it has the certificates of the moment.
    const auto stub = v1::Registry::NewStub(grpc::CreateCustomChannel(
        address_, MakeChannelCredentials(trust_.get()), ClientChannelArguments()));
    const auto stream = stub->Join(&context);
    v1::WorkerReport first;
    *first.mutable_hello() = callbacks_.hello();
    bool accepted = false;
    std::thread beats;
    bool stream_ended = false;  // guarded by mutex_
    if (stream->Write(first)) {
      v1::WorkerOrder order;
      while (stream->Read(&order)) {
        if (order.has_accepted() && !accepted) {
          accepted = true;
          callbacks_.on_accepted(order.accepted().worker_id(),
                                 order.accepted().gateway_incarnation());
          const auto interval =
              std::chrono::milliseconds(std::clamp(order.accepted().heartbeat_ms(), 10u, 10'000u));
          beats = std::thread(
              [this, &stream, &stream_ended, interval] { Beat(*stream, stream_ended, interval); });
        } else if (order.has_load() && callbacks_.on_load) {
          callbacks_.on_load(PlacementFromProto(order.load()));
        } else if (order.has_use() && callbacks_.on_use) {
          callbacks_.on_use(PlacementFromProto(order.use()));
        } else if (order.has_drain() && callbacks_.on_drain) {
          callbacks_.on_drain();
        } else if (order.has_released() && callbacks_.on_released) {
          callbacks_.on_released();
        }
      }
    }
    {
      MutexLock lock(mutex_);
      stream_ended = true;
    }
    wake_.NotifyAll();
    if (beats.joinable()) beats.join();
    const grpc::Status status = stream->Finish();
    if (accepted && callbacks_.on_lost) callbacks_.on_lost();
    {
      MutexLock lock(mutex_);
      context_ = nullptr;
      if (ended_) return accepted;
      refused_ = IsRefusal(status);
    }
    if (IsRefusal(status)) {
      callbacks_.on_refused(FromGrpc(status));
    } else if (accepted || status.error_message() != last_reason_) {
      spdlog::warn("not a member of the deployment with the registry at {}, trying again: {}",
                   address_, status.error_message());
      last_reason_ = status.error_message();
    }
    return accepted;
  }

  void Beat(grpc::ClientReaderWriterInterface<v1::WorkerReport, v1::WorkerOrder>& stream,
            const bool& stream_ended, std::chrono::milliseconds interval) {
    MutexLock lock(mutex_);
    while (!stream_ended && !ended_) {
      lock.Unlock();
      const bool written = stream.Write(HeartbeatReport(callbacks_.health(), ++reports_));
      lock.Lock();
      if (!written) return;
      wake_.WaitFor(lock, interval, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stream_ended || ended_ || report_now_;
      });
      report_now_ = false;
    }
  }

  const std::string address_;
  const Callbacks callbacks_;
  const std::shared_ptr<const ClientTrust> trust_;

  int64_t reports_ = 0;      // of the heartbeat thread
  std::string last_reason_;  // of the client's thread: said once, not at every try

  Mutex mutex_;
  CondVar wake_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool refused_ ABSL_GUARDED_BY(mutex_) = false;
  bool report_now_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;

  std::thread thread_;
};

RegistryClient::RegistryClient(std::string address, Callbacks callbacks,
                               std::shared_ptr<const ClientTrust> trust)
    : impl_(std::make_unique<Impl>(std::move(address), std::move(callbacks), std::move(trust))) {}
RegistryClient::~RegistryClient() = default;
void RegistryClient::ReportNow() { impl_->ReportNow(); }

}  // namespace tandem
