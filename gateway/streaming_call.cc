#include "gateway/streaming_call.h"

#include <grpc/grpc.h>

#include <string>
#include <utility>

#include "absl/time/time.h"
#include "common/service/grpc_status.h"

namespace tandem {

void CancelCall(grpc::CallbackServerContext* context, const absl::Status& why) {
  const grpc::Status status = ToGrpc(why);
  grpc_call_cancel_with_status(context->c_call(),
                               static_cast<grpc_status_code>(status.error_code()),
                               status.error_message().c_str(), nullptr);
}

void StreamingCall::Submit(std::vector<SubmittedJob> jobs,
                           const std::vector<grpc::ByteBuffer>& first) {
  for (SubmittedJob& job : jobs) job.job.tag = tag_;
  absl::Status refused;
  {
    // What comes of the jobs waits for the lock, and so for `first`.
    MutexLock lock(mutex_);
    num_jobs_ = jobs.size();
    const absl::StatusOr<JobId> id = driver_->Submit(std::move(jobs));
    refused = id.status();
    if (id.ok()) {
      first_job_ = *id;
      for (const grpc::ByteBuffer& message : first) Enqueue(message);
      if (cancelled_) CancelJobsLocked();
    } else if (const auto after = RetryAfter(refused); after.has_value() && !ended_ && !shed_) {
      context_->AddTrailingMetadata(kRetryPushback,
                                    std::to_string(absl::ToInt64Milliseconds(*after)));
    }
  }
  if (!refused.ok()) return End(ToGrpc(refused));
  live_->Enforce();
}

void StreamingCall::Enqueue(grpc::ByteBuffer buffer) {
  if (ended_ || shed_) return;
  CountUnread(static_cast<int64_t>(buffer.Length()));
  queue_.push_back(std::move(buffer));
  if (queue_.size() == 1) WriteFirst();
}

void StreamingCall::Send(const google::protobuf::MessageLite& message) {
  grpc::ByteBuffer buffer = SerializeMessage(message);
  {
    MutexLock lock(mutex_);
    if (ended_ || shed_) return;  // gRPC, and the service with it, may be done with the call
    Enqueue(buffer);
  }
  live_->Enforce();
}

void StreamingCall::End(const grpc::Status& status) {
  const std::shared_ptr<StreamingCall> self = shared_from_this();  // Finish may be gRPC's last call
  {
    MutexLock lock(mutex_);
    if (std::exchange(ended_, true)) return;
    if (!status.ok()) {
      live_->CountFailure();
      metrics_->CountError(static_cast<absl::StatusCode>(status.error_code()));
    }
    status_ = status;
    if (queue_.empty()) Finish(status_);
  }
  const LogScope scope(FieldsOf(tag_));
  log_->Ended(rpc(), status, Details());
}

bool StreamingCall::Shed(const absl::Status& why) {
  MutexLock lock(mutex_);
  if (shed_.exchange(true)) return false;
  DropRest();
  // The message on its way goes with the call; until then no other call is to be ended for it.
  CountUnread(-unread_bytes_);
  CancelCall(context_, why);
  return true;
}

void StreamingCall::CancelJobs() {
  MutexLock lock(mutex_);
  cancelled_ = true;
  CancelJobsLocked();
}

void StreamingCall::CancelJobsLocked() {
  if (first_job_ == 0) return;
  for (size_t i = 0; i < num_jobs_; ++i) driver_->Cancel(first_job_ + i);
}

void StreamingCall::FinishJob(size_t index) {
  MutexLock lock(mutex_);
  driver_->Finish(first_job_ + index);
}

void StreamingCall::CountUnread(int64_t bytes) {
  unread_bytes_ += bytes;
  live_->Unread(bytes);
}

void StreamingCall::DropFirst() {
  if (!shed_) CountUnread(-static_cast<int64_t>(queue_.front().Length()));
  queue_.pop_front();
}

void StreamingCall::DropRest() {
  while (queue_.size() > 1) {
    CountUnread(-static_cast<int64_t>(queue_.back().Length()));
    queue_.pop_back();
  }
}

void StreamingCall::WriteFirst() {
  write_clock_.Begin();
  StartWrite(&queue_.front());
}

void StreamingCall::OnWriteDone(bool ok) {
  MutexLock lock(mutex_);
  if (!ok) DropRest();  // the client is gone: OnCancel says so to the driver
  DropFirst();
  if (!queue_.empty()) return WriteFirst();
  write_clock_.Rest();
  if (ended_) Finish(status_);
}

void StreamingCall::OnDone() {
  CancelJobs();
  live_->Remove(this);  // here, since the driver may hold on to this for longer than the service
  const std::shared_ptr<StreamingCall> last = std::move(self_);
}

}  // namespace tandem
