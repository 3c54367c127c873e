// Secrets that a caller shows in its `authorization` metadata, "Bearer TOKEN", and their file.
#ifndef TANDEM_COMMON_SERVICE_BEARER_TOKENS_H_
#define TANDEM_COMMON_SERVICE_BEARER_TOKENS_H_

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

// The tokens of a file, at least one. A line is a token, or a name, space and a token; a name may
// have several, as it does while one replaces another. Empty lines and lines that begin with # are
// none. A token has 16 to 512 letters, digits and -._~+/=; at most 1,024 are in a file.
class BearerTokens {
 public:
  // No error has a token in its message.
  //   INVALID_ARGUMENT  a line that is none of these, with its number; or no token at all
  static absl::StatusOr<BearerTokens> Parse(absl::string_view text);
  //   NOT_FOUND, ...    the file cannot be read; likewise the above, with the file's name
  static absl::StatusOr<BearerTokens> ReadFile(const std::string& path);

  // Whose token this is; nothing if it is nobody's. Takes the same time wherever and whether it
  // agrees with one: digests are compared, and all of them.
  std::optional<std::string> NameOf(absl::string_view token) const;
  // What a client shows.
  const std::string& first() const { return first_; }

  bool operator==(const BearerTokens& other) const { return tokens_ == other.tokens_; }

 private:
  using Digest = std::array<unsigned char, 32>;  // SHA-256
  struct Token {
    std::string name;  // "token" where the file has none
    Digest digest;
    bool operator==(const Token& other) const {
      return name == other.name && digest == other.digest;
    }
  };
  static Digest DigestOf(absl::string_view token);

  std::string first_;
  std::vector<Token> tokens_;
};

// The token of an `authorization` value; nothing unless it is "Bearer TOKEN".
std::optional<absl::string_view> TokenOf(absl::string_view authorization);

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_BEARER_TOKENS_H_
