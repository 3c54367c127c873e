#include "common/transport/grpc_expert_link.h"

#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "common/time_after.h"
#include "common/transport/expert_frame.h"
#include "common/transport/timer_thread.h"

namespace tandem {
namespace {

using Clock = TimerThread::Clock;
using ClientReactor = grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

constexpr char kMethod[] = "/tandem.v1.ExpertWorker/Exchange";

// An answer that is given when no lock is held.
struct DueAnswer {
  ExpertLink::Done done;
  ExpertReply reply;
};

void Answer(std::vector<DueAnswer> due) {
  for (DueAnswer& answer : due) answer.done(std::move(answer.reply));
}

}  // namespace

// ---- the link -----------------------------------------------------------------------------------

class GrpcExpertLink::Impl {
 public:
  Impl(GrpcPeer peer, GrpcExpertLinkOptions options)
      : peer_(std::move(peer)),
        options_(options),
        channel_(CreatePeerChannel(peer_)),
        timer_(std::make_unique<TimerThread>([this] { return Tick(); })) {}
  ~Impl();

  void Send(std::shared_ptr<const ExpertRequest> request, Done done);
  CounterSnapshot Counters() const;

 private:
  friend class GrpcExpertLink::Stream;

  struct Outstanding {
    std::shared_ptr<const ExpertRequest> request;
    Done done;
    Stream* stream = nullptr;  // that carries it
    Clock::time_point deadline;
    int64_t bytes = 0;
  };

  absl::Status Enqueue(const std::shared_ptr<const ExpertRequest>& request, Done* done,
                       std::vector<EncodedFrame> frames);
  void OpenStream() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CloseStream() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The next stream gets a connection of its own: this one's bytes cannot be trusted, and gRPC
  // keeps it for as long as TCP does.
  void LeaveConnection() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends an outstanding request; the caller gives the answer once it has let go of the lock.
  DueAnswer Finish(absl::flat_hash_map<DispatchId, Outstanding>::iterator it, ExpertReply reply)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Clock::time_point Tick();
  void CollectExpired(Clock::time_point now, std::vector<DueAnswer>* due)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // From the stream's reactions.
  absl::Status OnFrame(Stream* stream, const grpc::ByteBuffer& buffer,
                       ExpertMessageAssembler* assembler);
  std::optional<DueAnswer> OnReply(Stream* stream, const DecodedFrame& frame,
                                   ExpertMessageAssembler* assembler);
  void OnStreamDone(Stream* stream, const absl::Status& why);
  void OnStreamGone();

  const GrpcPeer peer_;
  const GrpcExpertLinkOptions options_;
  FrameCounters frames_;

  mutable Mutex mu_;
  CondVar gone_;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  Stream* stream_ ABSL_GUARDED_BY(mu_) = nullptr;  // that new requests use; null: none, or it broke
  std::shared_ptr<grpc::Channel> channel_ ABSL_GUARDED_BY(mu_);     // of the next stream
  std::shared_ptr<const void> trust_version_ ABSL_GUARDED_BY(mu_);  // of the channel, or older
  // Kept until their streams have gone: the last reference is not to be dropped in a reaction.
  std::vector<std::shared_ptr<grpc::Channel>> left_channels_ ABSL_GUARDED_BY(mu_);
  int streams_live_ ABSL_GUARDED_BY(mu_) = 0;  // whose reactions may still call
  absl::flat_hash_map<DispatchId, Outstanding> outstanding_ ABSL_GUARDED_BY(mu_);
  int64_t outstanding_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  Clock::time_point next_tick_ ABSL_GUARDED_BY(mu_) = Clock::time_point::max();
  int64_t requests_total_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t streams_total_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t late_replies_total_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t timeouts_total_ ABSL_GUARDED_BY(mu_) = 0;

  std::unique_ptr<TimerThread> timer_;  // reset first: its thread uses the rest
};

// ---- one stream ---------------------------------------------------------------------------------

// Lives from OpenStream to OnDone, which deletes it. All but the constructor and the reactions
// needs the link's lock.
class GrpcExpertLink::Stream : public ClientReactor {
 public:
  Stream(GrpcExpertLink::Impl* link, const std::shared_ptr<grpc::Channel>& channel) : link_(link) {
    grpc::GenericStub(channel).PrepareBidiStreamingCall(&context_, kMethod, {}, this);
    AddHold();  // until Break: other threads write
    StartRead(&read_buffer_);
    StartCall();
  }

