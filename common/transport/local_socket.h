// Connections between processes of one machine that carry short messages and a file.
#ifndef TANDEM_COMMON_TRANSPORT_LOCAL_SOCKET_H_
#define TANDEM_COMMON_TRANSPORT_LOCAL_SOCKET_H_

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

// Owns a descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

struct LocalMessage {
  std::string bytes;
  Descriptor file;  // that came with it, if one did
};

// A Unix socket of type SOCK_SEQPACKET: messages arrive whole and in order, and the end of the
// other process, however it comes about, is seen at once. Names are abstract: they are not files,
// exist as long as the socket does, and are seen within one network namespace, so never on another
// machine. Each side refuses processes of other users. What was written to shared memory before
// Send is there for who has received the message. Thread-safe but for Receive.
class LocalSocket {
 public:
  static constexpr size_t kMaxMessageBytes = 4096;

  // UNAVAILABLE if nobody of this user listens under `name` on this machine. Does not block.
  static absl::StatusOr<LocalSocket> Connect(const std::string& name);
  // UNAVAILABLE if the name is taken or there is none to have.
  static absl::StatusOr<LocalSocket> Listen(const std::string& name);

  // Of a listening socket that poll() calls readable. UNAVAILABLE: there is no connection to take;
  // PERMISSION_DENIED: it was another user's; RESOURCE_EXHAUSTED: no descriptor is left.
  absl::StatusOr<LocalSocket> Accept() const;

  // Of a connection. Never blocks: UNAVAILABLE if the other side has gone or does not read.
  absl::Status Send(absl::string_view bytes, int file = -1) const;
  // Waits for a message. UNAVAILABLE: the other side has gone, or Shutdown was called;
  // INVALID_ARGUMENT: it is too long. Messages that were sent before the end come before it.
  absl::StatusOr<LocalMessage> Receive() const;

  // Ends it, for the other side as well, and wakes who waits in Receive or poll().
  void Shutdown() const;
  int fd() const { return fd_.get(); }

 private:
  explicit LocalSocket(Descriptor fd) : fd_(std::move(fd)) {}
  Descriptor fd_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_LOCAL_SOCKET_H_
