#include "common/tokenizer/tokenizer_file.h"

#include <cstddef>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/tokenizer/byte_symbols.h"

namespace tandem {
namespace {

using Json = nlohmann::json;
using Vocab = absl::flat_hash_map<absl::string_view, int32_t>;

// Limits on what an untrusted file can make this process allocate or search through.
constexpr uint64_t kMaxTokenId = (1 << 20) - 1;
constexpr size_t kMaxAddedTokens = 4096;
constexpr size_t kMaxAddedTokenBytes = 1024;
constexpr size_t kMaxPreTokenizerSteps = 64;

absl::Status Malformed(absl::string_view what) { return absl::InvalidArgumentError(what); }

absl::Status Unsupported(absl::string_view what) { return absl::UnimplementedError(what); }

// The member of that name; nullptr if it is absent or null.
const Json* Find(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// True if the member is absent, null, or equal to `value`.
bool IsAbsentOr(const Json& object, const char* name, const Json& value) {
  const Json* member = Find(object, name);
  return member == nullptr || *member == value;
}

// For the values that an error message quotes. Dumping arrays and objects would recurse as deep as
// the file nests them.
std::string Dump(const Json& value) {
  if (value.is_structured()) return absl::StrCat("an ", value.type_name());
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > 100) text = absl::StrCat(text.substr(0, 100), "...");
  return text;
}

std::string TypeOf(const Json& object) {
  const Json* type = object.is_object() ? Find(object, "type") : nullptr;
  return type != nullptr && type->is_string() ? type->get<std::string>() : "(none)";
}

// Absent and null are nullopt.
absl::StatusOr<std::optional<bool>> ReadOptionalFlag(const Json& object, const char* name) {
  const Json* member = Find(object, name);
  if (member == nullptr) return std::nullopt;
  if (!member->is_boolean()) {
    return Malformed(absl::StrCat(name, " is ", Dump(*member), ", expected true or false"));
  }
  return member->get<bool>();
}

absl::StatusOr<bool> ReadFlag(const Json& object, const char* name) {
  TANDEM_ASSIGN_OR_RETURN(const std::optional<bool> flag, ReadOptionalFlag(object, name));
  return flag.value_or(false);
}

absl::StatusOr<int32_t> ReadTokenId(const Json& value, absl::string_view what) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > kMaxTokenId) {
    return Malformed(absl::StrCat(what, " has the id ", Dump(value),
                                  ", expected an integer from 0 to ", kMaxTokenId));
  }
  return static_cast<int32_t>(value.get<uint64_t>());
}

absl::StatusOr<PreTokenizerStep> ReadSplit(const Json& step) {
  const Json* pattern = Find(step, "pattern");
  if (pattern == nullptr || !pattern->is_object() || pattern->size() != 1) {
    return Malformed("a Split of pre_tokenizer has no pattern");
  }
  const Json* regex = Find(*pattern, "Regex");
  if (regex == nullptr || !regex->is_string()) {
    return Unsupported(
        absl::StrCat("pre_tokenizer splits by ", Dump(*pattern), "; only a Regex is supported"));
  }
  const Json* behavior = Find(step, "behavior");
  if (behavior == nullptr || *behavior != "Isolated" || !IsAbsentOr(step, "invert", false)) {
    return Unsupported(
        "a Split of pre_tokenizer is not \"behavior\": \"Isolated\", \"invert\": false");
  }
  return PreTokenizerStep{PreTokenizerStep::Kind::kSplit, regex->get<std::string>()};
}