  void Write(const DispatchId& id, std::vector<EncodedFrame> frames) {
    link_->mu_.AssertHeld();
    queue_.push_back({id, std::move(frames), 0});
    WriteNext();
  }
  void WriteKeepalive() {
    std::vector<EncodedFrame> frames;
    frames.push_back(EncodeKeepalive());
    Write(DispatchId{}, std::move(frames));
  }

  // Takes a message out of the queue unless it has begun to be sent.
  void Unqueue(const DispatchId& id) {
    link_->mu_.AssertHeld();
    const auto it = std::find_if(queue_.begin(), queue_.end(), [&id](const Message& message) {
      return message.id == id && message.next == 0;
    });
    if (it != queue_.end()) queue_.erase(it);
  }

  bool idle() const {
    link_->mu_.AssertHeld();
    return !writing_ && queue_.empty();
  }
  Clock::time_point last_write() const {
    link_->mu_.AssertHeld();
    return last_write_;
  }
  Clock::time_point last_sign_of_life() const {
    link_->mu_.AssertHeld();
    return last_sign_of_life_;
  }

  // Nothing is written any more; OnDone follows.
  void Break() {
    link_->mu_.AssertHeld();
    if (broken_) return;
    broken_ = true;
    queue_.clear();
    context_.TryCancel();
    RemoveHold();
  }

  // Said by OnDone instead of gRPC's status.
  void set_reason(absl::Status reason) {
    link_->mu_.AssertHeld();
    if (reason_.ok()) reason_ = std::move(reason);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(link_->mu_);
    writing_ = false;
    last_write_ = Clock::now();
    if (written_payload_bytes_ > 0) last_sign_of_life_ = last_write_;
    write_buffer_.Clear();
    if (ok && !broken_) WriteNext();
  }

  void OnReadDone(bool ok) override {
    absl::Status status = ok ? link_->OnFrame(this, read_buffer_, &assembler_)
                             : absl::UnavailableError("the stream has ended");
    read_buffer_.Clear();
    MutexLock lock(link_->mu_);
    if (!status.ok()) {
      if (link_->stream_ == this) {
        link_->stream_ = nullptr;
        if (ok) link_->LeaveConnection();
      }
      if (ok) set_reason(std::move(status));
      Break();
      return;
    }
    last_sign_of_life_ = Clock::now();
    if (!broken_) StartRead(&read_buffer_);
  }

  void OnDone(const grpc::Status& status) override {
    GrpcExpertLink::Impl* const link = link_;
    absl::Status why = FromGrpc(status);
    {
      MutexLock lock(link_->mu_);
      if (!reason_.ok()) why = reason_;
    }
    link->OnStreamDone(this, why);
    delete this;
    link->OnStreamGone();
  }

 private:
  struct Message {
    DispatchId id;
    std::vector<EncodedFrame> frames;
    size_t next = 0;  // frame to be written
  };

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_->mu_) {
    if (writing_ || broken_ || queue_.empty()) return;
    Message& message = queue_.front();
    EncodedFrame& frame = message.frames[message.next++];
    link_->frames_.AddSent(frame);
    written_payload_bytes_ = frame.payload_bytes;
    write_buffer_.Swap(&frame.buffer);
    if (message.next == message.frames.size()) queue_.pop_front();
    writing_ = true;
    StartWrite(&write_buffer_);
  }

  GrpcExpertLink::Impl* const link_;
  grpc::ClientContext context_;
  grpc::ByteBuffer read_buffer_;
  ExpertMessageAssembler assembler_;  // of the reading reaction

  std::deque<Message> queue_ ABSL_GUARDED_BY(link_->mu_);
  grpc::ByteBuffer write_buffer_ ABSL_GUARDED_BY(link_->mu_);
  size_t written_payload_bytes_ ABSL_GUARDED_BY(link_->mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(link_->mu_) = false;
  bool broken_ ABSL_GUARDED_BY(link_->mu_) = false;
  absl::Status reason_ ABSL_GUARDED_BY(link_->mu_);
  Clock::time_point last_write_ ABSL_GUARDED_BY(link_->mu_) = Clock::now();
  Clock::time_point last_sign_of_life_ ABSL_GUARDED_BY(link_->mu_) = Clock::now();
};

// ---- sending ------------------------------------------------------------------------------------

void GrpcExpertLink::Impl::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  absl::Status status;
  if (request->time_left <= absl::ZeroDuration()) {
    status = absl::DeadlineExceededError("no time was left to send the request");
  } else if (absl::StatusOr<std::vector<EncodedFrame>> frames = EncodeRequest(request);
             frames.ok()) {
    status = Enqueue(request, &done, *std::move(frames));
  } else {
    status = frames.status();
  }
  if (!status.ok()) done({std::move(status), {}, nullptr});
}

