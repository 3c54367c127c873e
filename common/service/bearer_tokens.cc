#include "common/service/bearer_tokens.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr size_t kMinTokenBytes = 16;
constexpr size_t kMaxTokenBytes = 512;
constexpr size_t kMaxTokens = 1024;
constexpr size_t kMaxFileBytes = 1 << 20;

bool IsToken(absl::string_view text) {
  return text.size() >= kMinTokenBytes && text.size() <= kMaxTokenBytes &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  absl::StrContains("-._~+/=", c);
         });
}

bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c));
  });
}

}  // namespace

BearerTokens::Digest BearerTokens::DigestOf(absl::string_view token) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

absl::StatusOr<BearerTokens> BearerTokens::Parse(absl::string_view text) {
  BearerTokens tokens;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() > 2 || !IsToken(words.back()) || !IsName(words.front())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", number, " is neither a token of ", kMinTokenBytes, " to ", kMaxTokenBytes,
          " letters, digits and -._~+/= nor a name, a space and such a token"));
    }
    if (tokens.tokens_.size() == kMaxTokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("there are more than ", kMaxTokens, " tokens"));
    }
    if (tokens.tokens_.empty()) tokens.first_ = std::string(words.back());
    tokens.tokens_.push_back(
        {words.size() == 2 ? std::string(words[0]) : "token", DigestOf(words.back())});
  }
  if (tokens.tokens_.empty()) return absl::InvalidArgumentError("there is no token");
  return tokens;
}

absl::StatusOr<BearerTokens> BearerTokens::ReadFile(const std::string& path) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxFileBytes));
  absl::StatusOr<BearerTokens> tokens = Parse(text);
  if (tokens.ok()) return tokens;
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", tokens.status().message()));
}

std::optional<std::string> BearerTokens::NameOf(absl::string_view token) const {
  const Digest digest = DigestOf(token);
  const Token* found = nullptr;
  for (const Token& candidate : tokens_) {
    if (CRYPTO_memcmp(candidate.digest.data(), digest.data(), digest.size()) == 0) {
      found = &candidate;
    }
  }
  if (found == nullptr) return std::nullopt;
  return found->name;
}

std::optional<absl::string_view> TokenOf(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return std::nullopt;
  return absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
}

}  // namespace tandem
