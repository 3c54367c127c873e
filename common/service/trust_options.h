// The flags about trust, and what comes of them: for a deployment's programs among each other, and
// for a gateway's clients.
#ifndef TANDEM_COMMON_SERVICE_TRUST_OPTIONS_H_
#define TANDEM_COMMON_SERVICE_TRUST_OPTIONS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/command_line.h"
#include "common/service/certificates.h"
#include "common/service/client_trust.h"
#include "common/service/server_trust.h"

namespace tandem {

// What a program is in a deployment; each has a name of its own in its certificate.
enum class PeerRole : uint8_t { kGateway, kAttention, kExpert, kOperator };

// Between the programs: mutual TLS with one CA for all of them, and tokens besides if wanted.
struct PeerTrustOptions {
  CertificateFiles files;                        // all three, or none: plain text
  std::string names = "spiffe://tandem/{role}";  // {role}: gateway, attention, expert, operator
  std::string token_file;                        // empty: no tokens

  // --cert, --key, --ca, --names, --token-file.
  void AddTo(CommandLine& app);
};

class PeerTrust {
 public:
  // Null for plain text.
  //   INVALID_ARGUMENT  only some of the three files; a token without them; names without {role};
  //                     a file that is none
  //   NOT_FOUND         a file is missing
  static absl::StatusOr<std::shared_ptr<const PeerTrust>> Create(const PeerTrustOptions& options);

  // Attention workers take gateways' calls, expert workers attention workers' and, for weights,
  // each other's; `kGateway` stands for its registry, where workers join and operators drain.
  std::shared_ptr<const ServerTrust> ServerOf(PeerRole role) const;
  // Of who calls a server of that role.
  std::shared_ptr<const ClientTrust> ClientOf(PeerRole server) const;

 private:
  PeerTrust() = default;
  std::string NameOf(PeerRole role) const;

  std::string names_;
  std::shared_ptr<const Reloaded<Certificates>> certificates_;
  std::shared_ptr<const Reloaded<BearerTokens>> tokens_;
};

// What a gateway shows its clients and asks of them.
struct PublicTrustOptions {
  std::string certificate;  // empty: that of PeerTrustOptions
  std::string key;
  std::string client_ca;   // clients need a certificate from it; empty: they need none
  std::string token_file;  // clients need one of these tokens; empty: they need none

  // --public-cert, --public-key, --client-ca, --client-tokens.
  void AddTo(CommandLine& app);
};

// Null for plain text. Errors: as PeerTrust::Create.
absl::StatusOr<std::shared_ptr<const ServerTrust>> MakePublicTrust(
    const PublicTrustOptions& options, const PeerTrustOptions& peers);

// What a person's client shows a server and asks of it.
struct ClientTrustOptions {
  bool tls = false;        // believes in the system's CAs
  CertificateFiles files;  // any of them: TLS
  std::string token_file;
  std::string server_name;  // that the certificate must have; empty: the host that is dialled

  // --tls, --ca, --cert, --key, --token-file, --server-name.
  void AddTo(CommandLine& app);
  bool encrypted() const { return tls || !files.ca.empty() || !files.chain.empty(); }
};

// Null for plain text. A name that is a URI is looked for among the certificate's URIs, any other
// is to be set as the channel's (SetSslTargetNameOverride).
//   INVALID_ARGUMENT  a token or a name without TLS, and as above
absl::StatusOr<std::shared_ptr<const ClientTrust>> MakeClientTrust(
    const ClientTrustOptions& options);

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_TRUST_OPTIONS_H_
