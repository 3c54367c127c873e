#include "common/transport/grpc_attention_link.h"

#include <algorithm>
#include <deque>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "common/transport/attention_proto.h"
#include "common/transport/silence_watch.h"
#include "common/transport/timer_thread.h"
#include "proto/attention.grpc.pb.h"

namespace tandem {

namespace {

using Clock = TimerThread::Clock;

SilenceWatch::Options SilenceOptions(const GrpcAttentionLinkOptions& options) {
  return {absl::ToChronoNanoseconds(options.suspect_after),
          absl::ToChronoNanoseconds(std::max(options.silence_limit, options.suspect_after)),
          absl::ToChronoNanoseconds(options.silence_memory),
          absl::ToChronoNanoseconds(options.keepalive_interval)};
}

bool AsksForLogits(const v1::Step& step) {
  for (const v1::NewBatch& batch : step.new_batches()) {
    for (const v1::RowOutput& output : batch.outputs()) {
      if (output.kind() == v1::ROW_OUTPUT_KIND_LOGITS) return true;
    }
  }
  return false;
}

}  // namespace

// The stream and everything about it. Created before the stream starts and destroyed after OnDone.
class GrpcAttentionLink::Impl
    : public grpc::ClientBidiReactor<v1::AttentionRequest, v1::AttentionReply> {
 public:
  Impl(const GrpcPeer& peer, Observer* observer, const GrpcAttentionLinkOptions& options)
      : address_(peer.address),
        options_(options),
        observer_(observer),
        channel_(CreatePeerChannel(peer)),
        stub_(v1::AttentionWorker::NewStub(channel_)) {}
  ~Impl() override;

  // Starts the stream; returns when the worker has welcomed us or will not.
  absl::Status Establish();
  AttentionWorkerInfo info() const { return info_; }
  void Write(v1::AttentionRequest message);
  CounterSnapshot Counters() const;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  enum class State { kGreeting, kWelcomed, kEstablished, kClosing };

  absl::Status OnReply(const v1::AttentionReply& reply);
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Break() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Clock::time_point Tick();
  // What is due of keepalives; when the next one is.
  Clock::time_point KeepAlive(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string address_;
  const GrpcAttentionLinkOptions options_;
  Observer* const observer_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::AttentionWorker::Stub> stub_;
  grpc::ClientContext context_;
  v1::AttentionReply read_message_;
  AttentionWorkerInfo info_;  // set once, before kWelcomed

  mutable Mutex mu_;
  CondVar changed_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kGreeting;
  std::deque<v1::AttentionRequest> queue_ ABSL_GUARDED_BY(mu_);
  v1::AttentionRequest write_message_ ABSL_GUARDED_BY(mu_);
  bool started_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // nothing is written any more
  bool done_ ABSL_GUARDED_BY(mu_) = false;    // no reaction follows
  absl::Status reason_ ABSL_GUARDED_BY(mu_);  // why the stream was broken from this side
  absl::Status end_ ABSL_GUARDED_BY(mu_);     // why it ended
  Clock::time_point last_write_ ABSL_GUARDED_BY(mu_) = Clock::now();
  Clock::time_point last_read_ ABSL_GUARDED_BY(mu_) = Clock::now();
  Clock::time_point last_keepalive_ ABSL_GUARDED_BY(mu_) = Clock::now();
  SilenceWatch silence_ ABSL_GUARDED_BY(mu_){SilenceOptions(options_), Clock::now()};
  std::set<StepId> steps_with_logits_ ABSL_GUARDED_BY(mu_);  // outstanding
  int64_t messages_sent_total_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t messages_received_total_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t steps_sent_total_ ABSL_GUARDED_BY(mu_) = 0;

  std::unique_ptr<TimerThread> timer_;
};

absl::Status GrpcAttentionLink::Impl::Establish() {
  stub_->async()->Run(&context_, this);
  AddHold();  // until Break: other threads write
  v1::AttentionRequest hello;
  hello.mutable_hello()->set_gateway_incarnation(options_.gateway_incarnation);
  hello.mutable_hello()->set_digest(options_.digest);
  {
    MutexLock lock(mu_);
    started_ = true;
  }
  StartRead(&read_message_);
  StartCall();
  Write(std::move(hello));

  MutexLock lock(mu_);
  const bool answered = changed_.WaitFor(
      lock, absl::ToChronoNanoseconds(options_.connect_timeout),
      [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return done_ || state_ == State::kWelcomed; });
  if (!answered) {
    return absl::DeadlineExceededError(
        absl::StrCat("attention worker ", address_, " did not answer within ",
                     absl::FormatDuration(options_.connect_timeout)));
  }
  if (done_) {
    return absl::Status(end_.code(),
                        absl::StrCat("attention worker ", address_, ": ", end_.message()));
  }
  state_ = State::kEstablished;
  timer_ = std::make_unique<TimerThread>([this] { return Tick(); });
  return absl::OkStatus();
}

GrpcAttentionLink::Impl::~Impl() {
  {
    MutexLock lock(mu_);
    state_ = State::kClosing;
    if (started_) {
      Break();
      changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return done_; });
    }
  }
  timer_.reset();
}

void GrpcAttentionLink::Impl::Break() {
  if (broken_) return;
  broken_ = true;
  queue_.clear();
  context_.TryCancel();
  RemoveHold();
}

void GrpcAttentionLink::Impl::Write(v1::AttentionRequest message) {
  MutexLock lock(mu_);
  if (broken_) return;
  if (message.has_step()) {
    ++steps_sent_total_;
    if (AsksForLogits(message.step())) steps_with_logits_.insert(message.step().step());
  }
  queue_.push_back(std::move(message));
  WriteNext();
}

