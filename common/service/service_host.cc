#include "common/service/service_host.h"

#include <arpa/inet.h>
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <malloc.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <future>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/command_line.h"
#include "common/machine.h"
#include "common/service/log_format.h"
#include "common/status.h"
#include "common/version.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// The IPv6 address, maybe with a zone, of a host that is one in brackets.
std::optional<in6_addr> Ipv6InBrackets(const std::string& host) {
  if (host.size() < 2 || host.front() != '[' || host.back() != ']') return std::nullopt;
  const std::string inner = host.substr(1, host.size() - 2);
  in6_addr address{};
  if (inet_pton(AF_INET6, inner.substr(0, inner.find('%')).c_str(), &address) != 1) {
    return std::nullopt;
  }
  return address;
}

// A machine's name, or an IPv4 address.
bool IsName(const std::string& host) {
  return std::all_of(host.begin(), host.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("-._", c);
  });
}

// Splits host:port at the last colon; an IPv6 host keeps its brackets.
absl::StatusOr<std::pair<std::string, int>> SplitAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", address, "\" is not host:port"));
  }
  std::string host = address.substr(0, colon);
  if (IsName(host) || Ipv6InBrackets(host)) return std::make_pair(std::move(host), port);
  if (Ipv6InBrackets(absl::StrCat("[", host, "]"))) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", address, "\": an IPv6 address is written in brackets, as in [",
                     host, "]:", port));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "address \"", address, "\": \"", host, "\" is no host, which is a name, an IPv4 address ",
      "(0.0.0.0 for all of a machine's), or an IPv6 address in brackets ([::] for all)"));
}

bool IsLoopback(const std::string& host) {
  if (host == "localhost") return true;
  if (const auto v6 = Ipv6InBrackets(host)) return IN6_IS_ADDR_LOOPBACK(&*v6);
  // A name may begin with 127. as well.
  return absl::StartsWith(host, "127.") && host.find_first_not_of("0123456789.") == host.npos;
}

// What a stranger can make a server keep, besides messages: calls of one connection, headers of one
// call, connections that do not get past their handshake.
constexpr int kMaxStreamsPerConnection = 4096;
constexpr int kMaxHeaderBytes = 16 << 10;
constexpr int kHandshakeLimitMs = 20'000;
// Of a health check.
constexpr int kMaxHealthBytes = 4 << 10;

// All of a machine's addresses, however they are spelled: 0.0.0.0, 0, [::], [0:0::0].
bool IsAnyAddress(const std::string& host) {
  in_addr v4{};
  if (inet_aton(host.c_str(), &v4) != 0) return v4.s_addr == INADDR_ANY;
  const auto v6 = Ipv6InBrackets(host);
  return v6.has_value() && IN6_IS_ADDR_UNSPECIFIED(&*v6);
}

sigset_t EndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// Batches come in all sizes, and each thread's heap would keep its largest blocks, in pieces, for
// good: a server grew by a third over 14,000 requests. Before any thread exists.
void GiveFreedMemoryBack() {
  // NOLINTBEGIN(concurrency-mt-unsafe)
  mallopt(M_MMAP_THRESHOLD, 128 << 10);  // larger blocks are mapped alone; also stops its growth
  mallopt(M_ARENA_MAX, 2);
  // NOLINTEND(concurrency-mt-unsafe)
}

class CounterCollectable : public prometheus::Collectable {
 public:
  CounterCollectable(std::string prefix, std::function<CounterSnapshot()> snapshot)
      : prefix_(std::move(prefix)), snapshot_(std::move(snapshot)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families;
    for (const auto& [name, value] : snapshot_()) {
      prometheus::MetricFamily family;
      family.name = absl::StrCat(prefix_, "_", name);
      family.type = absl::EndsWith(name, "_total") ? prometheus::MetricType::Counter
                                                   : prometheus::MetricType::Gauge;
      prometheus::ClientMetric metric;
      (family.type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) =
          static_cast<double>(value);
      family.metric.push_back(std::move(metric));
      families.push_back(std::move(family));
    }
    return families;
  }

 private:
  const std::string prefix_;
  const std::function<CounterSnapshot()> snapshot_;
};

}  // namespace

