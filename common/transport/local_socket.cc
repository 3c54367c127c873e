#include "common/transport/local_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr int kBacklog = 64;

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::generic_category().message(errno)));
}

struct Address {
  sockaddr_un data = {};
  socklen_t bytes = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&data); }
};

absl::StatusOr<Address> AbstractAddress(const std::string& name) {
  Address address;
  if (name.size() + 1 > sizeof(address.data.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the socket's name ", name, " is too long"));
  }
  address.data.sun_family = AF_UNIX;
  std::memcpy(address.data.sun_path + 1, name.data(), name.size());  // a zero first: abstract
  address.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

absl::StatusOr<Descriptor> NewSocket() {
  Descriptor fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return SystemError("no Unix socket");
  return fd;
}

absl::Status CheckSameUser(int fd) {
  ucred peer = {};
  socklen_t bytes = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return SystemError("no peer");
  if (peer.uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("user ", peer.uid, " is at the other end of the socket"));
  }
  return absl::OkStatus();
}

}  // namespace

Descriptor::~Descriptor() {
  if (valid()) close(fd_);
}

absl::StatusOr<LocalSocket> LocalSocket::Connect(const std::string& name) {
  TANDEM_ASSIGN_OR_RETURN(const Address address, AbstractAddress(name));
  TANDEM_ASSIGN_OR_RETURN(Descriptor fd, NewSocket());
  if (connect(fd.get(), address.get(), address.bytes) != 0) {
    return SystemError("nobody listens on this machine");
  }
  TANDEM_RETURN_IF_ERROR(CheckSameUser(fd.get()));
  if (fcntl(fd.get(), F_SETFL, 0) != 0) return SystemError("cannot wait at a socket");
  return LocalSocket(std::move(fd));
}

absl::StatusOr<LocalSocket> LocalSocket::Listen(const std::string& name) {
  TANDEM_ASSIGN_OR_RETURN(const Address address, AbstractAddress(name));
  TANDEM_ASSIGN_OR_RETURN(Descriptor fd, NewSocket());
  if (bind(fd.get(), address.get(), address.bytes) != 0 || listen(fd.get(), kBacklog) != 0) {
    return SystemError(absl::StrCat("cannot listen as ", name));
  }
  return LocalSocket(std::move(fd));
}

absl::StatusOr<LocalSocket> LocalSocket::Accept() const {
  Descriptor fd(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) {
    if (errno == EMFILE || errno == ENFILE) {
      return absl::ResourceExhaustedError("no descriptor is left for a connection");
    }
    return SystemError("no connection");
  }
  TANDEM_RETURN_IF_ERROR(CheckSameUser(fd.get()));
  return LocalSocket(std::move(fd));
}

absl::Status LocalSocket::Send(absl::string_view bytes, int file) const {
  iovec part = {const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (file >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &file, sizeof(int));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(bytes.size())) return SystemError("cannot send");
  return absl::OkStatus();
}

absl::StatusOr<LocalMessage> LocalSocket::Receive() const {
  LocalMessage received;
  received.bytes.resize(kMaxMessageBytes);
  iovec part = {received.bytes.data(), received.bytes.size()};
  msghdr message = {};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_LEN(sizeof(int));  // room for one file, no more
  ssize_t bytes = 0;
  do {
    bytes = recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
  } while (bytes < 0 && errno == EINTR);
  if (bytes < 0) return SystemError("cannot receive");
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof(int))) {
    int file = -1;
    std::memcpy(&file, CMSG_DATA(header), sizeof(int));
    received.file = Descriptor(file);
  }
  if (bytes == 0) return absl::UnavailableError("the other side has gone");
  if ((message.msg_flags & MSG_TRUNC) != 0) return absl::InvalidArgumentError("a message too long");
  received.bytes.resize(static_cast<size_t>(bytes));
  return received;
}

void LocalSocket::Shutdown() const { shutdown(fd_.get(), SHUT_RDWR); }

}  // namespace tandem
