// What a server asks of its callers: certificates, names in them, tokens. Every server's
// credentials are made here.
#ifndef TANDEM_COMMON_SERVICE_SERVER_TRUST_H_
#define TANDEM_COMMON_SERVICE_SERVER_TRUST_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/service/bearer_tokens.h"
#include "common/service/certificates.h"
#include "common/service/reloaded.h"

namespace tandem {

// What a method's callers must be called, by a URI in their certificates.
struct CallRule {
  std::string method_prefix;  // "/tandem.v1.Registry/Join"; the first rule that fits counts
  std::vector<std::string> callers;
};

// What a server asks of its callers; whatever is set is asked of every call but health checks.
struct ServerTrust {
  std::shared_ptr<const Reloaded<Certificates>> certificates;  // the server's own; required
  bool certificate_required = false;                           // of callers, from a CA of these
  std::vector<CallRule> rules;                                 // empty: any name will do
  std::shared_ptr<const Reloaded<BearerTokens>> tokens;        // null: none is asked for
};

// A call as its server sees it, for CheckCall.
struct CallFacts {
  std::string method;  // "/tandem.v1.Inference/Generate"
  bool has_certificate = false;
  std::vector<std::string> uris;  // in the certificate
  std::optional<std::string> authorization;
};

// Whether `trust` lets the call in. Never says a token.
//   UNAUTHENTICATED    no certificate, no token, or nobody's token
//   PERMISSION_DENIED  the certificate has none of the names that may call the method
absl::Status CheckCall(const ServerTrust& trust, const CallFacts& call);

// Credentials of a server that takes new connections with the certificates of the moment and checks
// every call; plain text if `trust` is null. Connections stay as they were made.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    std::shared_ptr<const ServerTrust> trust);

// The address of a gRPC peer ("ipv4:10.0.0.1:5555", "ipv6:%5B2001:db8::1%5D:5555") without its
// port; of IPv6 the network of 64 bits, of which a client has all addresses.
std::string AddressOfPeer(absl::string_view peer);

// Who calls, for limits: the name of its token, a name in its certificate, or AddressOfPeer.
std::string CallerName(const ServerTrust* trust, const grpc::ServerContextBase& context);

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_SERVER_TRUST_H_