// Takes `done` over unless it fails.
absl::Status GrpcExpertLink::Impl::Enqueue(const std::shared_ptr<const ExpertRequest>& request,
                                           Done* done, std::vector<EncodedFrame> frames) {
  const int64_t bytes = RequestPayloadBytes(*request);
  const auto deadline = After(Clock::now(), request->time_left);
  bool wake = false;
  {
    MutexLock lock(mu_);
    if (closing_) return absl::UnavailableError("the link is closed");
    if (outstanding_bytes_ + bytes > options_.max_outstanding_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(outstanding_bytes_, " bytes are outstanding at ", peer_.address, ", and ",
                       bytes, " more would be over the limit of ", options_.max_outstanding_bytes));
    }
    if (outstanding_.contains(request->id)) {
      return absl::InvalidArgumentError("a request with the same id is outstanding");
    }
    if (stream_ == nullptr) {
      OpenStream();
      wake = true;
    }
    outstanding_.emplace(request->id,
                         Outstanding{request, std::move(*done), stream_, deadline, bytes});
    outstanding_bytes_ += bytes;
    ++requests_total_;
    stream_->Write(request->id, std::move(frames));
    wake = wake || deadline < next_tick_;
    next_tick_ = std::min(next_tick_, deadline);
  }
  if (wake) timer_->Wake();
  return absl::OkStatus();
}

void GrpcExpertLink::Impl::OpenStream() {
  ++streams_total_;
  ++streams_live_;
  if (peer_.trust != nullptr && peer_.trust->version() != trust_version_) LeaveConnection();
  stream_ = new Stream(this, channel_);
}

void GrpcExpertLink::Impl::CloseStream() {
  if (stream_ == nullptr) return;
  stream_->Break();
  stream_ = nullptr;
}

void GrpcExpertLink::Impl::LeaveConnection() {
  if (peer_.trust != nullptr) trust_version_ = peer_.trust->version();
  left_channels_.push_back(std::exchange(channel_, CreatePeerChannel(peer_)));
}

DueAnswer GrpcExpertLink::Impl::Finish(absl::flat_hash_map<DispatchId, Outstanding>::iterator it,
                                       ExpertReply reply) {
  DueAnswer due{std::move(it->second.done), std::move(reply)};
  outstanding_bytes_ -= it->second.bytes;
  outstanding_.erase(it);
  return due;
}

// ---- receiving ----------------------------------------------------------------------------------

// An error means that the peer does not speak the protocol: the stream is of no use any more.
absl::Status GrpcExpertLink::Impl::OnFrame(Stream* stream, const grpc::ByteBuffer& buffer,
                                           ExpertMessageAssembler* assembler) {
  absl::StatusOr<DecodedFrame> frame = DecodeFrame(buffer);
  if (!frame.ok()) return frame.status();
  frames_.AddReceived(*frame);
  if (frame->header.kind() == v1::EXPERT_FRAME_KIND_KEEPALIVE) return absl::OkStatus();
  std::optional<DueAnswer> due = OnReply(stream, *frame, assembler);
  if (due.has_value()) due->done(std::move(due->reply));
  return absl::OkStatus();
}

std::optional<DueAnswer> GrpcExpertLink::Impl::OnReply(Stream* stream, const DecodedFrame& frame,
                                                       ExpertMessageAssembler* assembler) {
  const DispatchId id = IdOf(frame.header);
  std::shared_ptr<const ExpertRequest> request;
  {
    MutexLock lock(mu_);
    const auto it = outstanding_.find(id);
    if (it == outstanding_.end() || it->second.stream != stream) {
      if (frame.header.payload_offset() == 0) ++late_replies_total_;
    } else {
      request = it->second.request;
    }
  }
  if (request == nullptr) {
    assembler->Drop(id);
    return std::nullopt;
  }
  ExpertReply reply;
  if (!frame.intact) {
    reply.status = absl::DataLossError("a reply does not match its checksum");
  } else {
    reply.status = CheckReplyHeader(frame.header, *request);
  }
  if (reply.status.ok()) {
    absl::StatusOr<std::optional<ExpertMessage>> message = assembler->Add(frame);
    if (message.ok() && !message->has_value()) return std::nullopt;
    reply = message.ok()
                ? DecodeReply(**message)
                : ExpertReply{absl::DataLossError(message.status().message()), {}, nullptr};
  } else {
    assembler->Drop(id);
  }
  MutexLock lock(mu_);
  const auto it = outstanding_.find(id);
  if (it == outstanding_.end()) {
    ++late_replies_total_;
    return std::nullopt;
  }
  stream->Unqueue(id);  // an early refusal may overtake the request's own frames
  return Finish(it, std::move(reply));
}