absl::StatusOr<std::vector<PreTokenizerStep>> ReadPreTokenizer(const Json& root) {
  const Json* sequence = Find(root, "pre_tokenizer");
  const Json* members = sequence != nullptr && TypeOf(*sequence) == "Sequence"
                            ? Find(*sequence, "pretokenizers")
                            : nullptr;
  if (members == nullptr || !members->is_array() || members->empty()) {
    return Unsupported("pre_tokenizer is not a Sequence of Split, Digits and ByteLevel");
  }
  if (members->size() > kMaxPreTokenizerSteps) {
    return Malformed(absl::StrCat("pre_tokenizer has ", members->size(), " steps, more than ",
                                  kMaxPreTokenizerSteps));
  }
  std::vector<PreTokenizerStep> steps;
  for (size_t i = 0; i < members->size(); ++i) {
    const Json& step = (*members)[i];
    const std::string type = TypeOf(step);
    const bool is_last = i + 1 == members->size();
    if ((type == "ByteLevel") != is_last) {
      return Unsupported(absl::StrCat("step ", i, " of pre_tokenizer is ", type,
                                      "; the last step and no other must be ByteLevel"));
    }
    if (type == "Split") {
      TANDEM_ASSIGN_OR_RETURN(PreTokenizerStep split, ReadSplit(step));
      steps.push_back(std::move(split));
    } else if (type == "Digits") {
      if (IsAbsentOr(step, "individual_digits", false)) {
        return Unsupported("Digits of pre_tokenizer is not \"individual_digits\": true");
      }
      steps.push_back({PreTokenizerStep::Kind::kDigits, ""});
    } else if (type == "ByteLevel") {
      const Json* use_regex = Find(step, "use_regex");
      if (!IsAbsentOr(step, "add_prefix_space", false) || use_regex == nullptr ||
          *use_regex != false) {
        return Unsupported(
            "ByteLevel of pre_tokenizer is not \"add_prefix_space\": false, \"use_regex\": false");
      }
    } else {
      return Unsupported(absl::StrCat("step ", i, " of pre_tokenizer is ", type,
                                      "; Split, Digits and ByteLevel are supported"));
    }
  }
  return steps;
}

