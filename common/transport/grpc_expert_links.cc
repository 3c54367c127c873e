#include "common/transport/grpc_expert_links.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace tandem {

void GrpcExpertLinks::Bytes::Add(const GrpcExpertLink& link) {
  for (const auto& [name, value] : link.Counters()) {
    if (name == "header_bytes_sent_total") headers += value;
    if (name == "payload_bytes_sent_total") payloads += value;
  }
}

GrpcExpertLinks::GrpcExpertLinks() : closer_([this] { RunCloser(); }) {}

GrpcExpertLinks::~GrpcExpertLinks() {
  {
    MutexLock lock(mutex_);
    TANDEM_CHECK(live_.empty());
    ending_ = true;
  }
  changed_.NotifyAll();
  closer_.join();
}

std::shared_ptr<ExpertLink> GrpcExpertLinks::Dial(GrpcPeer peer) {
  auto link = std::make_unique<GrpcExpertLink>(std::move(peer));
  GrpcExpertLink* const raw = link.get();
  {
    MutexLock lock(mutex_);
    live_.push_back(std::move(link));
  }
  return std::shared_ptr<ExpertLink>(raw, [this, raw](ExpertLink*) { Retire(raw); });
}

void GrpcExpertLinks::Retire(const GrpcExpertLink* link) {
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

void GrpcExpertLinks::RunCloser() {
  while (true) {
    std::vector<std::unique_ptr<GrpcExpertLink>> closing;
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

CounterSnapshot GrpcExpertLinks::Counters() const {
  MutexLock lock(mutex_);
  Bytes bytes = closed_bytes_;
  for (const auto& link : live_) bytes.Add(*link);
  for (const auto& link : closing_) bytes.Add(*link);
  return {{"expert_links_live", static_cast<int64_t>(live_.size())},
          {"expert_header_bytes_sent_total", bytes.headers},
          {"expert_payload_bytes_sent_total", bytes.payloads}};
}

}  // namespace tandem
