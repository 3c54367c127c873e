// One server-streaming call that is fed from another thread than gRPC's.
#ifndef TANDEM_GATEWAY_STREAMING_CALL_H_
#define TANDEM_GATEWAY_STREAMING_CALL_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <utility>

#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "gateway/inference_service.h"
#include "gateway/step_driver.h"

namespace tandem {

// False if `buffer` does not hold a message of this type.
inline bool ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  grpc::Slice slice;
  return buffer.DumpToSingleSlice(&slice).ok() &&
         message->ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
}

inline grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// A call that is a job: writes are queued, one is on its way at a time, and a client that goes away
// cancels the job. The queue is bounded by the job itself: at most one message per row of it. Keeps
// itself alive until gRPC is done with it; the driver keeps it until the job is done.
class StreamingCall : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                      public JobSink,
                      public std::enable_shared_from_this<StreamingCall> {
 public:
  StreamingCall(StepDriver* driver, InferenceService::Live* live) : driver_(driver), live_(live) {
    ++live_->live;
    ++live_->total;
  }

  // Hands the job in; ends the call if the driver does not take it.
  void Submit(Job job) {
    const absl::StatusOr<JobId> id = driver_->Submit(std::move(job), shared_from_this());
    if (!id.ok()) return End(ToGrpc(id.status()));
    MutexLock lock(mutex_);
    job_ = *id;
    if (cancelled_) driver_->Cancel(job_);
    if (finished_) driver_->Finish(job_);
  }

  void Send(const google::protobuf::MessageLite& message) {
    grpc::ByteBuffer buffer = SerializeMessage(message);
    MutexLock lock(mutex_);
    if (ended_) return;
    queue_.push_back(std::move(buffer));
    if (queue_.size() == 1) StartWrite(&queue_.front());
  }

  // After everything that was sent. Once; later calls are ignored.
  void End(grpc::Status status) {
    if (!status.ok()) ++live_->failed;
    MutexLock lock(mutex_);
    if (std::exchange(ended_, true)) return;
    status_ = std::move(status);
    if (queue_.empty()) Finish(status_);
  }

  // Must be called once, before gRPC can be done with the call.
  void KeepAlive() { self_ = shared_from_this(); }

 protected:
  void CancelJob() {
    MutexLock lock(mutex_);
    cancelled_ = true;
    if (job_ != 0) driver_->Cancel(job_);
  }

  // The job has all that it wanted: it is to end as a success.
  void FinishJob() {
    MutexLock lock(mutex_);
    finished_ = true;
    if (job_ != 0) driver_->Finish(job_);
  }

 private:
  void OnWriteDone(bool ok) override {
    MutexLock lock(mutex_);
    queue_.pop_front();
    if (!ok) queue_.clear();  // the client is gone: OnCancel says so to the driver
    if (!queue_.empty()) {
      StartWrite(&queue_.front());
    } else if (ended_) {
      Finish(status_);
    }
  }
  void OnCancel() override { CancelJob(); }
  void OnDone() override {
    CancelJob();
    --live_->live;  // here, since the driver may hold on to this object for longer than the service
    const std::shared_ptr<StreamingCall> last = std::move(self_);
  }

  StepDriver* const driver_;
  InferenceService::Live* const live_;
  std::shared_ptr<StreamingCall> self_;

  Mutex mutex_;
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);  // the first is being written
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  JobId job_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_STREAMING_CALL_H_
