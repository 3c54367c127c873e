// What a server takes and what a client believes, over real connections: every way to be wrong.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/service/client_trust.h"
#include "common/service/server_trust.h"
#include "common/service/service_host.h"
#include "common/service/trust_options.h"
#include "proto/inference.grpc.pb.h"
#include "tests/common/service/test_certificates.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr char kToken[] = "0123456789abcdef";

std::shared_ptr<const Reloaded<BearerTokens>> Tokens(const std::string& text) {
  return *Reloaded<BearerTokens>::Create("tokens", [text] { return BearerTokens::Parse(text); });
}

// ---- the decision alone -------------------------------------------------------------------------

TEST(CheckCallTest, AsksForEverythingThatIsSet) {
  ServerTrust trust;
  trust.certificate_required = true;
  trust.rules = {{"/a/", {"spiffe://x/one", "spiffe://x/two"}}, {"/b/Run", {"spiffe://x/two"}}};
  trust.tokens = Tokens(kToken);
  const std::string good = absl::StrCat("Bearer ", kToken);
  const auto code = [&](const CallFacts& call) { return CheckCall(trust, call).code(); };
  using Code = absl::StatusCode;
  EXPECT_EQ(code({"/a/Run", true, {"spiffe://x/one"}, good}), Code::kOk);
  EXPECT_EQ(code({"/b/Run", true, {"other", "spiffe://x/two"}, good}), Code::kOk);
  EXPECT_EQ(code({"/b/Run", true, {"spiffe://x/one"}, good}), Code::kPermissionDenied);
  EXPECT_EQ(code({"/b/Walk", true, {"spiffe://x/two"}, good}), Code::kPermissionDenied);
  EXPECT_EQ(code({"/a/Run", true, {"spiffe://x/one/more"}, good}), Code::kPermissionDenied);
  EXPECT_EQ(code({"/a/Run", true, {}, good}), Code::kPermissionDenied);
  EXPECT_EQ(code({"/a/Run", false, {}, good}), Code::kUnauthenticated);
  EXPECT_EQ(code({"/a/Run", true, {"spiffe://x/one"}, {}}), Code::kUnauthenticated);
  EXPECT_EQ(code({"/a/Run", true, {"spiffe://x/one"}, kToken}), Code::kUnauthenticated);
  EXPECT_EQ(code({"/a/Run", true, {"spiffe://x/one"}, "Bearer 0123456789abcdeg"}),
            Code::kUnauthenticated);
  EXPECT_EQ(code({"", true, {"spiffe://x/one"}, good}), Code::kPermissionDenied);
  // Probes know no secret; what only looks like theirs does not pass.
  EXPECT_EQ(code({"/grpc.health.v1.Health/Check", false, {}, {}}), Code::kOk);
  EXPECT_EQ(code({"/grpc.health.v1.HealthX/Check", false, {}, {}}), Code::kUnauthenticated);
}

TEST(CheckCallTest, NeverSaysAToken) {
  ServerTrust trust;
  trust.tokens = Tokens(kToken);
  for (const char* shown :
       {"Bearer secret0123456789", "secret0123456789", "Basic secret0123456789"}) {
    const absl::Status status = CheckCall(trust, {"/a/Run", false, {}, shown});
    EXPECT_FALSE(absl::StrContains(status.ToString(), "secret")) << status;
    EXPECT_FALSE(absl::StrContains(status.ToString(), kToken)) << status;
  }
}

TEST(AddressOfPeerTest, NamesAClientAndNotItsConnections) {
  EXPECT_EQ(AddressOfPeer("ipv4:10.0.0.1:5555"), "ipv4:10.0.0.1");
  EXPECT_EQ(AddressOfPeer("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5555"), "ipv6:2001:db8:1:2::/64");
  EXPECT_EQ(AddressOfPeer("ipv6:[2001:db8:1:2::7]:80"), "ipv6:2001:db8:1:2::/64");
  EXPECT_EQ(AddressOfPeer("ipv6:%5Bfe80::1%25eth0%5D:80"), "ipv6:fe80::/64");
  EXPECT_EQ(AddressOfPeer("unix:/run/socket:1"), "unix:/run/socket");
}

