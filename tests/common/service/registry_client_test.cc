#include "common/service/registry_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"

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

// A gateway that was away for long is found again at once.
TEST(RegistryClientTest, PausesBetweenTriesDoNotGrowBeyondASecond) {
  RudePort port;
  RegistryClient::Callbacks callbacks;
  callbacks.health = [] { return WorkerHealth{}; };
  callbacks.on_accepted = [](WorkerId, uint64_t) {};
  callbacks.on_refused = [](absl::Status) {};
  RegistryClient client(port.address(), {}, callbacks);
  // gRPC's own pauses would be 1, 1.6, 2.6, 4.1 and 6.6 seconds by now; a try and its pause of a
  // second, drawn 20% longer, fit well into this limit.
  constexpr int kLimitMs = 3500;
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(port.HangUpOnNext(kLimitMs)) << "try " << i;
}

}  // namespace
}  // namespace tandem
