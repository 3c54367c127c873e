// An expert worker in another process of the same machine, reached through shared memory.
#ifndef TANDEM_COMMON_TRANSPORT_SHM_EXPERT_LINK_H_
#define TANDEM_COMMON_TRANSPORT_SHM_EXPERT_LINK_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/counters.h"
#include "common/transport/expert_link.h"

namespace tandem {

struct ShmExpertLinkOptions {
  // For requests that are not answered yet, room for their replies, and replies that are held.
  size_t memory_bytes = size_t{512} << 20;
};

// The client side of ShmExpertService. A request's rows are copied once, into the shared memory,
// where the expert worker reads them; the reply's rows are given from where it has put them. One
// connection with one life of the worker: once it has broken, which answers everything outstanding
// with UNAVAILABLE at once, the link is of no use any more. A request whose time ran out keeps its
// memory until the worker is done with it. Threads of its own wait for replies and see to time
// limits; they call `done`.
class ShmExpertLink : public ExpertLink {
 public:
  // UNAVAILABLE if that life of an expert worker does not listen on this machine. Does not block.
  static absl::StatusOr<std::unique_ptr<ShmExpertLink>> Dial(uint64_t peer_incarnation,
                                                             ShmExpertLinkOptions options = {});
  // Answers what is outstanding with UNAVAILABLE and returns when every `done` has. Must not run in
  // a `done`.
  ~ShmExpertLink() override;

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override;
  // As Send, but takes `done` over only if it returns OK, so that another way may be tried.
  absl::Status TrySend(std::shared_ptr<const ExpertRequest> request, Done* done);

  bool broken() const;
  // requests_total, requests_live, outstanding_bytes (of memory), late_replies_total,
  // timeouts_total, header_bytes_sent_total, payload_bytes_sent_total
  CounterSnapshot Counters() const;

 private:
  class Impl;
  explicit ShmExpertLink(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_SHM_EXPERT_LINK_H_