// ---- over connections ---------------------------------------------------------------------------

// A server with everything; a generated service, of which everything is UNIMPLEMENTED.
class TrustTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    ours_ = new test::TestCertificates;
    theirs_ = new test::TestCertificates;
    expired_ = new test::TestCertificates(ours_, "--days -1");
  }
  static void TearDownTestSuite() {
    delete ours_;
    delete theirs_;
    delete expired_;
  }

  void Serve(const CertificateFiles& files, bool certificate_required,
             const std::vector<CallRule>& rules, const std::string& tokens) {
    auto trust = std::make_shared<ServerTrust>();
    const auto watched = Reloaded<Certificates>::Create(
        "certificates", [files] { return ReadCertificates(files); }, std::chrono::milliseconds(5));
    ASSERT_TRUE(watched.ok()) << watched.status();
    trust->certificates = *watched;
    trust->certificate_required = certificate_required;
    trust->rules = rules;
    if (!tokens.empty()) trust->tokens = Tokens(tokens);
    ListenOptions listen;
    listen.listen = "127.0.0.1:0";
    listen.health_listen = "127.0.0.1:0";
    listen.trust = trust;
    auto host = ServiceHost::Start(listen, {&service_}, {"tandem.v1.Inference"});
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
  }
  // A worker of a deployment with tokens: gateways may call it.
  void ServeWorker(const CertificateFiles& files) {
    Serve(files, true, {{"/", {"spiffe://tandem/gateway"}}}, kToken);
  }

  std::shared_ptr<grpc::Channel> Dial(const std::shared_ptr<grpc::ChannelCredentials>& creds) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    return grpc::CreateCustomChannel(host_->address(), creds, arguments);
  }
  static std::shared_ptr<const ClientTrust> Client(const CertificateFiles& files,
                                                   const std::string& token,
                                                   const std::string& server_name) {
    return std::make_shared<ClientTrust>(
        *Reloaded<Certificates>::Create("certificates",
                                        [files] { return ReadCertificates(files); }),
        token.empty() ? nullptr : Tokens(token), server_name);
  }
  static grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::GetModelResponse response;
    return v1::Inference::NewStub(channel)->GetModel(&context, {}, &response);
  }
  grpc::Status CallWorker(const CertificateFiles& files, const std::string& token = kToken,
                          const std::string& server_name = "spiffe://tandem/expert") {
    return Call(Dial(Client(files, token, server_name)->Credentials()));
  }

  static test::TestCertificates* ours_;     // what both sides should have
  static test::TestCertificates* theirs_;   // from another CA
  static test::TestCertificates* expired_;  // from ours, until yesterday
  v1::Inference::Service service_;
  std::unique_ptr<ServiceHost> host_;
};
test::TestCertificates* TrustTest::ours_ = nullptr;
test::TestCertificates* TrustTest::theirs_ = nullptr;
test::TestCertificates* TrustTest::expired_ = nullptr;

MATCHER_P2(Says, code, words, "") {
  *result_listener << arg.error_code() << " " << arg.error_message();
  return arg.error_code() == code && absl::StrContains(arg.error_message(), words);
}

TEST_F(TrustTest, TakesWhoIsRight) {
  ServeWorker(ours_->Of("expert"));
  EXPECT_THAT(CallWorker(ours_->Of("gateway")), Says(grpc::UNIMPLEMENTED, ""));
}

