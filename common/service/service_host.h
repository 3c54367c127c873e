// What every Tandem server has in common: one gRPC port with health and reflection, one optional
// metrics port, and a clean end on SIGTERM.
#ifndef TANDEM_COMMON_SERVICE_SERVICE_HOST_H_
#define TANDEM_COMMON_SERVICE_SERVICE_HOST_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/command_line.h"
#include "common/counters.h"
#include "common/service/listener.h"
#include "common/service/server_trust.h"

namespace prometheus {
class Collectable;
}  // namespace prometheus

namespace tandem {

struct ListenOptions {
  std::string listen;              // host:port; port 0 takes a free one
  std::string metrics_listen;      // host:port of Prometheus metrics over HTTP; empty: none
  bool insecure_listen = false;    // allow plain text beyond loopback
  std::string health_listen = "";  // host:port of health checks alone, in plain text; empty: none
  std::shared_ptr<const ServerTrust> trust = nullptr;  // of `listen`; null: plain text
  // That `listen` takes. A prompt as long as the real model's context is 20 MB at most.
  int max_message_bytes = 64 << 20;
};

// --listen, --metrics-listen, --health-listen and --insecure-listen.
void AddListenFlags(CommandLine& app, ListenOptions* options);

// INVALID_ARGUMENT unless `address` is host:port, an IPv6 host in brackets; FAILED_PRECONDITION if
// the host is not loopback and `allowed` is false.
absl::Status CheckListenAddress(const std::string& address, bool allowed);

// INVALID_ARGUMENT unless others can dial `address`: host:port, not port 0, and not the host that
// stands for all of a machine's addresses.
absl::Status CheckDialAddress(const std::string& address);

// The name that grpc.health.v1 says SERVING of for as long as the server answers, whether weights
// are still being loaded or not: for who would start again what hangs. Services' own names say
// whether they take requests.
inline constexpr char kAliveHealthName[] = "alive";

// A running gRPC server, and a second one if health checks have a port of their own: Kubernetes'
// probes speak plain text only. It permits keepalive pings at any rate, also without calls, sends
// messages of any size and takes them up to the limit of its options; every service starts
// NOT_SERVING, but for kAliveHealthName.
class ServiceHost {
 public:
  // Starts listening. `services` must outlive the host; they are named in health checks by their
  // full protobuf names (`health_names`).
  //   INVALID_ARGUMENT, FAILED_PRECONDITION  as CheckListenAddress
  //   UNAVAILABLE                            the address cannot be bound
  static absl::StatusOr<std::unique_ptr<ServiceHost>> Start(
      const ListenOptions& options, const std::vector<grpc::Service*>& services,
      const std::vector<std::string>& health_names);
  ~ServiceHost();

  // From any thread.
  void SetServing(bool serving);
  // host:port with the port that was really taken.
  const std::string& address() const { return main_.address; }
  const std::string& health_address() const { return health_.address; }  // empty: none
  // connections_refused_total: for want of descriptors; certificate_seconds_left: until the
  // server's own expires, negative since then, if it has one; and of the process:
  // memory_limit_bytes and memory_available_bytes (within all limits), memory_resident_bytes;
  // unix_time_ms, its clock.
  CounterSnapshot Counters() const;
  // A channel to this server that stays within the process.
  std::shared_ptr<grpc::Channel> InProcessChannel();
  // Takes no new calls, and ends those that still run after `grace`. Idempotent. SetServing has no
  // effect afterwards.
  void Shutdown(absl::Duration grace);

 private:
  // A server with what it listens with.
  struct Port {
    std::unique_ptr<Listener> listener;
    std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
    std::unique_ptr<grpc::Server> server;
    std::string address;
  };

  ServiceHost() = default;
  static absl::StatusOr<Port> Open(const std::string& address,
                                   const std::shared_ptr<const ServerTrust>& trust,
                                   int max_message_bytes,
                                   const std::vector<grpc::Service*>& services);
  static void Accept(Port& port);

  std::shared_ptr<const ServerTrust> trust_;
  Port main_;
  Port health_;  // its server is null: none
  std::vector<std::string> health_names_;
  int64_t memory_limit_bytes_ = 0;
};

// Serves counters as Prometheus metrics, each named `prefix`_name, asked for at every scrape; and
// `others`, under their own names, which must begin with the prefix as well.
class MetricsHost {
 public:
  // Null if the options name no address.
  static absl::StatusOr<std::unique_ptr<MetricsHost>> Start(
      const ListenOptions& options, const std::string& prefix,
      std::function<CounterSnapshot()> snapshot,
      std::vector<std::shared_ptr<prometheus::Collectable>> others = {});
  ~MetricsHost();

 private:
  struct Impl;
  explicit MetricsHost(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// What runs in every main: takes --version, --log-format and --log-level, logs to standard error,
// gives freed memory back to the system, allows as many descriptors as there may be, prints one
// sentence for a bad command line. Returns the exit code to end with, or nothing.
std::optional<int> ParseCommandLine(CommandLine& app, int argc, char** argv);

// What every main ends with: 0, or 1 after logging the error's sentence.
int ExitCode(const absl::Status& status);

// Must be called first in main, before any thread starts: SIGTERM and SIGINT are then only seen by
// WaitForEnd, and writing to a closed pipe is an error rather than a death.
void BlockEndSignals();

// Returns which of SIGTERM and SIGINT has arrived, or 0 when `over()` turns true. One that arrives
// later ends the process at once.
int WaitForEnd(const std::function<bool()>& over);

// A random number that names this process's life.
uint64_t NewIncarnation();

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_SERVICE_HOST_H_
