#include "common/service/client_trust.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tandem {
namespace {

// Names a server by a URI in its certificate, whichever address it has.
class UriVerifier : public grpc::experimental::ExternalCertificateVerifier {
 public:
  explicit UriVerifier(std::string uri) : uri_(std::move(uri)) {}

  bool Verify(grpc::experimental::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)>, grpc::Status* status) override {
    const auto uris = request->uri_names();
    if (std::find(uris.begin(), uris.end(), uri_) == uris.end()) {
      *status = grpc::Status(
          grpc::UNAUTHENTICATED,
          absl::StrCat("the server's certificate is that of ",
                       uris.empty() ? "nobody by URI" : absl::StrJoin(ToStrings(uris), ", "),
                       ", not of ", uri_));
    }
    return true;
  }
  void Cancel(grpc::experimental::TlsCustomVerificationCheckRequest*) override {}

 private:
  static std::vector<std::string> ToStrings(const std::vector<grpc::string_ref>& refs) {
    std::vector<std::string> strings;
    strings.reserve(refs.size());
    for (const grpc::string_ref& ref : refs) strings.emplace_back(ref.data(), ref.size());
    return strings;
  }

  const std::string uri_;
};

std::shared_ptr<grpc::experimental::CertificateVerifier> MakeVerifier(const std::string& uri) {
  if (uri.empty()) return std::make_shared<grpc::experimental::HostNameCertificateVerifier>();
  return grpc::experimental::ExternalCertificateVerifier::Create<UriVerifier>(uri);
}

// The token of the moment, at every call.
class TokenPlugin : public grpc::MetadataCredentialsPlugin {
 public:
  explicit TokenPlugin(std::shared_ptr<const Reloaded<BearerTokens>> tokens)
      : tokens_(std::move(tokens)) {}

  bool IsBlocking() const override { return false; }
  const char* GetType() const override { return "bearer token"; }
  grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                           std::multimap<grpc::string, grpc::string>* metadata) override {
    metadata->emplace("authorization", absl::StrCat("Bearer ", tokens_->Get()->first()));
    return grpc::Status::OK;
  }
  grpc::string DebugString() override { return "bearer token"; }

 private:
  const std::shared_ptr<const Reloaded<BearerTokens>> tokens_;
};

}  // namespace

ClientTrust::ClientTrust(std::shared_ptr<const Reloaded<Certificates>> certificates,
                         std::shared_ptr<const Reloaded<BearerTokens>> tokens,
                         std::string server_name)
    : certificates_(std::move(certificates)),
      tokens_(std::move(tokens)),
      server_name_(std::move(server_name)),
      verifier_(MakeVerifier(server_name_)) {}

std::shared_ptr<grpc::ChannelCredentials> ClientTrust::Credentials() const {
  const auto now = certificates_->Get();
  std::vector<grpc::experimental::IdentityKeyCertPair> pairs;
  if (!now->chain.empty()) pairs.push_back({now->key, now->chain});
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(
      std::make_shared<grpc::experimental::StaticDataCertificateProvider>(now->ca, pairs));
  if (!now->ca.empty()) options.watch_root_certs();  // otherwise the system's
  if (!pairs.empty()) options.watch_identity_key_cert_pairs();
  options.set_certificate_verifier(verifier_);
  options.set_check_call_host(false);
  auto channel = grpc::experimental::TlsCredentials(options);
  if (tokens_ == nullptr) return channel;
  return grpc::CompositeChannelCredentials(
      channel, grpc::MetadataCredentialsFromPlugin(std::make_unique<TokenPlugin>(tokens_)));
}

std::shared_ptr<const void> ClientTrust::version() const { return certificates_->Get(); }

std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const ClientTrust* trust) {
  return trust == nullptr ? grpc::InsecureChannelCredentials() : trust->Credentials();
}

}  // namespace tandem
