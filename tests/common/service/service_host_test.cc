#include "common/service/service_host.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "proto/inference.grpc.pb.h"

namespace tandem {
namespace {

using testing::HasSubstr;

TEST(ServiceHostTest, OnlyLoopbackMayBePlainTextWithoutAFlag) {
  for (const char* address : {"127.0.0.1:80", "localhost:0", "[::1]:9", "127.1.2.3:65535"}) {
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
