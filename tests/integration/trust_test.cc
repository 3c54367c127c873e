// A deployment whose every hop is encrypted, named and needs a token: who is let in, who is not,
// and that nothing is lost while certificates and tokens are replaced.

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/service/client_trust.h"
#include "tests/common/service/test_certificates.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

constexpr char kPeerToken[] = "peer-0123456789abcdef";
constexpr char kClientToken[] = "client-0123456789abcdef";

std::vector<std::string> Flags(const TestCertificates& made, const std::string& role,
                               const std::string& tokens) {
  const CertificateFiles files = made.Of(role);
  return {"--cert", files.chain, "--key", files.key, "--ca", files.ca, "--token-file", tokens};
}

std::shared_ptr<grpc::ChannelCredentials> Show(const CertificateFiles& files,
                                               const std::string& token,
                                               const std::string& server_name) {
  auto certificates =
      Reloaded<Certificates>::Create("certificates", [files] { return ReadCertificates(files); });
  EXPECT_TRUE(certificates.ok()) << certificates.status();
  std::shared_ptr<const Reloaded<BearerTokens>> tokens;
  if (!token.empty()) {
    tokens =
        *Reloaded<BearerTokens>::Create("tokens", [token] { return BearerTokens::Parse(token); });
  }
  return ClientTrust(*certificates, tokens, server_name).Credentials();
}