TEST_F(TrustTest, RefusesClientsThatAreNot) {
  ServeWorker(ours_->Of("expert"));
  const std::string ca = ours_->ca();
  EXPECT_THAT(CallWorker({"", "", ca}),
              Says(grpc::UNAUTHENTICATED, "a client certificate is required"));
  EXPECT_THAT(CallWorker(ours_->Of("attention")),
              Says(grpc::PERMISSION_DENIED, "spiffe://tandem/attention may not call"));
  EXPECT_THAT(CallWorker({theirs_->file("gateway.pem"), theirs_->file("gateway.key"), ca}),
              Says(grpc::UNAVAILABLE, ""));
  EXPECT_THAT(CallWorker(ours_->Of("gateway"), ""), Says(grpc::UNAUTHENTICATED, "there is none"));
  EXPECT_THAT(CallWorker(ours_->Of("gateway"), "0123456789abcdeg"),
              Says(grpc::UNAUTHENTICATED, "not one of this server's"));
  EXPECT_THAT(Call(Dial(grpc::InsecureChannelCredentials())), Says(grpc::UNAVAILABLE, ""));
}

TEST_F(TrustTest, RefusesAClientWhoseCertificateHasExpired) {
  ServeWorker(ours_->Of("expert"));
  EXPECT_THAT(CallWorker(expired_->Of("gateway")), Says(grpc::UNAVAILABLE, ""));
}

TEST_F(TrustTest, BelievesNoServerWhoseCertificateHasExpired) {
  ServeWorker(expired_->Of("expert"));
  EXPECT_THAT(CallWorker(ours_->Of("gateway")), Says(grpc::UNAVAILABLE, "verify failed"));
}

TEST_F(TrustTest, BelievesNoOtherServer) {
  ServeWorker(ours_->Of("expert"));
  EXPECT_THAT(CallWorker(theirs_->Of("gateway")), Says(grpc::UNAVAILABLE, "verify failed"));
  EXPECT_THAT(
      CallWorker(ours_->Of("gateway"), kToken, "spiffe://tandem/attention"),
      Says(grpc::UNAVAILABLE, "the server's certificate is that of spiffe://tandem/expert"));
  EXPECT_THAT(CallWorker(ours_->Of("gateway"), kToken, ""), Says(grpc::UNAVAILABLE, ""));
}

TEST_F(TrustTest, ProbesNeedNoSecret) {
  ServeWorker(ours_->Of("expert"));
  host_->SetServing(true);
  const auto probe = [](const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    // HealthCheckRequest{service: "tandem.v1.Inference"}; the answer is
    // HealthCheckResponse{status}.
    const grpc::Slice asked(std::string("\x0a\x13tandem.v1.Inference"));
    const grpc::ByteBuffer request(&asked, 1);
    grpc::ByteBuffer response;
    std::promise<grpc::Status> done;
    grpc::GenericStub stub(channel);
    stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", {}, &request, &response,
                   [&done](grpc::Status status) { done.set_value(std::move(status)); });
    const grpc::Status status = done.get_future().get();
    grpc::Slice answer;
    if (!status.ok() || !response.DumpToSingleSlice(&answer).ok()) return status.error_message();
    return std::string(reinterpret_cast<const char*>(answer.begin()), answer.size());
  };
  const std::string serving = "\x08\x01";
  EXPECT_EQ(probe(Dial(Client({"", "", ours_->ca()}, "", "spiffe://tandem/expert")->Credentials())),
            serving);
  // And on the port that has nothing else, in plain text.
  const auto plain =
      grpc::CreateChannel(host_->health_address(), grpc::InsecureChannelCredentials());
  EXPECT_EQ(probe(plain), serving);
  EXPECT_THAT(Call(plain), Says(grpc::UNIMPLEMENTED, ""));
  host_->SetServing(false);
  EXPECT_EQ(probe(plain), std::string("\x08\x02"));
}

// A client that checks host names and has nothing to show, as grpcurl does.
TEST_F(TrustTest, APublicServerIsKnownByItsHost) {
  Serve(ours_->Of("gateway"), false, {}, "");
  EXPECT_THAT(CallWorker({"", "", ours_->ca()}, "", ""), Says(grpc::UNIMPLEMENTED, ""));
  EXPECT_THAT(CallWorker({"", "", theirs_->ca()}, "", ""),
              Says(grpc::UNAVAILABLE, "verify failed"));
  Serve(ours_->Of("expert"), false, {}, "");  // which has no host's name
  EXPECT_THAT(CallWorker({"", "", ours_->ca()}, "", ""), Says(grpc::UNAVAILABLE, ""));
}

