#include "common/transport/shm_expert_service.h"

#include <poll.h>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "common/status.h"
#include "common/transport/expert_frame.h"
#include "common/transport/local_socket.h"
#include "common/transport/shared_memory.h"
#include "common/transport/shm_expert_protocol.h"
#include "spdlog/spdlog.h"

namespace tandem {

class ShmExpertService::Impl {
 public:
  Impl(LocalSocket listener, ExpertLink* engine)
      : engine_(engine), listener_(std::move(listener)), thread_([this] { Run(); }) {}
  ~Impl();
  CounterSnapshot Counters() const;

 private:
  friend class ShmExpertService::Session;
  static constexpr size_t kMaxSessions = 256;
  static constexpr int kPauseMs = 1000;  // before another try to accept

  void Run();
  // False: there are no descriptors for more connections.
  bool AcceptOne(std::vector<std::shared_ptr<Session>>* sessions);
  void CountSessions(int change) {
    MutexLock lock(mutex_);
    sessions_ += change;
    changed_.NotifyAll();
  }

  ExpertLink* const engine_;
  const LocalSocket listener_;
  std::atomic<bool> ending_ = false;
  std::atomic<int64_t> sessions_live_ = 0;
  std::atomic<int64_t> sessions_total_ = 0;
  std::atomic<int64_t> requests_total_ = 0;
  std::atomic<int64_t> refused_total_ = 0;
  std::atomic<int64_t> replies_dropped_total_ = 0;

  Mutex mutex_;
  CondVar changed_;
  int sessions_ ABSL_GUARDED_BY(mutex_) = 0;  // objects, which may outlive their connections

  std::thread thread_;
};

// One connection. Owned by the thread that serves it, and by every request that the engine has not
// answered.
class ShmExpertService::Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Impl* service, LocalSocket socket) : service_(service), socket_(std::move(socket)) {
    service_->CountSessions(+1);
  }
  ~Session() { service_->CountSessions(-1); }

  int fd() const { return socket_.fd(); }

  // Takes one message, which must be there. An error ends the connection; what concerns one request
  // only is answered as its reply.
  absl::Status OnReadable() {
    TANDEM_ASSIGN_OR_RETURN(LocalMessage message, socket_.Receive());
    if (memory_ == nullptr) return OnHello(std::move(message));
    v1::ExpertFrameHeader header;
    if (!header.ParseFromString(message.bytes)) {
      return absl::InvalidArgumentError("a message cannot be decoded");
    }
    const absl::Status status = OnRequest(header);
    if (!status.ok()) {
      ++service_->refused_total_;
      Reply(ReplyHeader(IdOf(header), {status, {}, nullptr}));
    }
    return absl::OkStatus();
  }

  void End() { socket_.Shutdown(); }

 private:
  absl::Status OnHello(LocalMessage message) {
    if (message.bytes != kShmHello || !message.file.valid()) {
      return absl::InvalidArgumentError("the first message is not one of this version");
    }
    TANDEM_ASSIGN_OR_RETURN(memory_, SharedMemory::Open(std::move(message.file)));
    return absl::OkStatus();
  }

  // The bytes of the memory from `offset` on, if there are so many.
  absl::StatusOr<std::shared_ptr<std::byte>> Range(uint64_t offset, uint64_t bytes) const {
    if (offset > memory_->bytes() || bytes > memory_->bytes() - offset) {
      return absl::InvalidArgumentError("a request lies outside of the shared memory");
    }
    return std::shared_ptr<std::byte>(memory_, memory_->data() + offset);
  }

  absl::Status OnRequest(const v1::ExpertFrameHeader& header) {
    TANDEM_RETURN_IF_ERROR(CheckRequestHeader(header));
    const uint64_t offset = header.payload_offset();
    const uint64_t request_bytes = header.payload_total();
    if (offset % SharedBlocks::kAlign != 0) {
      return absl::InvalidArgumentError("a request is not aligned in the shared memory");
    }
    TANDEM_ASSIGN_OR_RETURN(auto payload, Range(offset, request_bytes));
    TANDEM_ASSIGN_OR_RETURN(auto request, DecodeRequest({header, payload, request_bytes}));
    const uint64_t reply_bytes = ShmReplyBytes(*request);
    TANDEM_ASSIGN_OR_RETURN(auto rows, Range(offset + ShmReplyOffset(request_bytes), reply_bytes));
    // An honest client's requests lie beside each other.
    const uint64_t bytes = request_bytes + reply_bytes;
    if (outstanding_bytes_ + bytes > memory_->bytes()) {
      return absl::ResourceExhaustedError(
          "more is outstanding than the shared memory has room for");
    }
    outstanding_bytes_ += bytes;
    ++service_->requests_total_;
    service_->engine_->Send(request, [self = shared_from_this(), request, rows = std::move(rows),
                                      bytes](ExpertReply reply) {
      self->outstanding_bytes_ -= bytes;
      self->Answer(*request, rows.get(), std::move(reply));
    });
    return absl::OkStatus();
  }

  // From any thread.
  void Answer(const ExpertRequest& request, std::byte* rows, ExpertReply reply) {
    if (reply.status.ok() && reply.rows.bytes() != ShmReplyBytes(request)) {
      reply.status = absl::InternalError("the engine's rows do not answer the request");
    }
    v1::ExpertFrameHeader header = ReplyHeader(request.id, reply);
    if (reply.status.ok()) {
      CopyRows(reply.rows, rows);
      header.set_payload_total(reply.rows.bytes());
    }
    Reply(header);
  }

  void Reply(const v1::ExpertFrameHeader& header) {
    if (socket_.Send(header.SerializeAsString()).ok()) return;
    ++service_->replies_dropped_total_;
    End();  // its client has gone, or does not read
  }

  Impl* const service_;
  const LocalSocket socket_;
  std::shared_ptr<SharedMemory> memory_;  // of the serving thread; null until the hello
  std::atomic<uint64_t> outstanding_bytes_ = 0;
};

