// An attention worker on another machine, reached over gRPC.
#ifndef TANDEM_COMMON_TRANSPORT_GRPC_ATTENTION_LINK_H_
#define TANDEM_COMMON_TRANSPORT_GRPC_ATTENTION_LINK_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/transport/attention_link.h"
#include "common/transport/grpc_peer.h"

namespace tandem {

struct GrpcAttentionLinkOptions {
  uint64_t gateway_incarnation = 0;
  std::string digest;  // of the checkpoint that the gateway serves
  absl::Duration connect_timeout = absl::Seconds(2);
  absl::Duration keepalive_interval = absl::Milliseconds(200);  // each is answered
  // A worker that says nothing for so long is told to be silent (Observer::OnSilent), unless it has
  // logits to send, which may take their time. Twice as long after each time that it came back
  // within `silence_memory` of it.
  absl::Duration suspect_after = absl::Milliseconds(700);
  absl::Duration silence_memory = absl::Seconds(30);
  absl::Duration silence_limit =
      absl::Seconds(10);  // a worker that says nothing for so long is gone
};

// The client side of AttentionWorker.Run. A link does not connect again: after OnDown it is of no
// use.
class GrpcAttentionLink : public AttentionLink {
 public:
  // Dials and waits for the worker's welcome; blocks up to connect_timeout. `observer` must outlive
  // the link; it hears nothing unless Connect succeeds.
  //   FAILED_PRECONDITION  the worker serves another checkpoint
  //   UNAVAILABLE          it cannot be reached
  //   DEADLINE_EXCEEDED    it did not answer in time
  static absl::StatusOr<std::unique_ptr<GrpcAttentionLink>> Connect(
      const GrpcPeer& peer, Observer* observer, const GrpcAttentionLinkOptions& options);
  // Ends the stream and returns when no callback runs any more. Must not run in a callback.
  ~GrpcAttentionLink() override;

  AttentionWorkerInfo info() const override;
  void OpenSequence(SequenceSpec spec) override;
  void Run(Step step) override;
  void Cancel(SequenceId sequence) override;
  void Release(SequenceId sequence) override;

  // messages_sent_total, messages_received_total, steps_sent_total
  CounterSnapshot Counters() const;

 private:
  class Impl;
  explicit GrpcAttentionLink(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GRPC_ATTENTION_LINK_H_