// One call with an empty request over a connection of its own.
grpc::Status Call(const std::string& address, const std::string& method,
                  const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  grpc::GenericStub stub(grpc::CreateCustomChannel(address, credentials, arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  const grpc::Slice nothing;
  const grpc::ByteBuffer request(&nothing, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, method, {}, &request, &response,
                 [&done](grpc::Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

// Who may call what, by the port.
struct Hop {
  std::string name;
  std::string address;
  std::string method;
  std::string server;  // the name in the server's certificate; empty: the host's
  std::string caller;  // whose certificate is right
  std::string other;   // whose is not; empty: nobody's of this CA
  std::string token;
};

class TrustTest : public testing::Test {
 protected:
  TrustTest()
      : peer_tokens_(made_.Write("peer-tokens", kPeerToken)),
        client_tokens_(made_.Write("client-tokens", absl::StrCat("alice ", kClientToken))) {}

  void Deploy(int expert_workers) {
    DeploymentOptions options;
    options.attention_workers = 1;
    options.expert_workers = expert_workers;
    options.gateway_flags = Flags(made_, "gateway", peer_tokens_);
    options.gateway_flags.insert(options.gateway_flags.end(),
                                 {"--client-ca", made_.ca(), "--client-tokens", client_tokens_});
    options.worker_flags = {"--expert-link", "grpc"};
    options.attention_flags = Flags(made_, "attention", peer_tokens_);
    options.expert_flags = Flags(made_, "expert", peer_tokens_);
    options.credentials = Show(made_.Of("client"), kClientToken, "");
    deployment_ = std::make_unique<Deployment>(options);
  }

  std::vector<Hop> Hops() {
    std::string attention, expert;
    const v1::GetStatusResponse status = deployment_->Status();
    for (const auto& worker : status.workers()) {
      if (worker.kind() == "attention") attention = worker.address();
      if (worker.kind() == "expert") expert = worker.address();
    }
    const std::string registry =
        deployment_->gateway().WaitForWord("registry on ", absl::Seconds(20));
    return {{"public", deployment_->address(), "/tandem.v1.Inference/GetStatus", "", "client", "",
             kClientToken},
            {"registry", registry, "/tandem.v1.Registry/Drain", "spiffe://tandem/gateway",
             "operator", "expert", kPeerToken},
            {"attention link", attention, "/tandem.v1.AttentionWorker/Run",
             "spiffe://tandem/attention", "gateway", "expert", kPeerToken},
            {"expert link", expert, "/tandem.v1.ExpertWorker/Exchange", "spiffe://tandem/expert",
             "attention", "gateway", kPeerToken},
            {"weights", expert, "/tandem.v1.ExpertWeights/Fetch", "spiffe://tandem/expert",
             "expert", "attention", kPeerToken}};
  }

  TestCertificates made_;
  const std::string peer_tokens_;
  const std::string client_tokens_;
  std::unique_ptr<Deployment> deployment_;
};

// Past the door the empty request is answered somehow, but not with these.
bool LetIn(const grpc::Status& status) {
  return status.error_code() != grpc::UNAUTHENTICATED &&
         status.error_code() != grpc::PERMISSION_DENIED &&
         status.error_code() != grpc::UNAVAILABLE && status.error_code() != grpc::DEADLINE_EXCEEDED;
}

#define EXPECT_REFUSED(status_expression, code, words)                                    \
  do {                                                                                    \
    const grpc::Status refused = status_expression;                                       \
    EXPECT_EQ(refused.error_code(), code) << hop.name << ": " << refused.error_message(); \
    EXPECT_TRUE(absl::StrContains(refused.error_message(), words))                        \
        << hop.name << ": " << refused.error_message();                                   \
  } while (false)

TEST_F(TrustTest, EveryHopTakesWhoIsRightAndNobodyElse) {
  Deploy(1);
  ASSERT_TRUE(Ask(deployment_->stub(), ShortRequest()).status.ok());
  const TestCertificates expired(&made_, "--days -1");
  const TestCertificates theirs;
  for (const Hop& hop : Hops()) {
    const auto call = [&](const CertificateFiles& files, const std::string& token,
                          const std::string& server) {
      return Call(hop.address, hop.method, Show(files, token, server));
    };
    const auto shown = [&](const TestCertificates& from, const std::string& role) {
      CertificateFiles files = from.Of(role);
      files.ca = made_.ca();  // it is not the server that is wrong
      return files;
    };
    const CertificateFiles right = made_.Of(hop.caller);
    const grpc::Status taken = call(right, hop.token, hop.server);
    EXPECT_TRUE(LetIn(taken)) << hop.name << ": " << taken.error_code() << " "
                              << taken.error_message();
    EXPECT_REFUSED(call({"", "", made_.ca()}, hop.token, hop.server), grpc::UNAUTHENTICATED,
                   "a client certificate is required");
    EXPECT_REFUSED(call(shown(expired, hop.caller), hop.token, hop.server), grpc::UNAVAILABLE, "");
    EXPECT_REFUSED(call(shown(theirs, hop.caller), hop.token, hop.server), grpc::UNAVAILABLE, "");
    if (!hop.other.empty()) {
      EXPECT_REFUSED(call(made_.Of(hop.other), hop.token, hop.server), grpc::PERMISSION_DENIED,
                     absl::StrCat("spiffe://tandem/", hop.other, " may not call"));
    }
    EXPECT_REFUSED(call(right, "", hop.server), grpc::UNAUTHENTICATED, "a token is required");
    EXPECT_REFUSED(call(right, "wrong-0123456789abcdef", hop.server), grpc::UNAUTHENTICATED,
                   "not one of this server's");
    EXPECT_REFUSED(Call(hop.address, hop.method, grpc::InsecureChannelCredentials()),
                   grpc::UNAVAILABLE, "");
    // And whom the caller believes.
    EXPECT_REFUSED(call({right.chain, right.key, theirs.ca()}, hop.token, hop.server),
                   grpc::UNAVAILABLE, "verify failed");
    EXPECT_REFUSED(call(right, hop.token, "spiffe://tandem/client"), grpc::UNAVAILABLE,
                   "not of spiffe://tandem/client");
    // Probes have no papers.
    const grpc::Status probed = Call(hop.address, "/grpc.health.v1.Health/Check",
                                     Show({"", "", made_.ca()}, "", hop.server));
    EXPECT_TRUE(probed.ok()) << hop.name << ": " << probed.error_message();
  }
  for (const auto& worker : deployment_->workers()) {
    EXPECT_FALSE(absl::StrContains(worker->Output(), kPeerToken));
  }
  EXPECT_FALSE(absl::StrContains(deployment_->gateway().Output(), kPeerToken));
  EXPECT_FALSE(absl::StrContains(deployment_->gateway().Output(), kClientToken));
  EXPECT_TRUE(Ask(deployment_->stub(), ShortRequest()).status.ok());
}

TEST_F(TrustTest, ExpertWorkersGetWeightsFromEachOther) {
  Deploy(1);
  std::vector<std::string> flags = Flags(made_, "expert", peer_tokens_);
  flags.insert(flags.end(), {"--weights-from", "peers"});
  deployment_->StartExpertWorker(flags);
  EXPECT_TRUE(WaitUntil(
      [&] {
        const auto loads = deployment_->CounterEach("expert", "expert_loads_total");
        const auto fetched = deployment_->CounterEach("expert", "expert_fetched_total");
        return loads.size() == 2 && fetched.size() == 2 && loads[1] > 0 && fetched[1] == loads[1] &&
               deployment_->Status().detail() == "all workers are ready";
      },
      absl::Seconds(60)))
      << deployment_->workers().back()->Output();
  EXPECT_EQ(deployment_->Counter("expert", "expert_fetch_failed_total"), 0);
}

TEST_F(TrustTest, WorkersWithoutTheRightPapersDoNotJoin) {
  Deploy(1);
  const TestCertificates expired(&made_, "--days -1");
  const TestCertificates theirs;
  const std::string wrong_token = made_.Write("wrong-token", "wrong-0123456789abcdef");
  struct Case {
    std::vector<std::string> flags;
    std::string words;
  };
  const std::vector<Case> cases = {
      {Flags(theirs, "expert", peer_tokens_), "verify failed"},
      {Flags(made_, "client", peer_tokens_), "spiffe://tandem/client may not call"},
      {Flags(made_, "expert", wrong_token), "the token is not one of this server's"},
      {Flags(expired, "expert", peer_tokens_), "has expired"},
      {{}, "not a member of the deployment"},
  };
  const size_t first = deployment_->workers().size();
  for (const Case& one : cases) deployment_->StartExpertWorker(one.flags);
  for (size_t i = 0; i < cases.size(); ++i) {
    Process& worker = *deployment_->workers()[first + i];
    EXPECT_TRUE(WaitUntil(
        [&] {
          return absl::StrContains(worker.Output(), cases[i].words) &&
                 absl::StrContains(worker.Output(), "not a member of the deployment");
        },
        absl::Seconds(30)))
        << cases[i].words << ": " << worker.Output();
    EXPECT_TRUE(worker.running());
  }
  EXPECT_EQ(deployment_->CounterEach("expert", "reports_total").size(), 1u);
}

TEST_F(TrustTest, ReplacingCertificatesCaAndTokensUnderLoadLosesNothing) {
  Deploy(2);
  const v1::GenerateRequest request = SeededRequest(3, 24);
  const Answer expected = Ask(deployment_->stub(), request);
  ASSERT_TRUE(expected.status.ok()) << expected.status.error_message();
  std::atomic<bool> over = false;
  std::atomic<int> asked = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      while (!over) {
        const Answer answer = Ask(deployment_->stub(), request);
        EXPECT_TRUE(answer == expected) << answer.status.error_message();
        ++asked;
      }
    });
  }
  // Whether new connections to all ports are made with these.
  const auto all_take = [&](const TestCertificates& from, const std::string& ca,
                            const std::string& client_token, const std::string& peer_token) {
    for (const Hop& hop : Hops()) {
      CertificateFiles files = from.Of(hop.caller);
      files.ca = ca;
      const std::string& token = hop.name == "public" ? client_token : peer_token;
      if (!LetIn(Call(hop.address, hop.method, Show(files, token, hop.server)))) return false;
    }
    return true;
  };
  const auto wait_for = [&](const auto&... what) {
    EXPECT_TRUE(WaitUntil([&] { return all_take(what...); }, absl::Seconds(60)));
  };
  // Another CA takes over in three steps: both are believed; everybody shows the new one's; only
  // the new one is believed. Tokens likewise.
  const TestCertificates next;
  const std::string old_ca = ReadAll(made_.ca()), new_ca = ReadAll(next.ca());
  const TestCertificates before(&made_);
  const std::string next_peer = "peer-fedcba9876543210", next_client = "client-fedcba9876543210";
  made_.Write("ca.pem", absl::StrCat(old_ca, new_ca));
  made_.Write("peer-tokens", absl::StrCat(kPeerToken, "\n", next_peer));
  made_.Write("client-tokens", absl::StrCat("alice ", kClientToken, "\nalice ", next_client));
  wait_for(next, made_.ca(), next_client, next_peer);
  for (const char* role : {"gateway", "attention", "expert", "client", "operator"}) {
    for (const char* kind : {".pem", ".key"}) {
      made_.Write(absl::StrCat(role, kind), ReadAll(next.file(absl::StrCat(role, kind))));
    }
  }
  made_.Write("peer-tokens", absl::StrCat(next_peer, "\n", kPeerToken));
  wait_for(next, next.ca(), next_client, kPeerToken);
  made_.Write("ca.pem", new_ca);
  made_.Write("peer-tokens", next_peer);
  EXPECT_TRUE(WaitUntil(
      [&] {
        for (const Hop& hop : Hops()) {
          if (hop.name == "public") continue;
          CertificateFiles old = before.Of(hop.caller);
          old.ca = next.ca();
          if (LetIn(Call(hop.address, hop.method, Show(old, next_peer, hop.server))) ||
              LetIn(Call(hop.address, hop.method,
                         Show(next.Of(hop.caller), kPeerToken, hop.server)))) {
            return false;
          }
        }
        return true;
      },
      absl::Seconds(60)));
  wait_for(next, next.ca(), next_client, next_peer);
  // Links that break are made anew with what is there now; so do workers that come.
  deployment_->workers().back()->Signal(SIGKILL);
  deployment_->StartExpertWorker();
  EXPECT_TRUE(
      WaitUntil([&] { return deployment_->CounterEach("expert", "reports_total").size() == 2; },
                absl::Seconds(60)));
  const int asked_before = asked;
  EXPECT_TRUE(WaitUntil([&] { return asked > asked_before + 8; }, absl::Seconds(60)));
  over = true;
  for (std::thread& client : clients) client.join();
}

TEST(ClientLimitsTest, OneClientCannotTakeWhatIsAnothers) {
  const TestCertificates made;
  const std::string alice = "alice-0123456789abcdef", bob = "bob-0123456789abcdef";
  const CertificateFiles files = made.Of("gateway");
  DeploymentOptions options;
  options.gateway_flags = {
      "--public-cert",   files.chain,
      "--public-key",    files.key,
      "--client-tokens", made.Write("tokens", absl::StrCat("alice ", alice, "\nbob ", bob)),
      "--client-calls",  "1"};
  const CertificateFiles shown{"", "", made.ca()};
  options.credentials = Show(shown, bob, "");
  Deployment deployment(options);
  const auto alices =
      v1::Inference::NewStub(grpc::CreateChannel(deployment.address(), Show(shown, alice, "")));
  v1::GenerateRequest endless = SeededRequest(1, 900);
  endless.set_ignore_eos(true);
  grpc::ClientContext first;
  const auto stream = alices->Generate(&first, endless);
  v1::GenerateResponse response;
  ASSERT_TRUE(stream->Read(&response));
  grpc::ClientContext second;
  const auto refused = alices->Generate(&second, ShortRequest());
  EXPECT_FALSE(refused->Read(&response));
  const grpc::Status status = refused->Finish();
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_TRUE(absl::StrContains(status.error_message(), "1 calls running"));
  EXPECT_TRUE(absl::StrContains(status.error_message(), "try again in 1000 ms"));
  const auto& trailers = second.GetServerTrailingMetadata();
  const auto hint = trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(hint, trailers.end());
  EXPECT_EQ(hint->second, "1000");
  EXPECT_TRUE(Ask(deployment.stub(), ShortRequest()).status.ok());  // bob's
  first.TryCancel();
  stream->Finish();
  EXPECT_TRUE(
      WaitUntil([&] { return Ask(*alices, ShortRequest()).status.ok(); }, absl::Seconds(30)));
  EXPECT_GE(deployment.Counter("gateway", "calls_over_limit_total"), 1);
}

}  // namespace
}  // namespace tandem::test
