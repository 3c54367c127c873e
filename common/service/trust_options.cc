#include "common/service/trust_options.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/command_line.h"
#include "common/status.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr char kRole[] = "{role}";

const char* RoleName(PeerRole role) {
  switch (role) {
    case PeerRole::kGateway:
      return "gateway";
    case PeerRole::kAttention:
      return "attention";
    case PeerRole::kExpert:
      return "expert";
    case PeerRole::kOperator:
      return "operator";
  }
  return "";
}

absl::StatusOr<std::shared_ptr<const Reloaded<Certificates>>> Watch(const CertificateFiles& files) {
  auto watched = Reloaded<Certificates>::Create(
      absl::StrCat("the certificates of ", files.chain.empty() ? files.ca : files.chain),
      [files] { return ReadCertificates(files); });
  if (watched.ok() && (*watched)->Get()->expires < absl::Now()) {
    spdlog::warn("the certificate in {} has expired on {}: nobody will believe it", files.chain,
                 absl::FormatTime((*watched)->Get()->expires, absl::UTCTimeZone()));
  }
  return watched;
}

// Null if there is no such file to read.
absl::StatusOr<std::shared_ptr<const Reloaded<BearerTokens>>> WatchTokens(const std::string& file) {
  if (file.empty()) return nullptr;
  return Reloaded<BearerTokens>::Create(absl::StrCat("the tokens of ", file),
                                        [file] { return BearerTokens::ReadFile(file); });
}

}  // namespace

void PeerTrustOptions::AddTo(CommandLine& app) {
  app.AddOption("--cert", files.chain,
                "this program's certificate for the deployment's other programs, in PEM; with "
                "--key and --ca all that they say to each other is encrypted");
  app.AddOption("--key", files.key, "its private key");
  app.AddOption("--ca", files.ca, "the CA that the other programs' certificates must come from");
  app.AddOption("--names", names,
                "the URI that a program's certificate must have, with {role} for gateway, "
                "attention, expert or operator")
      .ShowDefault();
  app.AddOption("--token-file", token_file,
                "tokens that the other programs must show, one a line; this one shows the first");
}

absl::StatusOr<std::shared_ptr<const PeerTrust>> PeerTrust::Create(
    const PeerTrustOptions& options) {
  const CertificateFiles& files = options.files;
  if (files.chain.empty() && files.key.empty() && files.ca.empty()) {
    if (options.token_file.empty()) return nullptr;
    return absl::InvalidArgumentError(
        "--token-file needs --cert, --key and --ca: in plain text anybody on the way reads tokens");
  }
  if (files.chain.empty() || files.key.empty() || files.ca.empty()) {
    return absl::InvalidArgumentError("--cert, --key and --ca go together");
  }
  if (!absl::StrContains(options.names, kRole)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--names \"", options.names, "\" has no {role}: all programs would have the same name"));
  }
  std::shared_ptr<PeerTrust> trust(new PeerTrust);
  trust->names_ = options.names;
  TANDEM_ASSIGN_OR_RETURN(trust->certificates_, Watch(files));
  TANDEM_ASSIGN_OR_RETURN(trust->tokens_, WatchTokens(options.token_file));
  return trust;
}

std::string PeerTrust::NameOf(PeerRole role) const {
  return absl::StrReplaceAll(names_, {{kRole, RoleName(role)}});
}

std::shared_ptr<const ServerTrust> PeerTrust::ServerOf(PeerRole role) const {
  auto server = std::make_shared<ServerTrust>();
  server->certificates = certificates_;
  server->certificate_required = true;
  server->tokens = tokens_;
  switch (role) {
    case PeerRole::kGateway:
      server->rules = {
          {"/tandem.v1.Registry/Join", {NameOf(PeerRole::kAttention), NameOf(PeerRole::kExpert)}},
          {"/", {NameOf(PeerRole::kOperator)}}};
      break;
    case PeerRole::kAttention:
      server->rules = {{"/", {NameOf(PeerRole::kGateway)}}};
      break;
    case PeerRole::kExpert:
      server->rules = {{"/tandem.v1.ExpertWeights/", {NameOf(PeerRole::kExpert)}},
                       {"/", {NameOf(PeerRole::kAttention)}}};
      break;
    case PeerRole::kOperator:
      server->rules = {{"/", {}}};  // serves nobody
      break;
  }
  return server;
}

std::shared_ptr<const ClientTrust> PeerTrust::ClientOf(PeerRole server) const {
  return std::make_shared<ClientTrust>(certificates_, tokens_, NameOf(server));
}

void PublicTrustOptions::AddTo(CommandLine& app) {
  app.AddOption("--public-cert", certificate,
                "the certificate that clients see, in PEM; default: that of --cert");
  app.AddOption("--public-key", key, "its private key");
  app.AddOption("--client-ca", client_ca, "clients need a certificate from this CA");
  app.AddOption("--client-tokens", token_file,
                "clients need one of the tokens in this file, each in a line, maybe with a name "
                "before it");
}

absl::StatusOr<std::shared_ptr<const ServerTrust>> MakePublicTrust(
    const PublicTrustOptions& options, const PeerTrustOptions& peers) {
  CertificateFiles files{options.certificate, options.key, options.client_ca};
  if (files.chain.empty() && files.key.empty()) {
    files.chain = peers.files.chain;
    files.key = peers.files.key;
  }
  if (files.chain.empty() && files.key.empty()) {
    if (options.client_ca.empty() && options.token_file.empty()) return nullptr;
    return absl::InvalidArgumentError(
        absl::StrCat(options.client_ca.empty() ? "--client-tokens" : "--client-ca",
                     " needs --public-cert and --public-key"));
  }
  auto trust = std::make_shared<ServerTrust>();
  TANDEM_ASSIGN_OR_RETURN(trust->certificates, Watch(files));
  TANDEM_ASSIGN_OR_RETURN(trust->tokens, WatchTokens(options.token_file));
  trust->certificate_required = !options.client_ca.empty();
  return trust;
}

void ClientTrustOptions::AddTo(CommandLine& app) {
  app.AddFlag("--tls", tls, "encrypted, to a server that the system's CAs know");
  app.AddOption("--ca", files.ca, "encrypted, to a server whose certificate comes from this CA");
  app.AddOption("--cert", files.chain, "the certificate to show, in PEM");
  app.AddOption("--key", files.key, "its private key");
  app.AddOption("--token-file", token_file, "a file whose first token is shown");
  app.AddOption("--server-name", server_name,
                "the name that the server's certificate must have, if not the host in --server");
}

absl::StatusOr<std::shared_ptr<const ClientTrust>> MakeClientTrust(
    const ClientTrustOptions& options) {
  if (!options.encrypted()) {
    if (options.token_file.empty() && options.server_name.empty() && options.files.key.empty()) {
      return nullptr;
    }
    return absl::InvalidArgumentError(
        "--token-file, --server-name and --key need --tls or --ca: in plain text nobody's name can "
        "be checked, and anybody on the way reads tokens");
  }
  TANDEM_ASSIGN_OR_RETURN(auto certificates, Watch(options.files));
  TANDEM_ASSIGN_OR_RETURN(auto tokens, WatchTokens(options.token_file));
  const bool is_uri = absl::StrContains(options.server_name, "://");
  return std::make_shared<const ClientTrust>(std::move(certificates), std::move(tokens),
                                             is_uri ? options.server_name : "");
}

}  // namespace tandem
