// An expert worker on another machine, reached over gRPC.
#ifndef TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_LINK_H_
#define TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_LINK_H_

#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "common/counters.h"
#include "common/transport/expert_link.h"
#include "common/transport/grpc_peer.h"

namespace tandem {

struct GrpcExpertLinkOptions {
  int64_t max_outstanding_bytes = int64_t{256} << 20;  // of requests that are not answered yet
  // gRPC's polling threads fall asleep for 100 ms when idle; a frame each way keeps them awake.
  absl::Duration keepalive_interval = absl::Milliseconds(300);
  absl::Duration silence_limit = absl::Seconds(10);  // a peer that says nothing for so long is gone
};

// The client side of ExpertWorker.Exchange: one stream carries all requests, many at once. Connects
// at the first Send and again at the next one after the stream broke, which answers everything
// outstanding with UNAVAILABLE. Rows are sent from where they lie; rows received are copied once.
// A thread of its own sees to time limits; it and gRPC's call `done`.
class GrpcExpertLink : public ExpertLink {
 public:
  explicit GrpcExpertLink(GrpcPeer peer, GrpcExpertLinkOptions options = {});
  // Answers what is outstanding with UNAVAILABLE and returns when every `done` has. Must not run in
  // a gRPC callback or in a `done`.
  ~GrpcExpertLink() override;

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override;

  // requests_total, requests_live, outstanding_bytes, streams_total, late_replies_total,
  // timeouts_total, and FrameCounters'
  CounterSnapshot Counters() const;

 private:
  class Stream;
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GRPC_EXPERT_LINK_H_