void ShmExpertService::Impl::Run() {
  std::vector<std::shared_ptr<Session>> sessions;
  std::vector<pollfd> ready;
  bool accepting = true;
  while (!ending_) {
    ready.clear();
    for (const auto& session : sessions) ready.push_back({session->fd(), POLLIN, 0});
    ready.push_back({accepting ? listener_.fd() : -1, POLLIN, 0});
    if (poll(ready.data(), ready.size(), accepting ? -1 : kPauseMs) < 0) continue;
    size_t kept = 0;
    for (size_t i = 0; i < sessions.size(); ++i) {
      const absl::Status status =
          ready[i].revents == 0 ? absl::OkStatus() : sessions[i]->OnReadable();
      if (status.ok()) {
        std::swap(sessions[kept++], sessions[i]);
        continue;
      }
      if (!absl::IsUnavailable(status)) {
        ++refused_total_;
        spdlog::warn("a connection through shared memory ends: {}", std::string(status.message()));
      }
      sessions[i]->End();
    }
    sessions.resize(kept);
    accepting = ready.back().revents == 0 || ending_ || AcceptOne(&sessions);
    sessions_live_ = static_cast<int64_t>(sessions.size());
  }
  for (const auto& session : sessions) session->End();
  sessions_live_ = 0;
}

bool ShmExpertService::Impl::AcceptOne(std::vector<std::shared_ptr<Session>>* sessions) {
  absl::StatusOr<LocalSocket> socket = listener_.Accept();
  if (!socket.ok()) {
    if (!absl::IsUnavailable(socket.status())) {
      spdlog::warn("shared memory: {}", std::string(socket.status().message()));
    }
    return !absl::IsResourceExhausted(socket.status());
  }
  if (sessions->size() >= kMaxSessions) return true;  // closed: its client goes on by gRPC
  ++sessions_total_;
  sessions->push_back(std::make_shared<Session>(this, *std::move(socket)));
  return true;
}

ShmExpertService::Impl::~Impl() {
  ending_ = true;
  listener_.Shutdown();  // wakes the thread
  thread_.join();
  MutexLock lock(mutex_);
  changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return sessions_ == 0; });
}

CounterSnapshot ShmExpertService::Impl::Counters() const {
  return {{"shm_sessions_live", sessions_live_.load()},
          {"shm_sessions_total", sessions_total_.load()},
          {"shm_requests_total", requests_total_.load()},
          {"shm_refused_total", refused_total_.load()},
          {"shm_replies_dropped_total", replies_dropped_total_.load()}};
}

absl::StatusOr<std::unique_ptr<ShmExpertService>> ShmExpertService::Start(uint64_t incarnation,
                                                                          ExpertLink* engine) {
  TANDEM_ASSIGN_OR_RETURN(LocalSocket listener, LocalSocket::Listen(ShmSocketName(incarnation)));
  return std::unique_ptr<ShmExpertService>(
      new ShmExpertService(std::make_unique<Impl>(std::move(listener), engine)));
}

ShmExpertService::ShmExpertService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ShmExpertService::~ShmExpertService() = default;
CounterSnapshot ShmExpertService::Counters() const { return impl_->Counters(); }

}  // namespace tandem
