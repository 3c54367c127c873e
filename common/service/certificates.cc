#include "common/service/certificates.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <ctime>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

struct OpenSslDeleter {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(GENERAL_NAMES* names) const { GENERAL_NAMES_free(names); }
};
template <typename T>
using Owned = std::unique_ptr<T, OpenSslDeleter>;

Owned<BIO> Open(const std::string& pem) {
  return Owned<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// Never asks at a terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

absl::StatusOr<std::vector<Owned<X509>>> ParseCertificates(const std::string& file,
                                                           const std::string& pem) {
  std::vector<Owned<X509>> certificates;
  const Owned<BIO> bio = Open(pem);
  while (X509* const one = PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr)) {
    certificates.emplace_back(one);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end || certificates.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, certificates.empty() ? " has no certificate in PEM"
                                                : ": a certificate in it cannot be read"));
  }
  return certificates;
}

absl::Time ExpiryOf(const X509& certificate) {
  tm time{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &time) != 1) return absl::InfinitePast();
  return absl::FromTM(time, absl::UTCTimeZone());
}

std::vector<std::string> UrisOf(const X509& certificate) {
  std::vector<std::string> uris;
  const Owned<GENERAL_NAMES> names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr)));
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* const uri = name->d.uniformResourceIdentifier;
    uris.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                      static_cast<size_t>(ASN1_STRING_length(uri)));
  }
  return uris;
}

absl::Status CheckKey(const CertificateFiles& files, const std::string& pem, X509* certificate) {
  const Owned<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(Open(pem).get(), nullptr, NoPassphrase, nullptr));
  const bool fits = key != nullptr && X509_check_private_key(certificate, key.get()) == 1;
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(files.key, " has no private key in PEM without a passphrase"));
  }
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat("the key in ", files.key, " is not that of the certificate in ", files.chain));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Certificates> ReadCertificates(const CertificateFiles& files) {
  if (files.chain.empty() != files.key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a certificate and its key go together: there is only ", files.chain, files.key));
  }
  Certificates read;
  if (!files.chain.empty()) {
    TANDEM_ASSIGN_OR_RETURN(read.chain, ReadSmallFile(files.chain, kMaxFileBytes));
    TANDEM_ASSIGN_OR_RETURN(read.key, ReadSmallFile(files.key, kMaxFileBytes));
    TANDEM_ASSIGN_OR_RETURN(const auto chain, ParseCertificates(files.chain, read.chain));
    TANDEM_RETURN_IF_ERROR(CheckKey(files, read.key, chain.front().get()));
    read.expires = ExpiryOf(*chain.front());
    read.uris = UrisOf(*chain.front());
  }
  if (!files.ca.empty()) {
    TANDEM_ASSIGN_OR_RETURN(read.ca, ReadSmallFile(files.ca, kMaxFileBytes));
    TANDEM_RETURN_IF_ERROR(ParseCertificates(files.ca, read.ca).status());
  }
  return read;
}

}  // namespace tandem