void GrpcAttentionLink::Impl::WriteNext() {
  if (writing_ || broken_ || queue_.empty()) return;
  write_message_ = std::move(queue_.front());
  queue_.pop_front();
  writing_ = true;
  ++messages_sent_total_;
  StartWrite(&write_message_);
}

void GrpcAttentionLink::Impl::OnWriteDone(bool ok) {
  MutexLock lock(mu_);
  writing_ = false;
  last_write_ = Clock::now();
  if (ok) WriteNext();
}

void GrpcAttentionLink::Impl::OnReadDone(bool ok) {
  const absl::Status status = ok ? OnReply(read_message_) : absl::OkStatus();
  MutexLock lock(mu_);
  last_read_ = Clock::now();
  if (!status.ok()) reason_ = status;
  if (!ok || !status.ok()) Break();
  if (broken_) return;
  // Told with the lock held, so that it is told in turns.
  if (silence_.Heard(last_read_)) observer_->OnSilent(false);
  ++messages_received_total_;
  read_message_.Clear();
  StartRead(&read_message_);
}

// An error means that the worker does not speak the protocol.
absl::Status GrpcAttentionLink::Impl::OnReply(const v1::AttentionReply& reply) {
  State state;
  {
    MutexLock lock(mu_);
    state = state_;
    if (reply.has_welcome() && state_ == State::kGreeting) {
      info_ = FromProto(reply.welcome());
      state_ = State::kWelcomed;
      changed_.NotifyAll();
      return absl::OkStatus();
    }
  }
  if (reply.has_keepalive()) return absl::OkStatus();
  if (!reply.has_result() || state == State::kGreeting) {
    return absl::DataLossError("it sent a message out of order");
  }
  absl::StatusOr<StepResult> result = FromProto(reply.result());
  if (!result.ok()) return result.status();
  {
    MutexLock lock(mu_);
    steps_with_logits_.erase(result->step);
  }
  if (state == State::kEstablished) observer_->OnStepResult(*std::move(result));
  return absl::OkStatus();
}

void GrpcAttentionLink::Impl::OnDone(const grpc::Status& status) {
  bool tell = false;
  absl::Status why;
  {
    MutexLock lock(mu_);
    end_ = reason_.ok() ? FromGrpc(status) : reason_;
    if (end_.ok()) end_ = absl::UnavailableError("it ended the session");
    tell = state_ == State::kEstablished;
    why = absl::UnavailableError(
        absl::StrCat("the connection to attention worker ", address_, " broke: ", end_.ToString()));
  }
  if (tell) observer_->OnDown(std::move(why));
  MutexLock lock(mu_);
  done_ = true;
  changed_.NotifyAll();
}

Clock::time_point GrpcAttentionLink::Impl::Tick() {
  MutexLock lock(mu_);
  const Clock::time_point now = Clock::now();
  if (broken_) return now + std::chrono::hours(1);
  if (silence_.Look(now, !steps_with_logits_.empty())) observer_->OnSilent(true);
  if (now - last_read_ >= absl::ToChronoNanoseconds(options_.silence_limit)) {
    reason_ = absl::UnavailableError(
        absl::StrCat("it said nothing for ", absl::FormatDuration(options_.silence_limit)));
    Break();
  }
  return std::min(KeepAlive(now), silence_.due());
}

// One where either side has said nothing for an interval.
Clock::time_point GrpcAttentionLink::Impl::KeepAlive(Clock::time_point now) {
  const auto interval = absl::ToChronoNanoseconds(options_.keepalive_interval);
  const Clock::time_point due =
      std::max(std::min(last_write_, last_read_), last_keepalive_) + interval;
  if (now < due) return due;
  if (!writing_ && queue_.empty() && !broken_) {
    v1::AttentionRequest message;
    message.mutable_keepalive();
    queue_.push_back(std::move(message));
    last_keepalive_ = now;
    WriteNext();
  }
  return now + interval;
}

CounterSnapshot GrpcAttentionLink::Impl::Counters() const {
  MutexLock lock(mu_);
  return {{"messages_sent_total", messages_sent_total_},
          {"messages_received_total", messages_received_total_},
          {"steps_sent_total", steps_sent_total_}};
}

GrpcAttentionLink::GrpcAttentionLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcAttentionLink::~GrpcAttentionLink() = default;

absl::StatusOr<std::unique_ptr<GrpcAttentionLink>> GrpcAttentionLink::Connect(
    const GrpcPeer& peer, Observer* observer, const GrpcAttentionLinkOptions& options) {
  auto impl = std::make_unique<Impl>(peer, observer, options);
  absl::Status status = impl->Establish();
  if (!status.ok()) return status;
  return std::unique_ptr<GrpcAttentionLink>(new GrpcAttentionLink(std::move(impl)));
}

AttentionWorkerInfo GrpcAttentionLink::info() const { return impl_->info(); }

void GrpcAttentionLink::OpenSequence(SequenceSpec spec) {
  v1::AttentionRequest message;
  ToProto(spec, message.mutable_open());
  impl_->Write(std::move(message));
}

void GrpcAttentionLink::Run(Step step) {
  v1::AttentionRequest message;
  ToProto(step, message.mutable_step());
  impl_->Write(std::move(message));
}

void GrpcAttentionLink::Cancel(SequenceId sequence) {
  v1::AttentionRequest message;
  message.set_cancel(sequence);
  impl_->Write(std::move(message));
}

void GrpcAttentionLink::Release(SequenceId sequence) {
  v1::AttentionRequest message;
  message.set_release(sequence);
  impl_->Write(std::move(message));
}

CounterSnapshot GrpcAttentionLink::Counters() const { return impl_->Counters(); }

}  // namespace tandem
