#include "common/transport/grpc_attention_service.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "common/transport/attention_proto.h"
#include "common/transport/timer_thread.h"
#include "proto/attention.grpc.pb.h"

namespace tandem {

namespace {

using Clock = TimerThread::Clock;
using ServerReactor = grpc::ServerBidiReactor<v1::AttentionRequest, v1::AttentionReply>;

// Results that wait to be written; a gateway that reads has few, since few steps are outstanding.
constexpr size_t kMaxQueuedReplies = 256;
constexpr absl::Duration kCheckInterval = absl::Seconds(1);

}  // namespace

class GrpcAttentionService::Service : public v1::AttentionWorker::CallbackService {
 public:
  Service(AttentionConnect connect, GrpcAttentionServiceOptions options)
      : connect_(std::move(connect)),
        options_(std::move(options)),
        reaper_(std::make_unique<TimerThread>([this] { return Reap(); })) {}
  ~Service() override;

  ServerReactor* Run(grpc::CallbackServerContext* context) override;
  CounterSnapshot Counters() const;

 private:
  friend class GrpcAttentionService::Session;

  // A session whose stream has ended. The link goes first: the session observes it.
  struct Ended {
    std::shared_ptr<Session> session;
    std::unique_ptr<AttentionLink> link;
  };

  void Bury(std::shared_ptr<Session> session, std::unique_ptr<AttentionLink> link);
  void Forget(Session* session);
  Clock::time_point Reap();

  const AttentionConnect connect_;
  const GrpcAttentionServiceOptions options_;
  std::atomic<int64_t> sessions_live_{0};
  std::atomic<int64_t> sessions_total_{0};
  std::atomic<int64_t> sessions_refused_total_{0};
  std::atomic<int64_t> messages_sent_total_{0};
  std::atomic<int64_t> messages_received_total_{0};

  Mutex mu_;
  CondVar changed_;
  std::vector<Ended> ended_ ABSL_GUARDED_BY(mu_);
  std::set<Session*> sessions_ ABSL_GUARDED_BY(mu_);  // whose stream has not ended
  int burying_ ABSL_GUARDED_BY(mu_) = 0;

  std::unique_ptr<TimerThread> reaper_;
};

// One stream. Owned by itself until OnDone and by the service until its link is destroyed.
class GrpcAttentionService::Session : public ServerReactor, public AttentionLink::Observer {
 public:
  Session(Service* service, grpc::CallbackServerContext* context)
      : service_(service), context_(context) {}

  // Before the reactor is handed to gRPC.
  void Start(std::shared_ptr<Session> self) {
    self_ = std::move(self);
    StartRead(&read_message_);
  }

  // From the service's thread, while the stream has not ended.
  void CheckSilence(Clock::time_point now) {
    MutexLock lock(mu_);
    if (now - last_read_ >= absl::ToChronoNanoseconds(service_->options_.silence_limit)) {
      context_->TryCancel();
    }
  }

  void OnReadDone(bool ok) override {
    absl::Status status = ok ? OnMessage(read_message_) : absl::OkStatus();
    if (ok && status.ok()) {
      {
        MutexLock lock(mu_);
        last_read_ = Clock::now();
      }
      read_message_.Clear();
      StartRead(&read_message_);
      return;
    }
    if (link_ != nullptr) service_->Bury(self_, std::move(link_));
    End(std::move(status));
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(mu_);
    writing_ = false;
    if (finish_wanted_) {
      FinishOnce();
    } else if (ok) {
      WriteNext();
    }
  }

  void OnDone() override {
    service_->Forget(this);
    const std::shared_ptr<Session> last = std::move(self_);
  }

  void OnStepResult(StepResult result) override {
    v1::AttentionReply reply;
    ToProto(result, reply.mutable_result());
    Write(std::move(reply));
  }

  void OnDown(absl::Status status) override { End(std::move(status)); }

 private:
  absl::Status OnMessage(const v1::AttentionRequest& message) {
    ++service_->messages_received_total_;
    if (message.has_hello()) {
      absl::Status status = OnHello(message.hello());
      if (!status.ok()) ++service_->sessions_refused_total_;
      return status;
    }
    if (link_ == nullptr) return absl::FailedPreconditionError("a session begins with a hello");
    switch (message.kind_case()) {
      case v1::AttentionRequest::kOpen:
        link_->OpenSequence(FromProto(message.open()));
        return absl::OkStatus();
      case v1::AttentionRequest::kStep: {
        absl::StatusOr<Step> step = FromProto(message.step());
        if (!step.ok()) return step.status();
        link_->Run(*std::move(step));
        return absl::OkStatus();
      }
      case v1::AttentionRequest::kCancel:
        link_->Cancel(message.cancel());
        return absl::OkStatus();
      case v1::AttentionRequest::kRelease:
        link_->Release(message.release());
        return absl::OkStatus();
      case v1::AttentionRequest::kKeepalive:
        return AnswerKeepalive();
      default:
        return absl::InvalidArgumentError("a message of an unknown kind");
    }
  }

