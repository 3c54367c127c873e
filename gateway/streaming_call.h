// One server-streaming call that is fed from another thread than gRPC's.
#ifndef TANDEM_GATEWAY_STREAMING_CALL_H_
#define TANDEM_GATEWAY_STREAMING_CALL_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/log_scope.h"
#include "common/mutex.h"
#include "common/request_tag.h"
#include "common/work_clock.h"
#include "gateway/live_calls.h"
#include "gateway/request_log.h"
#include "gateway/request_metrics.h"
#include "gateway/step_driver.h"

namespace tandem {

// False if `buffer` does not hold a message of this type.
inline bool ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  grpc::Slice slice;
  return buffer.DumpToSingleSlice(&slice).ok() &&
         message->ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
}

// The trailer with the milliseconds after which a refused call may be tried again. gRPC's clients
// heed it where they are configured to retry (gRFC A6).
inline constexpr char kRetryPushback[] = "grpc-retry-pushback-ms";

inline grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// Ends a call with `why` past whatever its client does not read. Flow control holds a message back,
// and with it the status behind it; cancelling the call sends a status of its own past both.
void CancelCall(grpc::CallbackServerContext* context, const absl::Status& why);

// A call that is one job or several: writes are queued, one is on its way at a time, and a client
// that goes away cancels the jobs. What is queued is bounded by the jobs themselves, at most one
// message per row of them, and with that of all other calls by LiveCalls. Keeps itself alive until
// gRPC is done with it; the driver keeps it until its jobs are done.
class StreamingCall : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                      public LiveCall,
                      public std::enable_shared_from_this<StreamingCall> {
 public:
  // What all calls of a service share.
  struct Service {
    StepDriver* driver = nullptr;
    LiveCalls* live = nullptr;
    // Which calls keep, as they may outlive the service.
    std::shared_ptr<RequestMetrics> metrics;
    std::shared_ptr<RequestLog> log;
  };
  StreamingCall(Service service, RequestTag tag, grpc::CallbackServerContext* context)
      : driver_(service.driver),
        live_(service.live),
        metrics_(std::move(service.metrics)),
        log_(std::move(service.log)),
        tag_(std::move(tag)),
        context_(context) {}

  // Must be called once, before gRPC can be done with the call.
  void KeepAlive() {
    self_ = shared_from_this();
    live_->Add(this);  // here, once the call is whole: others may ask it from now on
  }

  // Hands the jobs in, each with a sink of this call's (Sink), and sends the messages `first`
  // before all that comes of them; ends the call with nothing but a status if the driver does not
  // take them, and says when to come again: kRetryPushback. Once.
  void Submit(std::vector<SubmittedJob> jobs, const std::vector<grpc::ByteBuffer>& first);
  void Send(const google::protobuf::MessageLite& message);
  // After everything that was sent. Once; later calls are ignored.
  void End(const grpc::Status& status);

  // The client is gone, or the call was shed.
  bool cancelled() const {
    MutexLock lock(mutex_);
    return cancelled_;
  }

  const RequestTag& tag() const { return tag_; }

  int64_t unread_bytes() const override { return unread_bytes_; }
  absl::Duration stalled_for() const override { return write_clock_.elapsed(); }
  bool Shed(const absl::Status& why) override;

 protected:
  // For the log: how the method is called, and what is known of the call at its end.
  virtual const char* rpc() const = 0;
  virtual LogFields Details() const = 0;
  absl::Time arrived() const { return arrived_; }
  RequestMetrics& metrics() { return *metrics_; }
  int64_t max_unread_bytes() const { return live_->max_unread_bytes(); }
  // Part of this call, which it keeps alive.
  std::shared_ptr<JobSink> Sink(JobSink* part) { return {shared_from_this(), part}; }
  // The job of this index has all that it wanted: it is to end as a success. Not before its first
  // Send.
  void FinishJob(size_t index);
  void CancelJobs();

 private:
  void CancelJobsLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountUnread(int64_t bytes);
  void Enqueue(grpc::ByteBuffer buffer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Drops the first message of the queue, or all but it.
  void DropFirst() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropRest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteFirst() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void OnWriteDone(bool ok) override;
  void OnCancel() override { CancelJobs(); }
  void OnDone() override;

  StepDriver* const driver_;
  LiveCalls* const live_;
  const std::shared_ptr<RequestMetrics> metrics_;
  const std::shared_ptr<RequestLog> log_;
  const RequestTag tag_;
  const absl::Time arrived_ = absl::Now();
  grpc::CallbackServerContext* const context_;  // until OnDone
  std::shared_ptr<StreamingCall> self_;
  std::atomic<int64_t> unread_bytes_ = 0;
  std::atomic<bool> shed_ = false;
  WorkClock write_clock_;

  mutable Mutex mutex_;
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);  // the first is being written
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  JobId first_job_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t num_jobs_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_STREAMING_CALL_H_
