#include "gateway/unary_call.h"

#include "common/service/grpc_status.h"
#include "gateway/streaming_call.h"

namespace tandem {

void UnaryCall::Answer(const google::protobuf::MessageLite& message) {
  *response_ = SerializeMessage(message);
  const auto bytes = static_cast<int64_t>(response_->Length());
  unread_bytes_ = bytes;
  live_->Unread(bytes);
  write_clock_.Begin();
  live_->Enforce();  // before Finish, after which this may be gone
  Finish(grpc::Status::OK);
}

void UnaryCall::Fail(const absl::Status& status) {
  live_->CountFailure();
  Finish(ToGrpc(status));
}

bool UnaryCall::Shed(const absl::Status& why) {
  if (shed_.exchange(true)) return false;
  write_clock_.Rest();
  live_->Unread(-unread_bytes_.exchange(0));
  CancelCall(context_, why);
  return true;
}

void UnaryCall::OnDone() {
  live_->Remove(this);
  live_->Unread(-unread_bytes_.exchange(0));
  delete this;
}

}  // namespace tandem