TEST_F(TrustTest, NewConnectionsSeeNewCertificatesAndNeverHalfOfThem) {
  const test::TestCertificates served(ours_);
  ServeWorker(served.Of("expert"));
  const auto old =
      Dial(Client(ours_->Of("gateway"), kToken, "spiffe://tandem/expert")->Credentials());
  EXPECT_THAT(Call(old), Says(grpc::UNIMPLEMENTED, ""));
  // Half a change, which would take a server down that believed it: the key is still the old one.
  served.Write("expert.pem", test::ReadAll(theirs_->file("expert.pem")));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // it must not be used in this time
  EXPECT_THAT(CallWorker(ours_->Of("gateway")), Says(grpc::UNIMPLEMENTED, ""));
  served.Write("expert.key", test::ReadAll(theirs_->file("expert.key")));
  served.Write("ca.pem", test::ReadAll(theirs_->ca()));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (CallWorker(theirs_->Of("gateway")).error_code() != grpc::UNIMPLEMENTED &&
         std::chrono::steady_clock::now() < end) {
  }
  EXPECT_THAT(CallWorker(theirs_->Of("gateway")), Says(grpc::UNIMPLEMENTED, ""));
  EXPECT_THAT(CallWorker(ours_->Of("gateway")), Says(grpc::UNAVAILABLE, "verify failed"));
  EXPECT_THAT(Call(old), Says(grpc::UNIMPLEMENTED, ""));  // its connection stays
}

TEST_F(TrustTest, CountsDownToTheEndOfItsCertificate) {
  ServeWorker(ours_->Of("expert"));
  int64_t left_s = 0;
  for (const auto& [name, value] : host_->Counters()) {
    if (name == "certificate_seconds_left") left_s = value;
  }
  EXPECT_GT(left_s, 29 * 86400);
  EXPECT_LE(left_s, 30 * 86400);
}

// ---- flags --------------------------------------------------------------------------------------

TEST_F(TrustTest, FlagsThatDoNotGoTogetherAreOneSentence) {
  const auto why = [](const CertificateFiles& files, const std::string& names,
                      const std::string& token_file) {
    PeerTrustOptions options;
    options.files = files;
    options.names = names;
    options.token_file = token_file;
    return std::string(PeerTrust::Create(options).status().message());
  };
  const std::string names = "spiffe://x/{role}";
  const std::string token = ours_->Write("token", kToken);
  PeerTrustOptions peers;
  EXPECT_EQ(*PeerTrust::Create(peers), nullptr);
  EXPECT_EQ(why(ours_->Of("expert"), names, token), "");
  EXPECT_THAT(why({"", "", ours_->ca()}, names, ""), HasSubstr("go together"));
  EXPECT_THAT(why({}, names, token), HasSubstr("in plain text anybody"));
  EXPECT_THAT(why(ours_->Of("expert"), "spiffe://x/worker", ""), HasSubstr("no {role}"));
  EXPECT_THAT(why(ours_->Of("expert"), names, ours_->file("none")), HasSubstr(ours_->file("none")));

  PublicTrustOptions clients;
  EXPECT_EQ(*MakePublicTrust(clients, peers), nullptr);
  clients.token_file = token;
  EXPECT_THAT(std::string(MakePublicTrust(clients, peers).status().message()),
              HasSubstr("--client-tokens needs"));
  peers.files = ours_->Of("gateway");
  const auto of_peers = MakePublicTrust(clients, peers);
  ASSERT_TRUE(of_peers.ok()) << of_peers.status();
  EXPECT_FALSE((*of_peers)->certificate_required);  // the peers' CA is not the clients'

  ClientTrustOptions client;
  EXPECT_EQ(*MakeClientTrust(client), nullptr);
  client.token_file = token;
  EXPECT_THAT(std::string(MakeClientTrust(client).status().message()), HasSubstr("plain text"));
  client.files.ca = ours_->ca();
  EXPECT_TRUE(MakeClientTrust(client).ok());
}

}  // namespace
}  // namespace tandem