void AddListenFlags(CommandLine& app, ListenOptions* options) {
  app.AddOption("--listen", options->listen, "host:port to serve on; port 0 takes a free one")
      .ShowDefault();
  app.AddOption("--metrics-listen", options->metrics_listen,
                "host:port to serve Prometheus metrics on");
  app.AddOption("--health-listen", options->health_listen,
                "host:port to answer health checks on, in plain text and nothing else: for probes "
                "that cannot encrypt");
  app.AddFlag("--insecure-listen", options->insecure_listen,
              "allow plain text on addresses beyond loopback");
}

absl::Status CheckListenAddress(const std::string& address, bool allowed) {
  TANDEM_ASSIGN_OR_RETURN(const auto host_port, SplitAddress(address));
  if (!IsLoopback(host_port.first) && !allowed) {
    return absl::FailedPreconditionError(
        absl::StrCat("listening on ", address,
                     " would send everything in plain text beyond this machine: listen ",
                     "on a loopback address, give it certificates, or pass --insecure-listen"));
  }
  return absl::OkStatus();
}

absl::Status CheckDialAddress(const std::string& address) {
  TANDEM_ASSIGN_OR_RETURN(const auto host_port, SplitAddress(address));
  const auto& [host, port] = host_port;
  if (IsAnyAddress(host)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "address \"", address, "\" stands for all of a machine's addresses and cannot be dialled"));
  }
  if (port == 0) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", address, "\" has no port"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ServiceHost::Port> ServiceHost::Open(const std::string& address,
                                                    const std::shared_ptr<const ServerTrust>& trust,
                                                    int max_message_bytes,
                                                    const std::vector<grpc::Service*>& services) {
  TANDEM_ASSIGN_OR_RETURN(const auto host_port, SplitAddress(address));
  Port port;
  TANDEM_ASSIGN_OR_RETURN(port.listener, Listener::Open(host_port.first, host_port.second));
  port.address = absl::StrCat(host_port.first, ":", port.listener->port());
  grpc::ServerBuilder builder;
  // Clients and meshes send keepalives as they were set up to; a strike would cut their streams
  // off.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeLimitMs);
  builder.SetMaxReceiveMessageSize(max_message_bytes);
  builder.SetMaxSendMessageSize(-1);
  for (grpc::Service* service : services) builder.RegisterService(service);
  port.acceptor = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      MakeServerCredentials(trust));
  port.server = builder.BuildAndStart();
  if (port.server == nullptr) return absl::InternalError("gRPC does not start a server");
  return port;
}

void ServiceHost::Accept(Port& port) {
  port.listener->Start([acceptor = port.acceptor.get()](int fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd;
    acceptor->HandleNewConnection(&connection);
  });
}

absl::StatusOr<std::unique_ptr<ServiceHost>> ServiceHost::Start(
    const ListenOptions& options, const std::vector<grpc::Service*>& services,
    const std::vector<std::string>& health_names) {
  TANDEM_RETURN_IF_ERROR(
      CheckListenAddress(options.listen, options.insecure_listen || options.trust != nullptr));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto host = std::unique_ptr<ServiceHost>(new ServiceHost);
  host->trust_ = options.trust;
  TANDEM_ASSIGN_OR_RETURN(host->main_,
                          Open(options.listen, options.trust, options.max_message_bytes, services));
  if (!options.health_listen.empty()) {
    TANDEM_RETURN_IF_ERROR(CheckListenAddress(options.health_listen, options.insecure_listen));
    TANDEM_ASSIGN_OR_RETURN(host->health_,
                            Open(options.health_listen, nullptr, kMaxHealthBytes, {}));
  }
  host->health_names_ = health_names;
  host->health_names_.push_back("");  // the server as a whole
  host->SetServing(false);
  host->memory_limit_bytes_ = ReadMachineLimits().memory_bytes;
  for (Port* port : {&host->main_, &host->health_}) {
    if (port->server == nullptr) continue;
    port->server->GetHealthCheckService()->SetServingStatus(kAliveHealthName, true);
    Accept(*port);
  }
  return host;
}

ServiceHost::~ServiceHost() { Shutdown(absl::ZeroDuration()); }

void ServiceHost::SetServing(bool serving) {
  for (const Port* port : {&main_, &health_}) {
    if (port->server == nullptr) continue;
    for (const std::string& name : health_names_) {
      port->server->GetHealthCheckService()->SetServingStatus(name, serving);
    }
  }
}

