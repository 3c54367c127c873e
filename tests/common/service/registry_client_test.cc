#include "common/service/registry_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/service/service_host.h"
#include "proto/registry.grpc.pb.h"

namespace tandem {
namespace {

// A port that hangs up on whoever dials.
class RudePort {
 public:
  RudePort() : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~RudePort() { close(fd_); }

  const std::string& address() const { return address_; }
  // False if nobody dials within `limit_ms`.
  bool HangUpOnNext(int limit_ms) {
    pollfd ready = {fd_, POLLIN, 0};
    if (poll(&ready, 1, limit_ms) != 1) return false;
    const int connection = accept(fd_, nullptr, nullptr);
    if (connection >= 0) close(connection);
    return connection >= 0;
  }

 private:
  const int fd_;
  std::string address_;
};

// A registry that has no place for now.
class FullRegistry : public v1::Registry::Service {
 public:
  grpc::Status Join(grpc::ServerContext*,
                    grpc::ServerReaderWriter<v1::WorkerOrder, v1::WorkerReport>*) override {
    std::lock_guard lock(mutex_);
    ++joins_;
    changed_.notify_all();
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "all places are taken");
  }
  bool WaitForJoins(int count, std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [&] { return joins_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int joins_ = 0;
};

RegistryClient::Callbacks NoCallbacks() {
  RegistryClient::Callbacks callbacks;
  callbacks.hello = [] { return v1::WorkerHello(); };
  callbacks.health = [] { return WorkerHealth{}; };
  callbacks.on_accepted = [](WorkerId, uint64_t) {};
  callbacks.on_refused = [](absl::Status) {};
  return callbacks;
}

// A gateway that was away for long is found again at once.
TEST(RegistryClientTest, PausesBetweenTriesDoNotGrowBeyondASecond) {
  RudePort port;
  RegistryClient client(port.address(), NoCallbacks());
  // gRPC's own pauses would be 1, 1.6, 2.6, 4.1 and 6.6 seconds by now; a try and its pause of a
  // second, drawn 20% longer, fit well into this limit.
  constexpr int kLimitMs = 3500;
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(port.HangUpOnNext(kLimitMs)) << "try " << i;
}

// A place that becomes free is taken within a second or so.
TEST(RegistryClientTest, PausesBetweenRequestsForAPlaceDoNotGrowBeyondASecond) {
  FullRegistry registry;
  const auto host = *ServiceHost::Start({"127.0.0.1:0", "", false}, {&registry}, {});
  RegistryClient client(host->address(), NoCallbacks());
  // The sixth pause would be 3.2 seconds.
  for (int joins = 1; joins <= 7; ++joins) {
    ASSERT_TRUE(registry.WaitForJoins(joins, std::chrono::milliseconds(2700))) << joins;
  }
}

TEST(PlacementOrderTest, ComesOutAsItWentIn) {
  Placement placement;
  placement.version = {7, 3};
  placement.urgent = true;
  placement.num_layers = 2;
  placement.num_experts = 3;
  placement.workers = {{4, "a:1", 11}, {5, "[::1]:2", 12}};
  placement.holders = {{}, {}, {}, {4}, {5, 4}, {}};
  placement.sources = {{{4, "a:1", 11}, {false, false, false, true, true, false}},
                       {{9, "leaves:3", 13}, {false, false, false, false, true, true}}};
  const Placement back = PlacementFromProto(PlacementToProto(placement));
  EXPECT_EQ(back.version, placement.version);
  EXPECT_EQ(back.urgent, placement.urgent);
  EXPECT_EQ(back.num_layers, placement.num_layers);
  EXPECT_EQ(back.num_experts, placement.num_experts);
  EXPECT_EQ(back.workers, placement.workers);
  EXPECT_EQ(back.holders, placement.holders);
  ASSERT_EQ(back.sources.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(back.sources[i].worker, placement.sources[i].worker);
    std::vector<bool> experts = back.sources[i].experts;
    experts.resize(6);  // whole bytes travel
    EXPECT_EQ(experts, placement.sources[i].experts);
  }
}

}  // namespace
}  // namespace tandem
