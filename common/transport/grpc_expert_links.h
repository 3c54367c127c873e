// The gRPC links of a process to expert workers.
#ifndef TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_LINKS_H_
#define TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_LINKS_H_

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "common/counters.h"
#include "common/mutex.h"
#include "common/transport/grpc_expert_link.h"

namespace tandem {

// Makes links that whoever holds the last reference may let go on any thread and at once: they are
// closed, which can take a while, on a thread of its own. Thread-safe.
class GrpcExpertLinks {
 public:
  GrpcExpertLinks();
  // Requires that every link has been let go; returns when all are closed.
  ~GrpcExpertLinks();

  std::shared_ptr<ExpertLink> Dial(GrpcPeer peer);

  // expert_links_live, and over all links that there ever were expert_header_bytes_sent_total and
  // expert_payload_bytes_sent_total
  CounterSnapshot Counters() const;

 private:
  struct Bytes {
    int64_t headers = 0;
    int64_t payloads = 0;
    void Add(const GrpcExpertLink& link);
  };

  void Retire(const GrpcExpertLink* link);
  void RunCloser();

  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::unique_ptr<GrpcExpertLink>> live_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<GrpcExpertLink>> closing_ ABSL_GUARDED_BY(mutex_);
  Bytes closed_bytes_ ABSL_GUARDED_BY(mutex_);  // of those in neither
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread closer_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_LINKS_H_
