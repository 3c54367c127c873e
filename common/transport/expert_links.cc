#include "common/transport/expert_links.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/transport/grpc_expert_link.h"
#include "common/transport/shm_expert_link.h"
#include "spdlog/spdlog.h"

namespace tandem {

class ExpertLinks::Link : public ExpertLink {
 public:
  // `shm` may be null.
  Link(std::unique_ptr<ShmExpertLink> shm, GrpcPeer peer)
      : shm_(std::move(shm)), grpc_(std::move(peer)) {}

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
    if (shm_ != nullptr && shm_->TrySend(request, &done).ok()) return;
    grpc_.Send(std::move(request), std::move(done));
  }

  const ShmExpertLink* shm() const { return shm_.get(); }
  const GrpcExpertLink& grpc() const { return grpc_; }

 private:
  const std::unique_ptr<ShmExpertLink> shm_;
  GrpcExpertLink grpc_;  // connects at the first Send
};

void ExpertLinks::Bytes::Add(const CounterSnapshot& counters) {
  for (const auto& [name, value] : counters) {
    if (name == "header_bytes_sent_total") headers += value;
    if (name == "payload_bytes_sent_total") payloads += value;
  }
}

void ExpertLinks::Bytes::Add(const Link& link) {
  Add(link.grpc().Counters());
  if (link.shm() != nullptr) Add(link.shm()->Counters());
}

ExpertLinks::ExpertLinks(ExpertLinkKind kind, std::shared_ptr<const ClientTrust> trust)
    : kind_(kind), trust_(std::move(trust)), closer_([this] { RunCloser(); }) {}

ExpertLinks::~ExpertLinks() {
  {
    MutexLock lock(mutex_);
    TANDEM_CHECK(live_.empty());
    ending_ = true;
  }
  changed_.NotifyAll();
  closer_.join();
}

std::shared_ptr<ExpertLink> ExpertLinks::Dial(const Placement::Worker& worker) {
  std::unique_ptr<ShmExpertLink> shm;
  if (kind_ == ExpertLinkKind::kAuto) {
    auto dialled = ShmExpertLink::Dial(worker.incarnation);
    spdlog::info(
        "expert worker {} at {}: {}", worker.id, worker.address,
        dialled.ok() ? "shared memory" : "gRPC (" + std::string(dialled.status().message()) + ")");
    if (dialled.ok()) shm = *std::move(dialled);
  }
  auto link = std::make_unique<Link>(std::move(shm), GrpcPeer{worker.address, trust_});
  Link* const raw = link.get();
  {
    MutexLock lock(mutex_);
    live_.push_back(std::move(link));
  }
  return std::shared_ptr<ExpertLink>(raw, [this, raw](ExpertLink*) { Retire(raw); });
}

void ExpertLinks::Retire(const Link* link) {
  {
    MutexLock lock(mutex_);
    const auto it = std::find_if(live_.begin(), live_.end(),
                                 [link](const auto& live) { return live.get() == link; });
    TANDEM_CHECK(it != live_.end());
    closing_.push_back(std::move(*it));
    live_.erase(it);
  }
  changed_.NotifyAll();
}

void ExpertLinks::RunCloser() {
  while (true) {
    std::vector<std::unique_ptr<Link>> closing;
    {
      MutexLock lock(mutex_);
      changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return ending_ || !closing_.empty();
      });
      if (closing_.empty()) return;
      closing.swap(closing_);
      for (const auto& link : closing) closed_bytes_.Add(*link);
    }
    closing.clear();
  }
}

CounterSnapshot ExpertLinks::Counters() const {
  MutexLock lock(mutex_);
  Bytes bytes = closed_bytes_;
  for (const auto& link : live_) bytes.Add(*link);
  for (const auto& link : closing_) bytes.Add(*link);
  const auto num_shm = std::count_if(live_.begin(), live_.end(), [](const auto& link) {
    return link->shm() != nullptr && !link->shm()->broken();
  });
  return {{"expert_links_live", static_cast<int64_t>(live_.size())},
          {"expert_links_shm", static_cast<int64_t>(num_shm)},
          {"expert_header_bytes_sent_total", bytes.headers},
          {"expert_payload_bytes_sent_total", bytes.payloads}};
}

}  // namespace tandem
