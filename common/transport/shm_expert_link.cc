#include "common/transport/shm_expert_link.h"

#include <algorithm>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/time_after.h"
#include "common/transport/expert_frame.h"
#include "common/transport/local_socket.h"
#include "common/transport/shared_memory.h"
#include "common/transport/shm_expert_protocol.h"
#include "common/transport/timer_thread.h"

namespace tandem {
namespace {
using Clock = TimerThread::Clock;
}  // namespace

class ShmExpertLink::Impl {
 public:
  Impl(LocalSocket socket, std::shared_ptr<const SharedMemory> memory)
      : socket_(std::move(socket)),
        memory_(std::move(memory)),
        blocks_(memory_),
        timer_(std::make_unique<TimerThread>([this] { return Tick(); })),
        receiver_([this] { Receive(); }) {}
  ~Impl();

  absl::Status TrySend(std::shared_ptr<const ExpertRequest> request, Done* done);
  bool broken() const {
    MutexLock lock(mutex_);
    return broken_;
  }
  CounterSnapshot Counters() const;

 private:
  struct Outstanding {
    std::shared_ptr<const ExpertRequest> request;
    Done done;                         // null once the time is up: its reply is late
    std::shared_ptr<std::byte> block;  // the request's payload, then the reply's rows
    Clock::time_point deadline;
  };

  void Receive();
  absl::Status OnMessage(const LocalMessage& message);
  void Break(const absl::Status& why);
  Clock::time_point Tick();

  const LocalSocket socket_;
  const std::shared_ptr<const SharedMemory> memory_;
  SharedBlocks blocks_;

  mutable Mutex mutex_;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<DispatchId, Outstanding> outstanding_ ABSL_GUARDED_BY(mutex_);
  Clock::time_point next_tick_ ABSL_GUARDED_BY(mutex_) = Clock::time_point::max();
  int64_t requests_total_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t late_replies_total_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t timeouts_total_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t header_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t payload_bytes_ ABSL_GUARDED_BY(mutex_) = 0;

  // Their threads use the rest.
  std::unique_ptr<TimerThread> timer_;
  std::thread receiver_;
};

// ---- sending ------------------------------------------------------------------------------------

absl::Status ShmExpertLink::Impl::TrySend(std::shared_ptr<const ExpertRequest> request,
                                          Done* done) {
  if (request->time_left <= absl::ZeroDuration()) {
    return absl::DeadlineExceededError("no time was left to send the request");
  }
  if (broken()) return absl::UnavailableError("the connection has broken");
  const auto deadline = After(Clock::now(), request->time_left);
  const auto payload_bytes = static_cast<uint64_t>(RequestPayloadBytes(*request));
  const uint64_t block_bytes = ShmReplyOffset(payload_bytes) + ShmReplyBytes(*request);
  std::shared_ptr<std::byte> block = blocks_.Take(block_bytes);
  if (block == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat(blocks_.bytes_in_use(), " bytes are outstanding, and ", block_bytes,
                     " more do not fit into the ", memory_->bytes(), " of the shared memory"));
  }
  CopyRequestPayload(*request, block.get());
  v1::ExpertFrameHeader header = RequestHeader(*request);
  header.set_payload_offset(static_cast<uint64_t>(block.get() - memory_->data()));
  header.set_payload_total(payload_bytes);
  const std::string message = header.SerializeAsString();

  bool wake = false;
  {
    MutexLock lock(mutex_);
    if (broken_) return absl::UnavailableError("the connection has broken");
    if (outstanding_.contains(request->id)) {
      return absl::InvalidArgumentError("a request with the same id is outstanding");
    }
    TANDEM_RETURN_IF_ERROR(socket_.Send(message));  // the reply waits for the lock
    const DispatchId id = request->id;
    outstanding_.emplace(
        id, Outstanding{std::move(request), std::move(*done), std::move(block), deadline});
    ++requests_total_;
    header_bytes_ += static_cast<int64_t>(message.size());
    payload_bytes_ += static_cast<int64_t>(payload_bytes);
    wake = deadline < next_tick_;
    next_tick_ = std::min(next_tick_, deadline);
  }
  if (wake) timer_->Wake();
  return absl::OkStatus();
}

// ---- receiving ----------------------------------------------------------------------------------

void ShmExpertLink::Impl::Receive() {
  while (true) {
    const absl::StatusOr<LocalMessage> message = socket_.Receive();
    const absl::Status status = message.ok() ? OnMessage(*message) : message.status();
    if (!status.ok()) return Break(status);
  }
}

