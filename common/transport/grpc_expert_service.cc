#include "common/transport/grpc_expert_service.h"

#include <atomic>
#include <deque>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "common/transport/expert_frame.h"
#include "proto/expert.grpc.pb.h"

namespace tandem {

namespace {
using ServerReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;
}  // namespace

class GrpcExpertService::Service
    : public v1::ExpertWorker::WithRawCallbackMethod_Exchange<v1::ExpertWorker::Service> {
 public:
  Service(ExpertLink* engine, GrpcExpertServiceOptions options)
      : engine_(engine), options_(options) {}
  ~Service() override {
    MutexLock lock(mu_);
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return sessions_ == 0; });
  }

  ServerReactor* Exchange(grpc::CallbackServerContext* context) override;
  CounterSnapshot Counters() const;

 private:
  friend class GrpcExpertService::Session;

  void CountSessions(int change) {
    MutexLock lock(mu_);
    sessions_ += change;
    changed_.NotifyAll();
  }

  ExpertLink* const engine_;
  const GrpcExpertServiceOptions options_;
  FrameCounters frames_;
  std::atomic<int64_t> streams_live_{0};
  std::atomic<int64_t> streams_total_{0};
  std::atomic<int64_t> requests_total_{0};
  std::atomic<int64_t> refused_total_{0};
  std::atomic<int64_t> replies_dropped_total_{0};

  Mutex mu_;
  CondVar changed_;
  int sessions_ ABSL_GUARDED_BY(mu_) = 0;  // objects, which may outlive their streams
};

// One stream. Owned by itself until OnDone, and by every request that the engine has not answered.
class GrpcExpertService::Session : public ServerReactor {
 public:
  explicit Session(Service* service) : service_(service) {
    service_->CountSessions(+1);
    ++service_->streams_live_;
    ++service_->streams_total_;
  }
  ~Session() override { service_->CountSessions(-1); }

  // Before the reactor is handed to gRPC.
  void Start(std::shared_ptr<Session> self) {
    self_ = std::move(self);
    StartRead(&read_buffer_);
  }

  void OnReadDone(bool ok) override {
    absl::Status status = ok ? OnFrame() : absl::OkStatus();
    read_buffer_.Clear();
    if (ok && status.ok()) {
      StartRead(&read_buffer_);
      return;
    }
    End(std::move(status));
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(mu_);
    writing_ = false;
    write_buffer_.Clear();
    outstanding_bytes_ -= written_bytes_;
    if (ended_) {
      FinishStream();
    } else if (ok) {
      WriteNext();
    }
  }

  void OnDone() override {
    --service_->streams_live_;
    const std::shared_ptr<Session> last = std::move(self_);
  }

 private:
  // What is left of `outstanding_bytes` goes with the last frame.
  struct Outgoing {
    EncodedFrame frame;
    int64_t releases_bytes = 0;
  };

  // An error ends the stream; what concerns one message only is answered as its reply.
  absl::Status OnFrame() {
    absl::StatusOr<DecodedFrame> frame = DecodeFrame(read_buffer_);
    if (!frame.ok()) {
      ++service_->refused_total_;
      return frame.status();
    }
    service_->frames_.AddReceived(*frame);
    if (frame->header.kind() == v1::EXPERT_FRAME_KIND_KEEPALIVE) {
      Write({}, 0, /*keepalive=*/true);
      return absl::OkStatus();
    }
    const absl::Status status = OnRequestFrame(*frame);
    if (!status.ok()) {
      ++service_->refused_total_;
      const DispatchId id = IdOf(frame->header);
      assembler_.Drop(id);
      Reply(id, {status, {}, nullptr}, 0);
    }
    return absl::OkStatus();
  }

  absl::Status OnRequestFrame(const DecodedFrame& frame) {
    if (!frame.intact) return absl::DataLossError("a request does not match its checksum");
    absl::Status status = CheckRequestHeader(frame.header);
    if (!status.ok()) return status;
    absl::StatusOr<std::optional<ExpertMessage>> message = assembler_.Add(frame);
    if (!message.ok()) return message.status();
    if (!message->has_value()) return absl::OkStatus();
    auto request = DecodeRequest(**message);
    if (!request.ok()) return request.status();
    return Submit(*std::move(request));
  }

