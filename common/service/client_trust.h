// How a client proves who it is, and what it asks of a server. Every channel's credentials are made
// here.
#ifndef TANDEM_COMMON_SERVICE_CLIENT_TRUST_H_
#define TANDEM_COMMON_SERVICE_CLIENT_TRUST_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "common/service/bearer_tokens.h"
#include "common/service/certificates.h"
#include "common/service/reloaded.h"

namespace tandem {

// Thread-safe.
class ClientTrust {
 public:
  // `tokens` may be null. `server_name` is the URI that the server's certificate must have; empty:
  // the host that is dialled, among its DNS names and addresses.
  ClientTrust(std::shared_ptr<const Reloaded<Certificates>> certificates,
              std::shared_ptr<const Reloaded<BearerTokens>> tokens, std::string server_name);

  // With the certificates of the moment, for one channel; the token is looked up at every call.
  std::shared_ptr<grpc::ChannelCredentials> Credentials() const;
  // Differs whenever Credentials would: a channel that has been there for long should be made anew
  // before it connects again.
  std::shared_ptr<const void> version() const;

 private:
  const std::shared_ptr<const Reloaded<Certificates>> certificates_;
  const std::shared_ptr<const Reloaded<BearerTokens>> tokens_;
  const std::string server_name_;
  const std::shared_ptr<grpc::experimental::CertificateVerifier> verifier_;
};

// Plain text if `trust` is null.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const ClientTrust* trust);

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_CLIENT_TRUST_H_