  absl::Status OnHello(const v1::AttentionHello& hello) {
    if (link_ != nullptr) return absl::FailedPreconditionError("a session has one hello");
    if (const std::string digest = service_->options_.digest(); hello.digest() != digest) {
      return absl::FailedPreconditionError(
          absl::StrCat("the gateway serves the checkpoint with digest ", hello.digest(),
                       ", this attention worker the one with digest ", digest));
    }
    link_ = service_->connect_(this);
    if (link_ == nullptr) return absl::UnavailableError("this attention worker is not ready yet");
    ++service_->sessions_live_;
    ++service_->sessions_total_;
    v1::AttentionReply reply;
    ToProto(link_->info(), reply.mutable_welcome());
    Write(std::move(reply));
    return absl::OkStatus();
  }

  // Only where nothing else is being said: so a gateway that does not read cannot fill the queue.
  absl::Status AnswerKeepalive() {
    {
      MutexLock lock(mu_);
      if (writing_ || !queue_.empty()) return absl::OkStatus();
    }
    v1::AttentionReply reply;
    reply.mutable_keepalive();
    Write(std::move(reply));
    return absl::OkStatus();
  }

  // From any thread.
  void Write(v1::AttentionReply message) {
    MutexLock lock(mu_);
    if (finish_wanted_) return;
    if (queue_.size() >= kMaxQueuedReplies) {
      context_->TryCancel();
      return;
    }
    queue_.push_back(std::move(message));
    WriteNext();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || queue_.empty()) return;
    write_message_ = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
    ++service_->messages_sent_total_;
    StartWrite(&write_message_);
  }

  void End(absl::Status status) {
    MutexLock lock(mu_);
    if (finish_wanted_) return;
    finish_wanted_ = true;
    queue_.clear();
    final_status_ = ToGrpc(status);
    if (!writing_) FinishOnce();
  }

  void FinishOnce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { Finish(final_status_); }

  Service* const service_;
  grpc::CallbackServerContext* const context_;  // valid until OnDone
  std::shared_ptr<Session> self_;               // until OnDone

  // Of the reading reaction.
  v1::AttentionRequest read_message_;
  std::unique_ptr<AttentionLink> link_;

  Mutex mu_;
  std::deque<v1::AttentionReply> queue_ ABSL_GUARDED_BY(mu_);
  v1::AttentionReply write_message_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool finish_wanted_ ABSL_GUARDED_BY(mu_) = false;  // nothing is queued any more
  grpc::Status final_status_ ABSL_GUARDED_BY(mu_);
  Clock::time_point last_read_ ABSL_GUARDED_BY(mu_) = Clock::now();
};

ServerReactor* GrpcAttentionService::Service::Run(grpc::CallbackServerContext* context) {
  auto session = std::make_shared<Session>(this, context);
  {
    MutexLock lock(mu_);
    sessions_.insert(session.get());
  }
  session->Start(session);
  return session.get();
}

void GrpcAttentionService::Service::Bury(std::shared_ptr<Session> session,
                                         std::unique_ptr<AttentionLink> link) {
  {
    MutexLock lock(mu_);
    ended_.push_back({std::move(session), std::move(link)});
    ++burying_;
  }
  reaper_->Wake();
}

void GrpcAttentionService::Service::Forget(Session* session) {
  MutexLock lock(mu_);
  sessions_.erase(session);
  changed_.NotifyAll();
}

Clock::time_point GrpcAttentionService::Service::Reap() {
  const Clock::time_point now = Clock::now();
  std::vector<Ended> ended;
  {
    MutexLock lock(mu_);
    ended.swap(ended_);
    for (Session* session : sessions_) session->CheckSilence(now);
  }
  for (Ended& e : ended) {
    e.link.reset();
    e.session.reset();
    --sessions_live_;
    MutexLock lock(mu_);
    --burying_;
    changed_.NotifyAll();
  }
  return now + absl::ToChronoNanoseconds(std::min(kCheckInterval, options_.silence_limit / 2));
}

GrpcAttentionService::Service::~Service() {
  {
    MutexLock lock(mu_);
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return sessions_.empty() && burying_ == 0;
    });
  }
  reaper_.reset();
}

CounterSnapshot GrpcAttentionService::Service::Counters() const {
  return {{"sessions_live", sessions_live_.load()},
          {"sessions_total", sessions_total_.load()},
          {"sessions_refused_total", sessions_refused_total_.load()},
          {"messages_sent_total", messages_sent_total_.load()},
          {"messages_received_total", messages_received_total_.load()}};
}

GrpcAttentionService::GrpcAttentionService(AttentionConnect connect,
                                           GrpcAttentionServiceOptions options)
    : service_(std::make_unique<Service>(std::move(connect), std::move(options))) {}
GrpcAttentionService::~GrpcAttentionService() = default;

grpc::Service* GrpcAttentionService::service() { return service_.get(); }
CounterSnapshot GrpcAttentionService::Counters() const { return service_->Counters(); }

}  // namespace tandem
