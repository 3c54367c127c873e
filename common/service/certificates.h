// What a process shows of itself and whom it believes: a certificate with its key, and the CAs that
// others' certificates must come from.
#ifndef TANDEM_COMMON_SERVICE_CERTIFICATES_H_
#define TANDEM_COMMON_SERVICE_CERTIFICATES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace tandem {

// Files in PEM; an empty path is none.
struct CertificateFiles {
  std::string chain;  // the certificate, and those between it and a CA
  std::string key;    // of the certificate; without a passphrase
  std::string ca;     // whom to believe, one or several
};

// Their content, in PEM, empty where there is no file.
struct Certificates {
  std::string chain;
  std::string key;
  std::string ca;
  absl::Time expires = absl::InfiniteFuture();  // of the certificate
  std::vector<std::string> uris;                // names in the certificate

  bool operator==(const Certificates& other) const {
    return chain == other.chain && key == other.key && ca == other.ca;
  }
};

// Reads and checks them: what is returned gRPC can use.
//   NOT_FOUND         a file is missing
//   INVALID_ARGUMENT  a file is not what it should be, the key is another certificate's, or one of
//                     the two is missing
// A certificate that is not valid now is no error, since it would keep a server from starting whose
// clock is wrong; peers refuse it.
absl::StatusOr<Certificates> ReadCertificates(const CertificateFiles& files);

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_CERTIFICATES_H_