// What surrounds the model in the pipeline.
absl::Status CheckPipeline(const Json& root) {
  const Json* normalizer = Find(root, "normalizer");
  if (normalizer != nullptr) {
    const Json* members =
        TypeOf(*normalizer) == "Sequence" ? Find(*normalizer, "normalizers") : nullptr;
    if (members == nullptr || !members->is_array() || !members->empty()) {
      return Unsupported(absl::StrCat("normalizer is ", TypeOf(*normalizer),
                                      "; only null or an empty Sequence is supported"));
    }
  }
  const Json* decoder = Find(root, "decoder");
  if (decoder == nullptr || TypeOf(*decoder) != "ByteLevel") {
    return Unsupported("decoder is not ByteLevel");
  }
  for (const char* name : {"truncation", "padding"}) {
    if (Find(root, name) != nullptr) {
      return Unsupported(absl::StrCat(name, " is set; only null is supported"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckModel(const Json& model) {
  if (TypeOf(model) != "BPE") {
    return Unsupported(absl::StrCat("model is ", TypeOf(model), "; only BPE is supported"));
  }
  const std::pair<const char*, Json> settings[] = {
      {"dropout", 0.0},           {"unk_token", nullptr},   {"continuing_subword_prefix", ""},
      {"end_of_word_suffix", ""}, {"byte_fallback", false}, {"ignore_merges", false}};
  for (const auto& [name, value] : settings) {
    if (IsAbsentOr(model, name, value)) continue;
    return Unsupported(
        absl::StrCat("model.", name, " is ", Dump(*Find(model, name)), ", which is not supported"));
  }
  return absl::OkStatus();
}

// Fills token_bytes and byte_ids; the views of the result live as long as `model`.
absl::StatusOr<Vocab> ReadVocab(const Json& model, TokenizerFile* file) {
  const Json* members = Find(model, "vocab");
  if (members == nullptr || !members->is_object() || members->empty()) {
    return Malformed("model.vocab is not an object of tokens and ids");
  }
  Vocab vocab;
  vocab.reserve(members->size());
  for (const auto& [token, value] : members->items()) {
    if (token.empty()) return Malformed("model.vocab has an empty token");
    TANDEM_ASSIGN_OR_RETURN(const int32_t id,
                            ReadTokenId(value, absl::StrCat("token \"", token, "\"")));
    if (static_cast<size_t>(id) >= file->token_bytes.size()) file->token_bytes.resize(id + 1);
    if (!file->token_bytes[id].empty()) {
      return Malformed(absl::StrCat("model.vocab gives the id ", id, " to two tokens"));
    }
    file->token_bytes[id] = TokenToBytes(token);
    vocab.emplace(token, id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = vocab.find(ByteSymbol(static_cast<uint8_t>(byte)));
    file->byte_ids[byte] = found == vocab.end() ? -1 : found->second;
  }
  return vocab;
}

// A merge is "left right", or ["left", "right"] in newer files.
absl::StatusOr<std::pair<std::string, std::string>> ReadPair(const Json& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::make_pair(merge[0].get<std::string>(), merge[1].get<std::string>());
  }
  if (merge.is_string()) {
    const std::string& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::make_pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return Malformed("is no pair of tokens");
}

absl::Status ReadMerges(const Json& model, const Vocab& vocab, TokenizerFile* file) {
  const Json* members = Find(model, "merges");
  if (members == nullptr || !members->is_array()) return Malformed("model.merges is not an array");
  file->merges.reserve(members->size());
  for (size_t rank = 0; rank < members->size(); ++rank) {
    const auto pair = ReadPair((*members)[rank]);
    if (!pair.ok()) {
      return Malformed(absl::StrCat("model.merges[", rank, "] ", pair.status().message()));
    }
    const auto left = vocab.find(pair->first);
    const auto right = vocab.find(pair->second);
    const auto result = vocab.find(absl::StrCat(pair->first, pair->second));
    if (left == vocab.end() || right == vocab.end() || result == vocab.end()) {
      return Malformed(absl::StrCat("model.merges[", rank, "] joins \"", pair->first, "\" and \"",
                                    pair->second, "\", which with their result are not all in ",
                                    "model.vocab"));
    }
    file->merges.push_back({left->second, right->second, result->second});
  }
  return absl::OkStatus();
}

// The one id that `name` of a TemplateProcessing stands for.
absl::StatusOr<int32_t> ReadTemplateToken(const Json& processor, const std::string& name,
                                          const TokenizerFile& file) {
  const std::string what = absl::StrCat("the token \"", name, "\" of post_processor's template");
  const Json* tokens = Find(processor, "special_tokens");
  const Json* token =
      tokens != nullptr && tokens->is_object() ? Find(*tokens, name.c_str()) : nullptr;
  const Json* ids = token != nullptr && token->is_object() ? Find(*token, "ids") : nullptr;
  if (ids == nullptr || !ids->is_array() || ids->empty()) {
    return Malformed(absl::StrCat(what, " is not among its special_tokens"));
  }
  if (ids->size() != 1) {
    return Unsupported(absl::StrCat(what, " has ", ids->size(), " ids; one is supported"));
  }
  TANDEM_ASSIGN_OR_RETURN(const int32_t id, ReadTokenId((*ids)[0], what));
  if (static_cast<size_t>(id) >= file.token_bytes.size() || file.token_bytes[id].empty()) {
    return Malformed(absl::StrCat(what, " has the id ", id, ", which has no token"));
  }
  return id;
}

// A template for one text: at most one token, the text, at most one token.
absl::Status ReadTemplate(const Json& processor, TokenizerFile* file) {
  const Json* single = Find(processor, "single");
  if (single == nullptr || !single->is_array()) {
    return Malformed("post_processor is TemplateProcessing, but its \"single\" is not an array");
  }
  bool has_text = false;
  for (const Json& piece : *single) {
    const Json* token = piece.is_object() ? Find(piece, "SpecialToken") : nullptr;
    const Json* name = token != nullptr && token->is_object() ? Find(*token, "id") : nullptr;
    const bool is_text = piece.is_object() && Find(piece, "Sequence") != nullptr;
    std::optional<int32_t>& id = has_text ? file->template_eos : file->template_bos;
    if (is_text ? has_text : name == nullptr || !name->is_string() || id.has_value()) {
      return Unsupported(
          "post_processor's template is not one text with at most one token before and one behind");
    }
    has_text |= is_text;
    if (!is_text) {
      TANDEM_ASSIGN_OR_RETURN(id, ReadTemplateToken(processor, name->get<std::string>(), *file));
    }
  }
  if (!has_text) return Unsupported("post_processor's template leaves out the text");
  return absl::OkStatus();
}

// ByteLevel only moves offsets, which nothing here uses. Requires the tokens to be read.
absl::Status ReadPostProcessor(const Json& root, TokenizerFile* file) {
  const Json* post_processor = Find(root, "post_processor");
  if (post_processor == nullptr) return absl::OkStatus();
  std::vector<const Json*> members = {post_processor};
  if (TypeOf(*post_processor) == "Sequence") {
    const Json* processors = Find(*post_processor, "processors");
    if (processors == nullptr || !processors->is_array()) {
      return Malformed("post_processor is a Sequence, but its \"processors\" is not an array");
    }
    members.clear();
    for (const Json& processor : *processors) members.push_back(&processor);
  }
  bool has_template = false;
  for (const Json* member : members) {
    const std::string type = TypeOf(*member);
    if (type == "TemplateProcessing" && !has_template) {
      TANDEM_RETURN_IF_ERROR(ReadTemplate(*member, file));
      has_template = true;
    } else if (type != "ByteLevel") {
      return Unsupported(absl::StrCat("post_processor has ", type,
                                      has_template ? " after a template" : "",
                                      "; ByteLevel and one TemplateProcessing are supported"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<AddedToken> ReadAddedToken(const Json& token) {
  const Json* content = token.is_object() ? Find(token, "content") : nullptr;
  const Json* id = token.is_object() ? Find(token, "id") : nullptr;
  if (content == nullptr || !content->is_string() || id == nullptr) {
    return Malformed("an entry of added_tokens has no id or no content");
  }
  AddedToken added;
  added.content = content->get<std::string>();
  if (added.content.empty() || added.content.size() > kMaxAddedTokenBytes) {
    return Malformed(absl::StrCat("an added token has ", added.content.size(),
                                  " bytes, expected 1 to ", kMaxAddedTokenBytes));
  }
  TANDEM_ASSIGN_OR_RETURN(
      added.id, ReadTokenId(*id, absl::StrCat("the added token \"", added.content, "\"")));
  TANDEM_ASSIGN_OR_RETURN(added.single_word, ReadFlag(token, "single_word"));
  TANDEM_ASSIGN_OR_RETURN(added.lstrip, ReadFlag(token, "lstrip"));
  TANDEM_ASSIGN_OR_RETURN(added.rstrip, ReadFlag(token, "rstrip"));
  TANDEM_ASSIGN_OR_RETURN(added.special, ReadFlag(token, "special"));
  TANDEM_ASSIGN_OR_RETURN(added.normalized, ReadFlag(token, "normalized"));
  return added;
}

absl::Status ReadAddedTokens(const Json& root, const Vocab& vocab, TokenizerFile* file) {
  const Json* members = Find(root, "added_tokens");
  if (members == nullptr) return absl::OkStatus();
  if (!members->is_array() || members->size() > kMaxAddedTokens) {
    return Malformed(
        absl::StrCat("added_tokens is not an array of at most ", kMaxAddedTokens, " tokens"));
  }
  absl::flat_hash_map<std::string, int32_t> contents;
  for (const Json& member : *members) {
    TANDEM_ASSIGN_OR_RETURN(AddedToken added, ReadAddedToken(member));
    if (!contents.emplace(added.content, added.id).second) {
      return Malformed(absl::StrCat("added_tokens has \"", added.content, "\" twice"));
    }
    const size_t index = added.id;
    if (index >= file->token_bytes.size()) file->token_bytes.resize(index + 1);
    const auto in_vocab = vocab.find(added.content);
    const bool is_same = in_vocab != vocab.end() && in_vocab->second == added.id;
    if (!is_same && (in_vocab != vocab.end() || !file->token_bytes[index].empty())) {
      return Malformed(absl::StrCat("the added token \"", added.content, "\" with the id ",
                                    added.id, " contradicts another token"));
    }
    file->token_bytes[index] = TokenToBytes(added.content);
    file->added_tokens.push_back(std::move(added));
  }
  return absl::OkStatus();
}

// A token's text is a string, or an object with its content.
absl::StatusOr<std::optional<std::string>> ReadTokenText(const Json& root, const char* name) {
  const Json* member = Find(root, name);
  if (member == nullptr) return std::nullopt;
  if (member->is_object()) member = Find(*member, "content");
  if (member == nullptr || !member->is_string()) {
    return Malformed(absl::StrCat(name, " is neither a string nor an object with a content"));
  }
  return member->get<std::string>();
}

// A chat template, or the one called "default" of several: [{"name": ..., "template": ...}] or
// {name: template}.
absl::StatusOr<std::string> DefaultTemplate(const Json& value) {
  const Json* chosen = value.is_object() ? Find(value, "default") : &value;
  if (value.is_array()) {
    chosen = nullptr;
    for (const Json& named : value) {
      const Json* name = named.is_object() ? Find(named, "name") : nullptr;
      if (name != nullptr && *name == "default") chosen = Find(named, "template");
    }
  }
  if (chosen != nullptr && chosen->is_string()) return chosen->get<std::string>();
  return absl::FailedPreconditionError(
      "the checkpoint's chat_template is neither a text nor several of which one is called "
      "\"default\", so it serves completions but no chats");
}

absl::StatusOr<Json> ParseObject(absl::string_view text) {
  Json root = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return Malformed("is not a JSON object");
  return root;
}

}  // namespace

absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view json) {
  TANDEM_ASSIGN_OR_RETURN(const Json root, ParseObject(json));
  TANDEM_RETURN_IF_ERROR(CheckPipeline(root));
  TokenizerFile file;
  TANDEM_ASSIGN_OR_RETURN(file.steps, ReadPreTokenizer(root));
  const Json* model = Find(root, "model");
  if (model == nullptr || !model->is_object()) return Malformed("model is not an object");
  TANDEM_RETURN_IF_ERROR(CheckModel(*model));
  TANDEM_ASSIGN_OR_RETURN(const Vocab vocab, ReadVocab(*model, &file));
  TANDEM_RETURN_IF_ERROR(ReadMerges(*model, vocab, &file));
  TANDEM_RETURN_IF_ERROR(ReadAddedTokens(root, vocab, &file));
  TANDEM_RETURN_IF_ERROR(ReadPostProcessor(root, &file));
  return file;
}

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view json) {
  TANDEM_ASSIGN_OR_RETURN(const Json root, ParseObject(json));
  TokenizerConfig config;
  TANDEM_ASSIGN_OR_RETURN(config.bos_token, ReadTokenText(root, "bos_token"));
  TANDEM_ASSIGN_OR_RETURN(config.eos_token, ReadTokenText(root, "eos_token"));
  TANDEM_ASSIGN_OR_RETURN(config.add_bos, ReadOptionalFlag(root, "add_bos_token"));
  TANDEM_ASSIGN_OR_RETURN(config.add_eos, ReadFlag(root, "add_eos_token"));
  const Json* chat_template = Find(root, "chat_template");
  if (chat_template != nullptr) config.chat_template = DefaultTemplate(*chat_template);
  return config;
}

std::optional<int32_t> ParseBosId(absl::string_view config_json) {
  const auto config = ParseObject(config_json);
  const Json* id = config.ok() ? Find(*config, "bos_token_id") : nullptr;
  if (id == nullptr) return std::nullopt;
  const auto bos_id = ReadTokenId(*id, "BOS");
  return bos_id.ok() ? std::optional<int32_t>(*bos_id) : std::nullopt;
}

}  // namespace tandem