CounterSnapshot ServiceHost::Counters() const {
  CounterSnapshot counters = {{"connections_refused_total", main_.listener->refused()},
                              {"memory_limit_bytes", memory_limit_bytes_},
                              {"memory_available_bytes", ReadAvailableMemory()},
                              {"memory_resident_bytes", ReadResidentMemory()},
                              {"unix_time_ms", absl::ToUnixMillis(absl::Now())}};
  if (trust_ != nullptr) {
    const absl::Duration left = trust_->certificates->Get()->expires - absl::Now();
    counters.emplace_back("certificate_seconds_left", absl::ToInt64Seconds(left));
  }
  return counters;
}

std::shared_ptr<grpc::Channel> ServiceHost::InProcessChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  return main_.server->InProcessChannel(arguments);
}

// The servers themselves live as long as the host: other threads may still say SetServing.
void ServiceHost::Shutdown(absl::Duration grace) {
  const auto deadline = absl::ToChronoTime(absl::Now() + grace);
  for (Port* port : {&main_, &health_}) {
    if (port->server == nullptr) continue;  // Start failed, or it has none
    port->listener->Stop();
    port->server->Shutdown(deadline);
    port->server->Wait();
  }
}

struct MetricsHost::Impl {
  std::string host;
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables;  // the exposer keeps none
  std::unique_ptr<prometheus::Exposer> exposer;
};

MetricsHost::MetricsHost(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

// civetweb's thread looks whether it is to end every two seconds, or when somebody connects.
MetricsHost::~MetricsHost() {
  const std::vector<int> ports = impl_->exposer->GetListeningPorts();
  const auto ended = std::async(std::launch::async, [this] { impl_->exposer.reset(); });
  while (ended.wait_for(std::chrono::milliseconds(10)) != std::future_status::ready) {
    for (const int port : ports) KnockAt(impl_->host, port);
  }
}

absl::StatusOr<std::unique_ptr<MetricsHost>> MetricsHost::Start(
    const ListenOptions& options, const std::string& prefix,
    std::function<CounterSnapshot()> snapshot,
    std::vector<std::shared_ptr<prometheus::Collectable>> others) {
  const std::string& listen = options.metrics_listen;
  if (listen.empty()) return nullptr;
  TANDEM_RETURN_IF_ERROR(CheckListenAddress(listen, options.insecure_listen));
  TANDEM_ASSIGN_OR_RETURN(const auto host_port, SplitAddress(listen));
  auto impl = std::make_unique<Impl>();
  impl->host = host_port.first;
  impl->collectables = std::move(others);
  impl->collectables.push_back(std::make_shared<CounterCollectable>(prefix, std::move(snapshot)));
  try {  // civetweb reports a taken port by an exception
    impl->exposer = std::make_unique<prometheus::Exposer>(listen, /*num_threads=*/1);
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", listen, ": ", error.what()));
  }
  for (const auto& collectable : impl->collectables) {
    impl->exposer->RegisterCollectable(collectable);
  }
  return std::unique_ptr<MetricsHost>(new MetricsHost(std::move(impl)));
}

std::optional<int> ParseCommandLine(CommandLine& app, int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("tandem"));
  spdlog::set_formatter(MakeTextLogFormatter());
  app.AddVersionFlag(Version());
  std::string log_format = "text";
  app.AddOption("--log-format", log_format, "of log lines: text, or json for what collects them")
      .OneOf({"text", "json"})
      .ShowDefault();
  std::string log_level = "info";
  app.AddOption("--log-level", log_level,
                "the least of log lines: debug (single sequences and parts of layers as well), "
                "info, warning or error")
      .OneOf({"debug", "info", "warning", "error"})
      .ShowDefault();
  GiveFreedMemoryBack();
  RaiseDescriptorLimit();
  // Protobuf would log a line about every message that it cannot parse, as often as anybody sends
  // one; who sent it is told.
  google::protobuf::SetLogHandler(nullptr);
  const std::optional<int> code = app.Parse(argc, argv);
  spdlog::set_level(spdlog::level::from_str(log_level));
  if (log_format == "json") spdlog::set_formatter(MakeJsonLogFormatter());
  return code;
}

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  spdlog::error("{}", std::string(status.message()));
  return 1;
}

void BlockEndSignals() {
  const sigset_t set = EndSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

int WaitForEnd(const std::function<bool()>& over) {
  const sigset_t set = EndSignals();
  const timespec interval = {0, 50'000'000};
  int signal = 0;
  while (signal == 0 && !over()) signal = std::max(sigtimedwait(&set, nullptr, &interval), 0);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  return signal;
}

uint64_t NewIncarnation() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace tandem