  absl::Status Submit(std::shared_ptr<const ExpertRequest> request) {
    const int64_t reply_bytes = static_cast<int64_t>(request->num_output_rows()) *
                                request->rows.width() *
                                static_cast<int64_t>(DtypeBytes(request->rows.dtype));
    const int64_t bytes = RequestPayloadBytes(*request) + reply_bytes;
    {
      MutexLock lock(mu_);
      if (outstanding_bytes_ + bytes > service_->options_.max_outstanding_bytes) {
        return absl::ResourceExhaustedError("too many bytes are outstanding on this stream");
      }
      outstanding_bytes_ += bytes;
    }
    ++service_->requests_total_;
    const DispatchId id = request->id;
    service_->engine_->Send(std::move(request), [self = self_, id, bytes](ExpertReply reply) {
      self->Reply(id, std::move(reply), bytes);
    });
    return absl::OkStatus();
  }

  // From any thread.
  void Reply(const DispatchId& id, ExpertReply reply, int64_t releases_bytes) {
    absl::StatusOr<std::vector<EncodedFrame>> frames = EncodeReply(id, reply);
    if (!frames.ok()) frames = EncodeReply(id, {frames.status(), {}, nullptr});
    if (!frames.ok()) frames = std::vector<EncodedFrame>();
    Write(*std::move(frames), releases_bytes, /*keepalive=*/false);
  }

  void Write(std::vector<EncodedFrame> frames, int64_t releases_bytes, bool keepalive) {
    MutexLock lock(mu_);
    if (ended_) {
      if (!keepalive) ++service_->replies_dropped_total_;
      return;
    }
    if (keepalive) {
      // An answer to each would let a client that does not read fill the queue.
      if (writing_ || !queue_.empty()) return;
      frames.push_back(EncodeKeepalive());
    }
    for (EncodedFrame& frame : frames) queue_.push_back({std::move(frame), 0});
    if (!frames.empty()) queue_.back().releases_bytes = releases_bytes;
    WriteNext();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || queue_.empty()) return;
    Outgoing& next = queue_.front();
    service_->frames_.AddSent(next.frame);
    write_buffer_.Swap(&next.frame.buffer);
    written_bytes_ = next.releases_bytes;
    queue_.pop_front();
    writing_ = true;
    StartWrite(&write_buffer_);
  }

  void End(absl::Status status) {
    MutexLock lock(mu_);
    ended_ = true;
    queue_.clear();
    final_status_ = ToGrpc(status);
    if (!writing_) FinishStream();
  }

  void FinishStream() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { Finish(final_status_); }

  Service* const service_;
  std::shared_ptr<Session> self_;  // until OnDone
  grpc::ByteBuffer read_buffer_;
  ExpertMessageAssembler assembler_;  // of the reading reaction

  Mutex mu_;
  std::deque<Outgoing> queue_ ABSL_GUARDED_BY(mu_);
  grpc::ByteBuffer write_buffer_ ABSL_GUARDED_BY(mu_);
  int64_t written_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t outstanding_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;  // nothing is read or queued any more
  grpc::Status final_status_ ABSL_GUARDED_BY(mu_);
};

ServerReactor* GrpcExpertService::Service::Exchange(grpc::CallbackServerContext*) {
  auto session = std::make_shared<Session>(this);
  session->Start(session);
  return session.get();
}

CounterSnapshot GrpcExpertService::Service::Counters() const {
  CounterSnapshot snapshot = {{"grpc_streams_live", streams_live_.load()},
                              {"grpc_streams_total", streams_total_.load()},
                              {"grpc_requests_total", requests_total_.load()},
                              {"grpc_refused_total", refused_total_.load()},
                              {"grpc_replies_dropped_total", replies_dropped_total_.load()}};
  frames_.AppendTo(&snapshot);
  return snapshot;
}

GrpcExpertService::GrpcExpertService(ExpertLink* engine, GrpcExpertServiceOptions options)
    : service_(std::make_unique<Service>(engine, options)) {}
GrpcExpertService::~GrpcExpertService() = default;

grpc::Service* GrpcExpertService::service() { return service_.get(); }
CounterSnapshot GrpcExpertService::Counters() const { return service_->Counters(); }

}  // namespace tandem
