#include "common/tokenizer/tokenizer.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"
#include "common/tokenizer/utf8.h"

namespace tandem {
namespace {

constexpr size_t kMaxFileBytes = 256 << 20;
constexpr size_t kMaxTextBytes = size_t{1} << 30;  // offsets are 32-bit, Oniguruma's are signed

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

// An empty `json` stands for no such file.
absl::StatusOr<TokenizerConfig> ParseConfig(absl::string_view json) {
  if (json.empty()) return TokenizerConfig();
  absl::StatusOr<TokenizerConfig> config = ParseTokenizerConfig(json);
  if (!config.ok()) return Annotate("tokenizer_config.json", config.status());
  return config;
}

absl::StatusOr<ChatTemplate> MakeChatTemplate(const TokenizerConfig& config) {
  TANDEM_RETURN_IF_ERROR(config.chat_template.status());
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
  const auto read = [&](const char* name) {
    return ReadSmallFileIfThere(absl::StrCat(checkpoint_dir, "/", name), kMaxFileBytes);
  };
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::string> tokenizer_json, read("tokenizer.json"));
  if (!tokenizer_json.has_value()) {
    return absl::NotFoundError(absl::StrCat(checkpoint_dir, ": no tokenizer.json"));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::string> config_json,
                          read("tokenizer_config.json"));
  TANDEM_ASSIGN_OR_RETURN(std::optional<std::string> chat_template, read("chat_template.jinja"));
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::string> model_config, read("config.json"));
  const auto create = [&]() -> absl::StatusOr<std::unique_ptr<const Tokenizer>> {
    TANDEM_ASSIGN_OR_RETURN(TokenizerConfig config, ParseConfig(config_json.value_or("")));
    if (chat_template.has_value()) config.chat_template = *std::move(chat_template);
    return Create(*tokenizer_json, config, ParseBosId(model_config.value_or("")));
  };
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = create();
  if (!tokenizer.ok()) return Annotate(checkpoint_dir, tokenizer.status());
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Parse(absl::string_view tokenizer_json,
                                                                  absl::string_view config_json) {
  TANDEM_ASSIGN_OR_RETURN(const TokenizerConfig config, ParseConfig(config_json));
  return Create(tokenizer_json, config, std::nullopt);
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Create(
    absl::string_view tokenizer_json, const TokenizerConfig& config,
    std::optional<int32_t> config_bos_id) {
  absl::StatusOr<TokenizerFile> file = ParseTokenizerFile(tokenizer_json);
  if (!file.ok()) return Annotate("tokenizer.json", file.status());
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::Create(file->steps);
  if (!pre_tokenizer.ok()) return Annotate("tokenizer.json", pre_tokenizer.status());
  const std::optional<int32_t> template_bos = file->template_bos;
  const std::optional<int32_t> template_eos = file->template_eos;
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(*std::move(file), *std::move(pre_tokenizer)));
  const absl::Status configured =
      tokenizer->Configure(config, config_bos_id, template_bos, template_eos);
  if (!configured.ok()) return Annotate("tokenizer_config.json", configured);
  return std::unique_ptr<const Tokenizer>(std::move(tokenizer));
}

Tokenizer::Tokenizer(TokenizerFile file, PreTokenizer pre_tokenizer)
    : token_bytes_(std::move(file.token_bytes)),
      is_special_(token_bytes_.size(), false),
      added_tokens_(file.added_tokens),
      pre_tokenizer_(std::move(pre_tokenizer)),
      bpe_(file.byte_ids, file.merges, token_bytes_),
      chat_template_(MakeChatTemplate(TokenizerConfig())) {
  for (const std::string& bytes : token_bytes_) {
    max_token_bytes_ = std::max(max_token_bytes_, bytes.size());
  }
  for (const AddedToken& token : file.added_tokens) is_special_[token.id] = token.special;
  absl::flat_hash_set<int32_t> merged;
  for (const BpeMerge& merge : file.merges) merged.insert(merge.result);
  for (const AddedToken& token : file.added_tokens) {
    if (!merged.contains(token.id)) continue;
    std::vector<int32_t>& ids = spelled_out_[token.id];
    for (const char byte : token_bytes_[token.id]) {
      const int32_t id = file.byte_ids[static_cast<uint8_t>(byte)];
      if (id >= 0) ids.push_back(id);
    }
  }
}

absl::Status Tokenizer::Configure(const TokenizerConfig& config,
                                  std::optional<int32_t> config_bos_id,
                                  std::optional<int32_t> template_bos,
                                  std::optional<int32_t> template_eos) {
  const char* bos_source = "bos_token of tokenizer_config.json";
  if (config.bos_token.has_value()) {
    TANDEM_ASSIGN_OR_RETURN(bos_id_, FindToken(*config.bos_token));
  } else if (config_bos_id.has_value() && HasToken(*config_bos_id)) {
    bos_id_ = config_bos_id;
    bos_source = "bos_token_id of config.json";
  }
  if (config.eos_token.has_value()) {
    TANDEM_ASSIGN_OR_RETURN(eos_id_, FindToken(*config.eos_token));
  }
  const auto name = [&](int32_t id) { return absl::StrCat(id, " (", TokenBytes(id), ")"); };
  if (template_bos.has_value()) {
    bos_id_ = template_bos;
    add_bos_ = true;
    prompt_rule_ = absl::StrCat("text prompts begin with token ", name(*bos_id_),
                                ", as post_processor of tokenizer.json says");
  } else if (config.add_bos == true) {
    if (!bos_id_.has_value()) {
      return absl::UnimplementedError("add_bos_token is true, but there is no bos_token");
    }
    add_bos_ = true;
    prompt_rule_ = absl::StrCat("text prompts begin with token ", name(*bos_id_),
                                ", as add_bos_token of tokenizer_config.json says");
  } else if (config.add_bos == false) {
    prompt_rule_ = "text prompts get no BOS, as add_bos_token of tokenizer_config.json says";
  } else if (bos_id_.has_value()) {
    add_bos_ = true;
    prompt_rule_ = absl::StrCat("text prompts begin with token ", name(*bos_id_), ", which ",
                                bos_source, " names; no file says whether to add it");
  } else {
    prompt_rule_ = "text prompts get no BOS, since no file names one";
  }
  if (template_eos.has_value() || config.add_eos) {
    if (template_eos.has_value()) eos_id_ = template_eos;
    if (!eos_id_.has_value()) {
      return absl::UnimplementedError("add_eos_token is true, but there is no eos_token");
    }
    add_eos_ = true;
    absl::StrAppend(&prompt_rule_, "; they end with token ", name(*eos_id_), ", as ",
                    template_eos.has_value() ? "post_processor of tokenizer.json"
                                             : "add_eos_token of tokenizer_config.json",
                    " says");
  }
  chat_template_ = MakeChatTemplate(config);
  return absl::OkStatus();
}

absl::StatusOr<int32_t> Tokenizer::FindToken(const std::string& content) const {
  const AddedToken* token = added_tokens_.Find(content);
  if (token != nullptr) return token->id;
  return absl::UnimplementedError(
      absl::StrCat("the token \"", content, "\" is not among tokenizer.json's added_tokens"));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       AddedTokens added_tokens, bool add_bos,
                                                       bool add_eos,
                                                       const StopFunction& stop) const {
  TANDEM_RETURN_IF_ERROR(CheckText(text, "text"));
  std::vector<int32_t> ids;
  if (add_bos) {
    if (!bos_id_.has_value()) {
      return absl::InvalidArgumentError("the checkpoint's tokenizer has no BOS token to add");
    }
    ids.push_back(*bos_id_);
  }
  const TextRange whole = {0, static_cast<uint32_t>(text.size())};
  const size_t num_ranges = added_tokens == AddedTokens::kMatch ? 1 : 0;
  StopCheck check(stop);
  TANDEM_RETURN_IF_ERROR(AppendPieces(text, {&whole, num_ranges}, added_tokens, &check, &ids));
  if (add_eos) {
    if (!eos_id_.has_value()) {
      return absl::InvalidArgumentError("the checkpoint's tokenizer has no EOS token to add");
    }
    ids.push_back(*eos_id_);
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeChat(absl::Span<const ChatMessage> messages,
                                                           bool add_generation_prompt,
                                                           const StopFunction& stop,
                                                           std::vector<TokenRange>* turns) const {
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
  std::string text;
  std::vector<TextRange> ranges;  // of what the template writes
  std::vector<TextRange> turn_bytes;
  for (const ChatSegment& segment :
       chat_template_->Render(messages, add_generation_prompt, &turn_bytes)) {
    const uint32_t begin = static_cast<uint32_t>(text.size());
    text += segment.text;
    if (segment.is_template) ranges.push_back({begin, static_cast<uint32_t>(text.size())});
  }
  std::vector<int32_t> ids;
  StopCheck check(stop);
  std::vector<PieceStart> starts;
  TANDEM_RETURN_IF_ERROR(AppendPieces(text, ranges, AddedTokens::kPlain, &check, &ids, &starts));
  if (turns != nullptr) *turns = TokensOf(turn_bytes, starts, ids);
  return ids;
}

std::vector<TokenRange> Tokenizer::TokensOf(absl::Span<const TextRange> ranges,
                                            absl::Span<const PieceStart> starts,
                                            absl::Span<const int32_t> ids) const {
  std::vector<TokenRange> tokens;
  size_t end_byte = 0;  // of the token before
  auto start = starts.begin();
  auto range = ranges.begin();
  bool inside = false;  // the range has begun
  for (size_t i = 0; i < ids.size() && range != ranges.end(); ++i) {
    for (; start != starts.end() && start->token == i; ++start) end_byte = start->byte;
    end_byte += TokenBytes(ids[i]).size();
    while (range != ranges.end()) {
      if (!inside && range->begin >= end_byte) break;
      if (!inside) tokens.push_back({static_cast<int32_t>(i), static_cast<int32_t>(ids.size())});
      inside = range->end > end_byte;
      if (inside) break;
      tokens.back().end = static_cast<int32_t>(i) + 1;
      ++range;
    }
  }
  return tokens;
}

absl::Status Tokenizer::AppendPieces(absl::string_view text, absl::Span<const TextRange> ranges,
                                     AddedTokens between, StopCheck* stop,
                                     std::vector<int32_t>* ids,
                                     std::vector<PieceStart>* starts) const {
  const std::vector<AddedTokenSet::Piece> pieces = added_tokens_.Cut(text, ranges, stop);
  TANDEM_RETURN_IF_ERROR(stop->status());
  for (const AddedTokenSet::Piece& piece : pieces) {
    if (starts != nullptr) starts->push_back({static_cast<uint32_t>(piece.begin), ids->size()});
    if (piece.id == AddedTokenSet::kPlain) {
      TANDEM_RETURN_IF_ERROR(
          AppendText(text.substr(piece.begin, piece.end - piece.begin), between, stop, ids));
    } else {
      ids->push_back(piece.id);
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::AppendText(absl::string_view text, AddedTokens added_tokens,
                                   StopCheck* stop, std::vector<int32_t>* ids) const {
  std::vector<uint32_t> ends;
  TANDEM_RETURN_IF_ERROR(pre_tokenizer_.Split(text, &ends, stop));
  uint32_t begin = 0;
  const bool spells_out = added_tokens == AddedTokens::kPlain && !spelled_out_.empty();
  std::vector<int32_t> merged;
  for (const uint32_t end : ends) {
    const absl::string_view piece = text.substr(begin, end - begin);
    begin = end;
    if (!spells_out) {
      bpe_.Encode(piece, ids, stop);
      continue;
    }
    merged.clear();
    bpe_.Encode(piece, &merged, stop);
    for (const int32_t id : merged) {
      const auto spelled = spelled_out_.find(id);
      if (spelled == spelled_out_.end()) {
        ids->push_back(id);
      } else {
        ids->insert(ids->end(), spelled->second.begin(), spelled->second.end());
      }
    }
  }
  return stop->status();
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special,
                                              const StopFunction& stop) const {
  std::string text;
  StopCheck check(stop);
  LossyUtf8Stream stream;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!HasToken(ids[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("ids[", i, "] is ", ids[i], ", which has no token"));
    }
    if (check.After(TokenBytes(ids[i]).size())) return check.status();
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
