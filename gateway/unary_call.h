// One unary call, whose answer counts as unread until its client has taken it.
#ifndef TANDEM_GATEWAY_UNARY_CALL_H_
#define TANDEM_GATEWAY_UNARY_CALL_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/grpcpp.h>

#include <atomic>

#include "absl/status/status.h"
#include "common/work_clock.h"
#include "gateway/live_calls.h"

namespace tandem {

// Answer or Fail, once, from any thread; the call is not used any more afterwards. Deletes itself
// when gRPC is done with it.
class UnaryCall : public grpc::ServerUnaryReactor, public LiveCall {
 public:
  UnaryCall(LiveCalls* live, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : live_(live), context_(context), response_(response) {
    live_->Add(this);
  }

  // The client is gone, its deadline has passed, or the call was shed.
  bool cancelled() const { return context_->IsCancelled(); }

  void Answer(const google::protobuf::MessageLite& message);
  void Fail(const absl::Status& status);

  int64_t unread_bytes() const override { return unread_bytes_; }
  absl::Duration stalled_for() const override { return write_clock_.elapsed(); }
  bool Shed(const absl::Status& why) override;

 private:
  void OnDone() override;

  LiveCalls* const live_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  std::atomic<int64_t> unread_bytes_ = 0;
  std::atomic<bool> shed_ = false;
  WorkClock write_clock_;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_UNARY_CALL_H_
