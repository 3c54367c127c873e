#include "common/service/service_host.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/inference.grpc.pb.h"

namespace tandem {
namespace {

using testing::HasSubstr;

TEST(ServiceHostTest, OnlyLoopbackMayBePlainTextWithoutAFlag) {
  for (const char* address :
       {"127.0.0.1:80", "localhost:0", "[::1]:9", "127.1.2.3:65535", "[0:0:0:0:0:0:0:1]:0"}) {
    EXPECT_TRUE(CheckListenAddress(address, false).ok()) << address;
  }
  for (const char* address :
       {"0.0.0.0:80", "[::]:80", "192.168.1.1:80", "example.com:80", "127.example.com:80"}) {
    EXPECT_EQ(CheckListenAddress(address, false).code(), absl::StatusCode::kFailedPrecondition)
        << address;
    EXPECT_TRUE(CheckListenAddress(address, true).ok()) << address;
  }
  for (const char* address : {"", "localhost", ":80", "127.0.0.1:", "127.0.0.1:x", "a:65536"}) {
    EXPECT_EQ(CheckListenAddress(address, true).code(), absl::StatusCode::kInvalidArgument)
        << address;
  }
}

TEST(ServiceHostTest, AnAddressThatIsWrongIsSaidToBeSo) {
  const absl::Status brackets = CheckListenAddress("::1:0", false);
  EXPECT_EQ(brackets.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(brackets.message()), HasSubstr("in brackets, as in [::1]:0"));
  for (const char* address : {"[127.0.0.1]:0", "*:0", "[]:5", "[::1", "[::1]x:0", "http://x:80"}) {
    const absl::Status no_host = CheckListenAddress(address, false);
    EXPECT_EQ(no_host.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(no_host.message()), HasSubstr("is no host, which is a name"))
        << address;
  }
  for (const char* address :
       {"10.0.0.1:80", "[::1]:80", "expert-0.experts:9000", "[fe80::1%eth0]:80"}) {
    EXPECT_TRUE(CheckDialAddress(address).ok()) << address;
  }
  for (const char* address : {"0.0.0.0:80", "[::]:80", "0:80", "0.0.0:80", "[::0]:80",
                              "[0:0::0]:80", "localhost:0", "localhost", "fe80::1:80"}) {
    EXPECT_EQ(CheckDialAddress(address).code(), absl::StatusCode::kInvalidArgument) << address;
  }
}

TEST(ServiceHostTest, AHostWithoutAddressIsOneSentence) {
  v1::Inference::Service service;
  const auto host = ServiceHost::Start({"no-such-host.invalid:80", "", true}, {&service}, {});
  EXPECT_EQ(host.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(host.status().message()), HasSubstr("no-such-host.invalid"));
}

TEST(ServiceHostTest, PermitsKeepalivesAlsoWithoutCalls) {
  v1::Inference::Service service;
  auto host = ServiceHost::Start({"127.0.0.1:0", "", false}, {&service}, {"tandem.v1.Inference"});
  ASSERT_TRUE(host.ok()) << host.status();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  const auto channel =
      grpc::CreateCustomChannel((*host)->address(), grpc::InsecureChannelCredentials(), arguments);
  const auto in = [](int ms) {
    return std::chrono::system_clock::now() + std::chrono::milliseconds(ms);
  };
  ASSERT_TRUE(channel->WaitForConnected(in(10'000)));
  // Fifty pings, of which a stock server takes two.
  EXPECT_FALSE(channel->WaitForStateChange(GRPC_CHANNEL_READY, in(1000)));
}

TEST(ServiceHostTest, ListensOnBothLoopbacks) {
  v1::Inference::Service service;
  auto host = ServiceHost::Start({"[::]:0", "", true}, {&service}, {"tandem.v1.Inference"});
  if (!host.ok()) GTEST_SKIP() << "no IPv6 here: " << host.status();
  const std::string port = (*host)->address().substr((*host)->address().rfind(':'));
  for (const std::string name : {"127.0.0.1", "[::1]"}) {
    const auto channel = grpc::CreateChannel(name + port, grpc::InsecureChannelCredentials());
    EXPECT_TRUE(
        channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10)))
        << name;
  }
}

TEST(ServiceHostTest, ATakenPortIsOneSentence) {
  v1::Inference::Service service;
  ListenOptions options{"127.0.0.1:0", "", false};
  auto first = ServiceHost::Start(options, {&service}, {"tandem.v1.Inference"});
  ASSERT_TRUE(first.ok()) << first.status();
  options.listen = (*first)->address();
  v1::Inference::Service other;
  const auto second = ServiceHost::Start(options, {&other}, {"tandem.v1.Inference"});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.listen));
}

TEST(ServiceHostTest, AnswersInProcessAndOverTheSocket) {
  v1::Inference::Service service;  // generated: everything is UNIMPLEMENTED
  const ListenOptions options{"127.0.0.1:0", "", false};
  auto host = ServiceHost::Start(options, {&service}, {"tandem.v1.Inference"});
  ASSERT_TRUE(host.ok()) << host.status();
  for (const auto& channel :
       {(*host)->InProcessChannel(),
        grpc::CreateChannel((*host)->address(), grpc::InsecureChannelCredentials())}) {
    grpc::ClientContext context;
    v1::GetModelResponse response;
    const auto stub = v1::Inference::NewStub(channel);
    EXPECT_EQ(stub->GetModel(&context, {}, &response).error_code(), grpc::UNIMPLEMENTED);
  }
}

// What http://127.0.0.1:`port`/metrics answers.
std::string Scrape(int port) {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(descriptor, request.data(), request.size()), ssize_t(request.size()));
  std::string answer;
  std::array<char, 4096> part;
  for (ssize_t n = 0; (n = read(descriptor, part.data(), part.size())) > 0;) {
    answer.append(part.data(), static_cast<size_t>(n));
  }
  close(descriptor);
  return answer;
}

TEST(MetricsHostTest, ServesCountersAndEndsAtOnce) {
  auto listener = Listener::Open("127.0.0.1", 0);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const int port = (*listener)->port();
  listener->reset();  // the port is free again
  auto metrics =
      MetricsHost::Start({"", absl::StrCat("127.0.0.1:", port), false}, "tandem_test", [] {
        return CounterSnapshot{{"rows_total", 7}, {"pages", 3}};
      });
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  const std::string answer = Scrape(port);
  EXPECT_THAT(answer, HasSubstr("# TYPE tandem_test_rows_total counter"));
  EXPECT_THAT(answer, HasSubstr("tandem_test_rows_total 7"));
  EXPECT_THAT(answer, HasSubstr("tandem_test_pages 3"));
  const auto start = std::chrono::steady_clock::now();
  metrics->reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

TEST(ServiceHostTest, HealthMayBeSetWhileAndAfterItShutsDown) {
  v1::Inference::Service service;
  auto host = ServiceHost::Start({"127.0.0.1:0", "", false}, {&service}, {"tandem.v1.Inference"});
  ASSERT_TRUE(host.ok()) << host.status();
  (*host)->Shutdown(absl::ZeroDuration());
  (*host)->SetServing(true);
  (*host)->Shutdown(absl::ZeroDuration());
}

}  // namespace
}  // namespace tandem
