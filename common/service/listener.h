// Listening sockets whose connections are handed to gRPC. gRPC's own listener never accepts again
// once the process has run out of descriptors (seen in 1.51); this one goes on.
#ifndef TANDEM_COMMON_SERVICE_LISTENER_H_
#define TANDEM_COMMON_SERVICE_LISTENER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem {

class Listener {
 public:
  // Listens on all addresses of `host` (a name, an IPv4 address, or an IPv6 address in brackets),
  // at one port; 0 takes a free one. "[::]" takes IPv4 connections as well.
  //   UNAVAILABLE  the host is not known, or the address cannot be bound
  static absl::StatusOr<std::unique_ptr<Listener>> Open(const std::string& host, int port);
  ~Listener();

  int port() const { return port_; }

  // Accepts, on a thread of its own, until Stop; `take` owns each connection's descriptor. The last
  // descriptors of the process are kept for its files and its own connections: a connection that
  // would take one of them is closed, which clients see as UNAVAILABLE.
  void Start(std::function<void(int descriptor)> take);
  // No more is accepted, and the sockets are closed. Idempotent.
  void Stop();

  // Connections that were closed for want of descriptors.
  int64_t refused() const { return refused_; }

 private:
  Listener() = default;
  void Run(const std::function<void(int)>& take);
  void AcceptAll(int socket, const std::function<void(int)>& take);

  std::vector<int> sockets_;
  int port_ = 0;
  int stop_event_ = -1;
  int last_usable_ = 0;  // highest descriptor that a connection may have
  std::atomic<int64_t> refused_ = 0;
  std::thread thread_;
};

// Connects to who listens there, so that its thread wakes, and hangs up. Never waits.
void KnockAt(const std::string& host, int port);

// Lets the process open as many files as its hard limit allows; the soft limit is often 1024, and
// every connection takes one.
void RaiseDescriptorLimit();

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_LISTENER_H_
