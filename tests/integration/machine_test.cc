// Machines as they come: few descriptors, cores and bytes; addresses that nobody can dial.

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "common/service/listener.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(30);

int Connect(const std::string& address) {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  if (connect(descriptor, reinterpret_cast<sockaddr*>(&name), sizeof(name)) != 0) {
    ADD_FAILURE() << "cannot connect to " << address;
  }
  return descriptor;
}

// What a program that cannot start says; it must end by itself with code 1.
std::string Refusal(const std::vector<std::string>& command) {
  const TempDir dir;
  Process process(command, dir.path() + "/log");
  EXPECT_EQ(process.Wait(kLimit), 1) << process.Output();
  return process.Output();
}

std::string FirstUsableCore() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof(set), &set);
  int core = 0;
  while (!CPU_ISSET(core, &set)) ++core;
  return std::to_string(core);
}

TEST(MachineTest, AcceptsAgainAfterTheDescriptorsRanOut) {
  RaiseDescriptorLimit();
  DeploymentOptions options;
  options.gateway_prefix = {"/usr/bin/prlimit", "--nofile=128"};
  Deployment deployment(options);
  const Answer before = Ask(deployment.stub(), ShortRequest(), kLimit);
  ASSERT_TRUE(before.status.ok()) << before.status.error_message();
  for (int round = 0; round < 3; ++round) {
    std::vector<int> connections;
    for (int i = 0; i < 400; ++i) connections.push_back(Connect(deployment.address()));
    ASSERT_TRUE(WaitUntil(
        [&] { return deployment.Counter("gateway", "connections_refused_total") > 100 * round; },
        kLimit));
    EXPECT_EQ(Ask(deployment.stub(), ShortRequest(), kLimit),
              before);  // on a connection that is there
    for (const int connection : connections) close(connection);
    const auto channel =
        grpc::CreateChannel(deployment.address(), grpc::InsecureChannelCredentials());
    ASSERT_TRUE(
        channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(30)));
    EXPECT_EQ(Ask(*v1::Inference::NewStub(channel), ShortRequest(), kLimit), before);
  }
}

TEST(MachineTest, TheSoftDescriptorLimitIsRaised) {
  DeploymentOptions options;
  options.gateway_prefix = {"/usr/bin/prlimit", "--nofile=100:400"};
  Deployment deployment(options);
  std::vector<int> connections;
  for (int i = 0; i < 150; ++i) connections.push_back(Connect(deployment.address()));
  EXPECT_TRUE(Ask(deployment.stub(), ShortRequest(), kLimit).status.ok());
  EXPECT_EQ(deployment.Counter("gateway", "connections_refused_total"), 0);
  for (const int connection : connections) close(connection);
}

TEST(MachineTest, ComputesWithTheCoresThatItMayUse) {
  DeploymentOptions options;
  options.gateway_prefix = {"/usr/bin/taskset", "-c", FirstUsableCore()};
  Deployment deployment(options);
  EXPECT_THAT(deployment.gateway().Output(), HasSubstr("compute threads: 1, by affinity"));
  EXPECT_TRUE(Ask(deployment.stub(), ShortRequest(), kLimit).status.ok());
}

TEST(MachineTest, WhatCannotFitIntoMemoryIsRefusedBeforeItIsLoaded) {
  EXPECT_THAT(Refusal({Binary("tandem-gateway"), "--model", TinyModel(), "--listen", "127.0.0.1:0",
                       "--cache-tokens", "68719476736"}),
              HasSubstr("not enough memory: weights need 1.2 MiB and the latent cache"));
}

TEST(MachineTest, AddressesThatNobodyCanDialAreRefusedWithAReason) {
  const std::string worker = Binary("tandem-expert-worker");
  EXPECT_THAT(Refusal({worker, "--model", TinyModel(), "--registry", "127.0.0.1:1", "--listen",
                       "0.0.0.0:0", "--insecure-listen"}),
              HasSubstr("pass --advertise"));
  EXPECT_THAT(Refusal({worker, "--model", TinyModel(), "--registry", "127.0.0.1:1", "--advertise",
                       "[::]:80"}),
              HasSubstr("stands for all of a machine's addresses"));
  EXPECT_THAT(Refusal({worker, "--model", TinyModel(), "--registry", "::1:80"}),
              HasSubstr("an IPv6 address is written in brackets, as in [::1]:80"));
  EXPECT_THAT(Refusal({Binary("tandem-gateway"), "--model", TinyModel(), "--listen", "::1:0"}),
              HasSubstr("an IPv6 address is written in brackets, as in [::1]:0"));
}

}  // namespace
}  // namespace tandem::test
