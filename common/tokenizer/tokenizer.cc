#include "common/tokenizer/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/tokenizer/utf8.h"

namespace tandem {
namespace {

constexpr uintmax_t kMaxFileBytes = 256 << 20;
constexpr size_t kMaxTextBytes = size_t{1} << 30;  // offsets are 32-bit, Oniguruma's are signed

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  const uintmax_t num_bytes = std::filesystem::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  if (error) return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.message()));
  if (num_bytes > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", num_bytes, " bytes, more than the limit of ", kMaxFileBytes));
  }
  std::string content(num_bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), static_cast<std::streamsize>(num_bytes))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  return content;
}

absl::Status Annotate(absl::string_view where, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
}

// `name` tells whose text it is, for the message.
absl::Status CheckText(absl::string_view text, absl::string_view name) {
  if (text.size() >= kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", text.size(), " bytes, expected less than ", kMaxTextBytes));
  }
  const std::optional<size_t> invalid = FindInvalidUtf8(text);
  if (invalid.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is not valid UTF-8 at byte ", *invalid));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChatTemplate> MakeChatTemplate(const TokenizerConfig& config) {
  if (!config.chat_template.has_value()) {
    return absl::FailedPreconditionError(
        "the checkpoint has no chat template, so it serves completions but no chats");
  }
  TANDEM_ASSIGN_OR_RETURN(const ChatFormat format, RecognizeChatTemplate(*config.chat_template));
  if (!config.bos_token.has_value() || !config.eos_token.has_value()) {
    return absl::FailedPreconditionError(
        "the checkpoint has a chat template but not both of bos_token and eos_token");
  }
  return ChatTemplate(format, *config.bos_token, *config.eos_token);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(
    const std::string& checkpoint_dir) {
  const std::string tokenizer_path = absl::StrCat(checkpoint_dir, "/tokenizer.json");
  const std::string config_path = absl::StrCat(checkpoint_dir, "/tokenizer_config.json");
  TANDEM_ASSIGN_OR_RETURN(const std::string tokenizer_json, ReadFile(tokenizer_path));
  absl::StatusOr<std::string> config_json = ReadFile(config_path);
  if (absl::IsNotFound(config_json.status())) config_json = "";
  TANDEM_RETURN_IF_ERROR(config_json.status());
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Parse(tokenizer_json, *config_json);
  if (!tokenizer.ok()) return Annotate(checkpoint_dir, tokenizer.status());
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Parse(absl::string_view tokenizer_json,
                                                                  absl::string_view config_json) {
  absl::StatusOr<TokenizerFile> file = ParseTokenizerFile(tokenizer_json);
  if (!file.ok()) return Annotate("tokenizer.json", file.status());
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::Create(file->steps);
  if (!pre_tokenizer.ok()) return Annotate("tokenizer.json", pre_tokenizer.status());
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(*std::move(file), *std::move(pre_tokenizer)));
  if (!config_json.empty()) {
    absl::StatusOr<TokenizerConfig> config = ParseTokenizerConfig(config_json);
    if (!config.ok()) return Annotate("tokenizer_config.json", config.status());
    const absl::Status configured = tokenizer->Configure(*config);
    if (!configured.ok()) return Annotate("tokenizer_config.json", configured);
  }
  return std::unique_ptr<const Tokenizer>(std::move(tokenizer));
}

Tokenizer::Tokenizer(TokenizerFile file, PreTokenizer pre_tokenizer)
    : token_bytes_(std::move(file.token_bytes)),
      is_special_(token_bytes_.size(), false),
      pre_tokenizer_(std::move(pre_tokenizer)),
      bpe_(file.byte_ids, file.merges, token_bytes_),
      chat_template_(MakeChatTemplate(TokenizerConfig())) {
  for (const std::string& bytes : token_bytes_) {
    max_token_bytes_ = std::max(max_token_bytes_, bytes.size());
  }
  for (AddedToken& token : file.added_tokens) {
    is_special_[token.id] = token.special;
    const uint8_t first_byte = static_cast<uint8_t>(token.content[0]);
    added_tokens_[first_byte].push_back(std::move(token));
  }
  for (std::vector<AddedToken>& tokens : added_tokens_) {
    std::sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) {
      return a.content.size() > b.content.size();
    });
  }
}

absl::Status Tokenizer::Configure(const TokenizerConfig& config) {
  if (config.bos_token.has_value()) {
    TANDEM_ASSIGN_OR_RETURN(bos_id_, FindToken(*config.bos_token));
  }
  if (config.eos_token.has_value()) {
    TANDEM_ASSIGN_OR_RETURN(eos_id_, FindToken(*config.eos_token));
  }
  add_bos_ = config.add_bos;
  chat_template_ = MakeChatTemplate(config);
  return absl::OkStatus();
}

