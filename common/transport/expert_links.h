// The links of a process to expert workers.
#ifndef TANDEM_COMMON_TRANSPORT_EXPERT_LINKS_H_
#define TANDEM_COMMON_TRANSPORT_EXPERT_LINKS_H_

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "common/counters.h"
#include "common/mutex.h"
#include "common/placement.h"
#include "common/service/client_trust.h"
#include "common/transport/expert_link.h"

namespace tandem {

// How an expert worker is reached.
enum class ExpertLinkKind : uint8_t {
  kAuto,  // through shared memory if it is on this machine and offers it, otherwise over gRPC
  kGrpc,
};

// Makes links that whoever holds the last reference may let go on any thread and at once: they are
// closed, which can take a while, on a thread of its own. A link through shared memory sends over
// gRPC what that does not take: everything once its connection has broken. Thread-safe.
class ExpertLinks {
 public:
  // `trust` is for gRPC; null: plain text. Shared memory is for processes of one user, which have
  // nothing to hide from each other.
  explicit ExpertLinks(ExpertLinkKind kind, std::shared_ptr<const ClientTrust> trust = nullptr);
  // Requires that every link has been let go; returns when all are closed.
  ~ExpertLinks();

  std::shared_ptr<ExpertLink> Dial(const Placement::Worker& worker);

  // expert_links_live, expert_links_shm (of these, with shared memory), and over all links that
  // there ever were expert_header_bytes_sent_total and expert_payload_bytes_sent_total
  CounterSnapshot Counters() const;

 private:
  class Link;
  struct Bytes {
    int64_t headers = 0;
    int64_t payloads = 0;
    void Add(const CounterSnapshot& counters);
    void Add(const Link& link);
  };

  void Retire(const Link* link);
  void RunCloser();

  const ExpertLinkKind kind_;
  const std::shared_ptr<const ClientTrust> trust_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::unique_ptr<Link>> live_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Link>> closing_ ABSL_GUARDED_BY(mutex_);
  Bytes closed_bytes_ ABSL_GUARDED_BY(mutex_);  // of those in neither
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread closer_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_EXPERT_LINKS_H_