void GrpcExpertLink::Impl::OnStreamDone(Stream* stream, const absl::Status& why) {
  std::vector<DueAnswer> due;
  {
    MutexLock lock(mu_);
    const absl::Status status = absl::UnavailableError(
        closing_ ? "the link was closed"
                 : absl::StrCat("the connection to ", peer_.address, " broke: ", why.ToString()));
    for (auto it = outstanding_.begin(); it != outstanding_.end();) {
      const auto next = std::next(it);
      if (it->second.stream == stream) due.push_back(Finish(it, {status, {}, nullptr}));
      it = next;
    }
  }
  Answer(std::move(due));
}

void GrpcExpertLink::Impl::OnStreamGone() {
  MutexLock lock(mu_);
  --streams_live_;
  gone_.NotifyAll();
}

// ---- time ---------------------------------------------------------------------------------------

void GrpcExpertLink::Impl::CollectExpired(Clock::time_point now, std::vector<DueAnswer>* due) {
  for (auto it = outstanding_.begin(); it != outstanding_.end();) {
    const auto next = std::next(it);
    if (it->second.deadline <= now) {
      ++timeouts_total_;
      if (it->second.stream == stream_ && stream_ != nullptr) stream_->Unqueue(it->first);
      due->push_back(Finish(
          it, {absl::DeadlineExceededError(absl::StrCat(peer_.address, " did not answer in time")),
               {},
               nullptr}));
    } else {
      next_tick_ = std::min(next_tick_, it->second.deadline);
    }
    it = next;
  }
}

Clock::time_point GrpcExpertLink::Impl::Tick() {
  std::vector<DueAnswer> due;
  std::vector<std::shared_ptr<grpc::Channel>> unused;  // let go of without the lock
  Clock::time_point next;
  {
    MutexLock lock(mu_);
    const auto in_use = std::partition(left_channels_.begin(), left_channels_.end(),
                                       [](const auto& channel) { return channel.use_count() > 1; });
    unused.assign(std::make_move_iterator(in_use), std::make_move_iterator(left_channels_.end()));
    left_channels_.erase(in_use, left_channels_.end());
    const Clock::time_point now = Clock::now();
    next_tick_ = now + std::chrono::hours(1);
    CollectExpired(now, &due);
    if (stream_ != nullptr) {
      const auto silence_limit = absl::ToChronoNanoseconds(options_.silence_limit);
      const auto keepalive = absl::ToChronoNanoseconds(options_.keepalive_interval);
      if (now - stream_->last_sign_of_life() >= silence_limit) {
        stream_->set_reason(absl::UnavailableError(
            absl::StrCat("it said nothing for ", absl::FormatDuration(options_.silence_limit))));
        CloseStream();
        LeaveConnection();
      } else {
        if (stream_->idle() && now - stream_->last_write() >= keepalive) stream_->WriteKeepalive();
        const auto quiet_since = stream_->idle() ? stream_->last_write() : now;
        next_tick_ = std::min(next_tick_, quiet_since + keepalive);
      }
    }
    next = next_tick_;
  }
  Answer(std::move(due));
  return next;
}

// ---- life ---------------------------------------------------------------------------------------

GrpcExpertLink::Impl::~Impl() {
  {
    MutexLock lock(mu_);
    closing_ = true;
    CloseStream();
    gone_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return streams_live_ == 0; });
  }
  timer_.reset();
}

CounterSnapshot GrpcExpertLink::Impl::Counters() const {
  CounterSnapshot snapshot;
  {
    MutexLock lock(mu_);
    snapshot = {{"requests_total", requests_total_},
                {"requests_live", static_cast<int64_t>(outstanding_.size())},
                {"outstanding_bytes", outstanding_bytes_},
                {"streams_total", streams_total_},
                {"late_replies_total", late_replies_total_},
                {"timeouts_total", timeouts_total_}};
  }
  frames_.AppendTo(&snapshot);
  return snapshot;
}

GrpcExpertLink::GrpcExpertLink(GrpcPeer peer, GrpcExpertLinkOptions options)
    : impl_(std::make_unique<Impl>(std::move(peer), options)) {}
GrpcExpertLink::~GrpcExpertLink() = default;

void GrpcExpertLink::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  impl_->Send(std::move(request), std::move(done));
}

CounterSnapshot GrpcExpertLink::Counters() const { return impl_->Counters(); }

}  // namespace tandem