absl::StatusOr<int32_t> Tokenizer::FindToken(const std::string& content) const {
  if (!content.empty()) {
    for (const AddedToken& token : added_tokens_[static_cast<uint8_t>(content[0])]) {
      if (token.content == content) return token.id;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the token \"", content, "\" is not among tokenizer.json's added_tokens"));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       AddedTokens added_tokens,
                                                       bool add_bos) const {
  TANDEM_RETURN_IF_ERROR(CheckText(text, "text"));
  std::vector<int32_t> ids;
  if (add_bos) {
    if (!bos_id_.has_value()) {
      return absl::InvalidArgumentError("the checkpoint's tokenizer has no BOS token to add");
    }
    ids.push_back(*bos_id_);
  }
  if (added_tokens == AddedTokens::kMatch) {
    const ChatSegment segment = {std::string(text), /*is_template=*/true};
    TANDEM_RETURN_IF_ERROR(AppendSegments({&segment, 1}, &ids));
  } else {
    TANDEM_RETURN_IF_ERROR(AppendPlain(text, &ids));
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeChat(absl::Span<const ChatMessage> messages,
                                                           bool add_generation_prompt) const {
  TANDEM_RETURN_IF_ERROR(chat_template_.status());
  TANDEM_RETURN_IF_ERROR(ChatTemplate::Validate(messages));
  size_t total_bytes = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    total_bytes += messages[i].content.size();
    TANDEM_RETURN_IF_ERROR(
        CheckText(messages[i].content, absl::StrCat("the content of messages[", i, "]")));
  }
  if (total_bytes >= kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the messages have ", total_bytes,
                                                   " bytes, expected less than ", kMaxTextBytes));
  }
  std::vector<int32_t> ids;
  TANDEM_RETURN_IF_ERROR(
      AppendSegments(chat_template_->Render(messages, add_generation_prompt), &ids));
  return ids;
}

absl::Status Tokenizer::AppendSegments(absl::Span<const ChatSegment> segments,
                                       std::vector<int32_t>* ids) const {
  std::string plain;  // since the last added token
  std::vector<FoundToken> found;
  for (const ChatSegment& segment : segments) {
    const absl::string_view text = segment.text;
    found.clear();
    if (segment.is_template) FindAddedTokens(text, 0, /*normalized=*/false, &found);
    size_t begin = 0;
    for (const FoundToken& token : found) {
      plain.append(text.data() + begin, token.begin - begin);
      TANDEM_RETURN_IF_ERROR(AppendPlain(plain, ids));
      plain.clear();
      ids->push_back(token.id);
      begin = token.end;
    }
    plain.append(text.data() + begin, text.size() - begin);
  }
  return AppendPlain(plain, ids);
}

void Tokenizer::FindAddedTokens(absl::string_view text, size_t base, bool normalized,
                                std::vector<FoundToken>* found) const {
  size_t rest = 0;  // begin of what no token has taken
  const auto leave_rest = [&](size_t end) {
    if (!normalized) FindAddedTokens(text.substr(rest, end - rest), base + rest, true, found);
  };
  for (size_t i = 0; i < text.size(); ++i) {
    for (const AddedToken& token : added_tokens_[static_cast<uint8_t>(text[i])]) {
      if (token.normalized != normalized) continue;
      if (text.substr(i, token.content.size()) != absl::string_view(token.content)) continue;
      leave_rest(i);
      rest = i + token.content.size();
      found->push_back({base + i, base + rest, token.id});
      i = rest - 1;
      break;
    }
  }
  leave_rest(text.size());
}

absl::Status Tokenizer::AppendPlain(absl::string_view text, std::vector<int32_t>* ids) const {
  std::vector<uint32_t> ends;
  TANDEM_RETURN_IF_ERROR(pre_tokenizer_.Split(text, &ends));
  uint32_t begin = 0;
  for (const uint32_t end : ends) {
    bpe_.Encode(text.substr(begin, end - begin), ids);
    begin = end;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids,
                                              bool skip_special) const {
  std::string text;
  LossyUtf8Stream stream;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!HasToken(ids[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("ids[", i, "] is ", ids[i], ", which has no token"));
    }
    if (skip_special && IsSpecial(ids[i])) continue;
    stream.Append(TokenBytes(ids[i]), &text);
  }
  stream.Flush(&text);
  return text;
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return "";
  return token_bytes_[id];
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && is_special_[id];
}

}  // namespace tandem
