#include "common/service/server_trust.h"

#include <arpa/inet.h>
#include <grpc/grpc_security.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "common/service/grpc_status.h"

namespace tandem {
namespace {

// Health checks come from machines that know nobody's secrets, and say next to nothing.
constexpr char kHealth[] = "/grpc.health.v1.Health/";
constexpr char kAuthorization[] = "authorization";

absl::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

std::vector<std::string> PropertyOf(const grpc_auth_context* context, const char* name) {
  std::vector<std::string> values;
  auto it = grpc_auth_context_find_properties_by_name(context, name);
  while (const grpc_auth_property* const property = grpc_auth_property_iterator_next(&it)) {
    values.emplace_back(property->value, property->value_length);
  }
  return values;
}

CallFacts FactsOf(const grpc_auth_context* context, const grpc_metadata* metadata, size_t count) {
  CallFacts call;
  call.has_certificate = !PropertyOf(context, GRPC_X509_PEM_CERT_PROPERTY_NAME).empty();
  call.uris = PropertyOf(context, GRPC_PEER_URI_PROPERTY_NAME);
  for (size_t i = 0; i < count; ++i) {
    const absl::string_view key = View(metadata[i].key);
    if (key == ":path") call.method = std::string(View(metadata[i].value));
    if (key == kAuthorization) call.authorization = std::string(View(metadata[i].value));
  }
  return call;
}

// gRPC's C++ classes read certificates once, or, those that watch files, destroy what connections
// still use when a file is no good. The functions below them ask for certificates at every
// connection and stay with what they had.
class WatchingServerCredentials : public grpc::ServerCredentials {
 public:
  explicit WatchingServerCredentials(std::shared_ptr<const ServerTrust> trust) {
    const bool asks = trust->certificate_required;
    // Of gRPC, which calls both functions below and then the one that destroys it.
    auto* const state = new State{std::move(trust), nullptr};
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            // A certificate that is missing is a matter of CheckCall, which can say so.
            asks ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                 : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            Fetch, state));
    grpc_server_credentials_set_auth_metadata_processor(credentials_, {Process, Destroy, state});
  }
  ~WatchingServerCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    TANDEM_CHECK(false);  // it has one
  }

 private:
  struct State {
    const std::shared_ptr<const ServerTrust> trust;
    std::shared_ptr<const Certificates> given;  // guarded by gRPC
  };

  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  static grpc_ssl_certificate_config_reload_status Fetch(
      void* user_data, grpc_ssl_server_certificate_config** config) {
    State& state = *static_cast<State*>(user_data);
    std::shared_ptr<const Certificates> now = state.trust->certificates->Get();
    if (now == state.given) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {now->key.c_str(), now->chain.c_str()};
    // There must be some CA (1.51 ends the process without); nothing is asked of clients with it.
    const std::string& ca = state.trust->certificate_required ? now->ca : now->chain;
    *config = grpc_ssl_server_certificate_config_create(ca.c_str(), &pair, 1);
    state.given = std::move(now);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  static void Process(void* user_data, grpc_auth_context* context, const grpc_metadata* metadata,
                      size_t count, grpc_process_auth_metadata_done_cb done, void* done_data) {
    const State& state = *static_cast<const State*>(user_data);
    const grpc::Status status = ToGrpc(CheckCall(*state.trust, FactsOf(context, metadata, count)));
    done(done_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.error_code()),
         status.error_message().c_str());
  }

  static void Destroy(void* user_data) { delete static_cast<State*>(user_data); }

  grpc_server_credentials* credentials_;
};

}  // namespace

absl::Status CheckCall(const ServerTrust& trust, const CallFacts& call) {
  if (absl::StartsWith(call.method, kHealth)) return absl::OkStatus();
  if (trust.certificate_required && !call.has_certificate) {
    return absl::UnauthenticatedError("a client certificate is required and there is none");
  }
  if (!trust.rules.empty()) {
    const auto rule =
        std::find_if(trust.rules.begin(), trust.rules.end(), [&](const CallRule& candidate) {
          return absl::StartsWith(call.method, candidate.method_prefix);
        });
    const auto allows = [&](const std::string& uri) {
      return std::find(rule->callers.begin(), rule->callers.end(), uri) != rule->callers.end();
    };
    if (rule == trust.rules.end() || std::none_of(call.uris.begin(), call.uris.end(), allows)) {
      return absl::PermissionDeniedError(absl::StrCat(
          call.uris.empty() ? "a certificate without a URI" : absl::StrJoin(call.uris, ", "),
          " may not call ", call.method,
          rule == trust.rules.end() ? ""
                                    : absl::StrCat(", but ", absl::StrJoin(rule->callers, ", "))));
    }
  }
  if (trust.tokens == nullptr) return absl::OkStatus();
  if (!call.authorization.has_value()) {
    return absl::UnauthenticatedError("a token is required and there is none");
  }
  const auto token = TokenOf(*call.authorization);
  if (!token.has_value()) {
    return absl::UnauthenticatedError("the authorization is not \"Bearer TOKEN\"");
  }
  if (!trust.tokens->Get()->NameOf(*token).has_value()) {
    return absl::UnauthenticatedError("the token is not one of this server's");
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    std::shared_ptr<const ServerTrust> trust) {
  if (trust == nullptr) return grpc::InsecureServerCredentials();
  return std::make_shared<WatchingServerCredentials>(std::move(trust));
}

std::string AddressOfPeer(absl::string_view peer) {
  const absl::string_view host = peer.substr(0, peer.rfind(':'));
  if (!absl::StartsWith(host, "ipv6:")) return std::string(host);
  const std::string text =
      absl::StrReplaceAll(host.substr(5), {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
  in6_addr address{};
  if (inet_pton(AF_INET6, text.substr(0, text.find('%')).c_str(), &address) != 1) {
    return std::string(host);
  }
  std::fill_n(address.s6_addr + 8, 8, uint8_t{0});
  char network[INET6_ADDRSTRLEN] = {};
  inet_ntop(AF_INET6, &address, network, sizeof(network));
  return absl::StrCat("ipv6:", network, "/64");
}

std::string CallerName(const ServerTrust* trust, const grpc::ServerContextBase& context) {
  if (trust != nullptr && trust->tokens != nullptr) {
    const auto found = context.client_metadata().find(kAuthorization);
    if (found != context.client_metadata().end()) {
      const auto token = TokenOf({found->second.data(), found->second.size()});
      if (token.has_value()) {
        if (const auto name = trust->tokens->Get()->NameOf(*token)) return *name;
      }
    }
  }
  if (trust != nullptr && trust->certificate_required) {
    for (const char* property :
         {GRPC_PEER_URI_PROPERTY_NAME, GRPC_PEER_DNS_PROPERTY_NAME, GRPC_X509_CN_PROPERTY_NAME}) {
      const auto names = context.auth_context()->FindPropertyValues(property);
      if (!names.empty()) return std::string(names[0].data(), names[0].size());
    }
  }
  return AddressOfPeer(context.peer());
}

}  // namespace tandem
