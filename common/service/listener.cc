#include "common/service/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr int kReservedDescriptors = 64;  // or a quarter of all, if that is less
constexpr int kPauseMs = 20;

std::string WithoutBrackets(const std::string& host) {
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  return bracketed ? host.substr(1, host.size() - 2) : host;
}

// A listening socket at `address`, whose port is set to `*port` and written back to it; or,
// negative, the error's number.
int Bind(const addrinfo& address, int* port) {
  const int descriptor =
      socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  if (descriptor < 0) return -errno;
  auto closing = absl::MakeCleanup([descriptor] { close(descriptor); });
  const int on = 1, off = 0;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_storage name{};
  std::copy_n(reinterpret_cast<const char*>(address.ai_addr), address.ai_addrlen,
              reinterpret_cast<char*>(&name));
  in_port_t* port_field = &reinterpret_cast<sockaddr_in*>(&name)->sin_port;
  if (address.ai_family == AF_INET6) {
    setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    port_field = &reinterpret_cast<sockaddr_in6*>(&name)->sin6_port;
  }
  *port_field = htons(static_cast<uint16_t>(*port));
  socklen_t length = address.ai_addrlen;
  if (bind(descriptor, reinterpret_cast<sockaddr*>(&name), length) != 0 ||
      listen(descriptor, SOMAXCONN) != 0 ||
      getsockname(descriptor, reinterpret_cast<sockaddr*>(&name), &length) != 0) {
    return -errno;
  }
  *port = ntohs(*port_field);
  std::move(closing).Cancel();
  return descriptor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Open(const std::string& host, int port) {
  const auto failed = [&](absl::string_view why) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", host, ":", port, ": ", why));
  };
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* addresses = nullptr;
  if (const int error = getaddrinfo(WithoutBrackets(host).c_str(), "0", &hints, &addresses);
      error != 0) {
    return failed(gai_strerror(error));
  }
  const auto freeing = absl::MakeCleanup([addresses] { freeaddrinfo(addresses); });
  std::unique_ptr<Listener> listener(new Listener);
  listener->port_ = port;
  int error = 0;
  for (const addrinfo* address = addresses; address != nullptr; address = address->ai_next) {
    const int bound = Bind(*address, &listener->port_);
    if (bound >= 0) {
      listener->sockets_.push_back(bound);
    } else if (error == 0 || bound == -EADDRINUSE) {
      error = -bound;
    }
  }
  // A name may have addresses that this machine has not: those of IPv6, for one. But two servers
  // must never share a port.
  if (listener->sockets_.empty() || error == EADDRINUSE) {
    return failed(std::generic_category().message(error));
  }
  listener->stop_event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (listener->stop_event_ < 0) return failed("no descriptors are left");
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const int64_t all = std::min<int64_t>(static_cast<int64_t>(limit.rlim_cur), 1 << 30);
  listener->last_usable_ =
      static_cast<int>(all - std::min<int64_t>(kReservedDescriptors, all / 4) - 1);
  return listener;
}

Listener::~Listener() {
  Stop();
  if (stop_event_ >= 0) close(stop_event_);
}

void Listener::Start(std::function<void(int descriptor)> take) {
  TANDEM_CHECK(!thread_.joinable());
  thread_ = std::thread([this, take = std::move(take)] { Run(take); });
}

void Listener::Stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    TANDEM_CHECK(write(stop_event_, &one, sizeof(one)) == sizeof(one));
    thread_.join();
  }
  for (const int socket : sockets_) close(socket);
  sockets_.clear();
}

void Listener::Run(const std::function<void(int)>& take) {
  std::vector<pollfd> waits = {{stop_event_, POLLIN, 0}};
  for (const int socket : sockets_) waits.push_back({socket, POLLIN, 0});
  while (true) {
    poll(waits.data(), waits.size(), -1);
    if (waits[0].revents != 0) return;
    for (size_t i = 1; i < waits.size(); ++i) {
      if (waits[i].revents != 0) AcceptAll(waits[i].fd, take);
    }
  }
}

// Until nobody waits, or until it fails: who waits then is accepted later.
void Listener::AcceptAll(int socket, const std::function<void(int)>& take) {
  while (true) {
    const int descriptor = accept4(socket, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (descriptor < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno != EAGAIN) poll(nullptr, 0, kPauseMs);  // EMFILE, ENOMEM and other passing troubles
      return;
    }
    // The system gives the lowest descriptor that is free.
    if (descriptor > last_usable_) {
      close(descriptor);
      if (refused_.fetch_add(1) == 0) {
        spdlog::warn("a connection was closed: {} descriptors are in use (ulimit -n)", descriptor);
      }
      continue;
    }
    const int on = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    take(descriptor);
  }
}

void KnockAt(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* addresses = nullptr;
  const std::string service = absl::StrCat(port);
  if (getaddrinfo(WithoutBrackets(host).c_str(), service.c_str(), &hints, &addresses) != 0) return;
  for (const addrinfo* address = addresses; address != nullptr; address = address->ai_next) {
    const int descriptor =
        socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (descriptor < 0) continue;
    static_cast<void>(connect(descriptor, address->ai_addr, address->ai_addrlen));
    close(descriptor);
  }
  freeaddrinfo(addresses);
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace tandem