// An error means that the peer does not speak the protocol.
absl::Status ShmExpertLink::Impl::OnMessage(const LocalMessage& message) {
  v1::ExpertFrameHeader header;
  if (!header.ParseFromString(message.bytes)) {
    return absl::InvalidArgumentError("a message cannot be decoded");
  }
  Outstanding answered;
  {
    MutexLock lock(mutex_);
    const auto it = outstanding_.find(IdOf(header));
    if (it == outstanding_.end()) return absl::InvalidArgumentError("a reply to no request came");
    answered = std::move(it->second);
    outstanding_.erase(it);
    if (answered.done == nullptr) {
      ++late_replies_total_;
      return absl::OkStatus();
    }
  }
  ExpertReply reply;
  reply.status = CheckReplyHeader(header, *answered.request);
  if (reply.status.ok()) {
    std::byte* const rows =
        answered.block.get() +
        ShmReplyOffset(static_cast<uint64_t>(RequestPayloadBytes(*answered.request)));
    reply = DecodeReply({header, {answered.block, rows}, header.payload_total()});
  }
  answered.block.reset();
  answered.done(std::move(reply));
  return absl::OkStatus();
}

void ShmExpertLink::Impl::Break(const absl::Status& why) {
  absl::flat_hash_map<DispatchId, Outstanding> lost;
  std::string reason;  // a text: each answer gets a status of its own, for a thread of its own
  {
    MutexLock lock(mutex_);
    broken_ = true;
    lost.swap(outstanding_);
    reason = closing_ ? "the link was closed"
                      : absl::StrCat("the connection through shared memory broke: ", why.message());
  }
  socket_.Shutdown();
  for (auto& [id, request] : lost) {
    if (request.done != nullptr) request.done({absl::UnavailableError(reason), {}, nullptr});
  }
}

// ---- time ---------------------------------------------------------------------------------------

Clock::time_point ShmExpertLink::Impl::Tick() {
  std::vector<Done> due;
  Clock::time_point next;
  {
    MutexLock lock(mutex_);
    const Clock::time_point now = Clock::now();
    next = now + std::chrono::hours(1);
    for (auto& [id, request] : outstanding_) {
      if (request.done == nullptr) continue;
      if (request.deadline <= now) {
        ++timeouts_total_;
        due.push_back(std::exchange(request.done, nullptr));
      } else {
        next = std::min(next, request.deadline);
      }
    }
    next_tick_ = next;
  }
  for (Done& done : due) {
    done({absl::DeadlineExceededError("it did not answer in time"), {}, nullptr});
  }
  return next;
}

// ---- life ---------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<ShmExpertLink>> ShmExpertLink::Dial(uint64_t peer_incarnation,
                                                                   ShmExpertLinkOptions options) {
  TANDEM_ASSIGN_OR_RETURN(LocalSocket socket,
                          LocalSocket::Connect(ShmSocketName(peer_incarnation)));
  TANDEM_ASSIGN_OR_RETURN(auto memory, SharedMemory::Create(options.memory_bytes));
  TANDEM_RETURN_IF_ERROR(socket.Send(kShmHello, memory->fd()));
  return std::unique_ptr<ShmExpertLink>(
      new ShmExpertLink(std::make_unique<Impl>(std::move(socket), std::move(memory))));
}

ShmExpertLink::Impl::~Impl() {
  {
    MutexLock lock(mutex_);
    closing_ = true;
  }
  socket_.Shutdown();
  receiver_.join();
  timer_.reset();
}

CounterSnapshot ShmExpertLink::Impl::Counters() const {
  MutexLock lock(mutex_);
  return {{"requests_total", requests_total_},
          {"requests_live", static_cast<int64_t>(outstanding_.size())},
          {"outstanding_bytes", static_cast<int64_t>(blocks_.bytes_in_use())},
          {"late_replies_total", late_replies_total_},
          {"timeouts_total", timeouts_total_},
          {"header_bytes_sent_total", header_bytes_},
          {"payload_bytes_sent_total", payload_bytes_}};
}

ShmExpertLink::ShmExpertLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ShmExpertLink::~ShmExpertLink() = default;

void ShmExpertLink::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  const absl::Status status = impl_->TrySend(std::move(request), &done);
  if (!status.ok()) done({status, {}, nullptr});
}

absl::Status ShmExpertLink::TrySend(std::shared_ptr<const ExpertRequest> request, Done* done) {
  return impl_->TrySend(std::move(request), done);
}

bool ShmExpertLink::broken() const { return impl_->broken(); }
CounterSnapshot ShmExpertLink::Counters() const { return impl_->Counters(); }

}  // namespace tandem
