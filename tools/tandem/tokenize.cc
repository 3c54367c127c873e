#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/status.h"
#include "common/tokenizer/tokenizer.h"
#include "io.h"

namespace tandem::tool {
namespace {

struct TokenizeOptions {
  ConnectOptions connect;
  std::string text;
  std::string jsonl;
  bool plain = false;
  bool bos = false;
};

struct DetokenizeOptions {
  ConnectOptions connect;
  std::vector<int32_t> ids;
  std::string ids_file;
  std::string jsonl;
  bool skip_special = false;
};

using Encode = std::function<absl::StatusOr<std::vector<int32_t>>(const std::string&)>;
using Decode = std::function<absl::StatusOr<std::string>(const std::vector<int32_t>&)>;

// With --model only the tokenizer's files are read.
absl::StatusOr<Encode> NewEncode(const TokenizeOptions& options) {
  if (!options.connect.model_dir.empty()) {
    TANDEM_ASSIGN_OR_RETURN(auto loaded, Tokenizer::Load(options.connect.model_dir));
    const auto match =
        options.plain ? Tokenizer::AddedTokens::kPlain : Tokenizer::AddedTokens::kMatch;
    return Encode([tokenizer = std::shared_ptr<const Tokenizer>(std::move(loaded)), match,
                   bos = options.bos](const std::string& text) {
      return tokenizer->Encode(text, match, bos);
    });
  }
  TANDEM_ASSIGN_OR_RETURN(auto connected, Client::Connect(options.connect));
  return Encode([client = std::shared_ptr<Client>(std::move(connected)), plain = options.plain,
                 bos =
                     options.bos](const std::string& text) -> absl::StatusOr<std::vector<int32_t>> {
    v1::TokenizeRequest request;
    request.set_text(text);
    request.set_plain(plain);
    request.set_add_bos(bos);
    v1::TokenizeResponse response;
    TANDEM_RETURN_IF_ERROR(
        client->Explain(client->stub().Tokenize(client->NewContext().get(), request, &response)));
    return std::vector<int32_t>(response.ids().begin(), response.ids().end());
  });
}

absl::StatusOr<Decode> NewDecode(const DetokenizeOptions& options) {
  if (!options.connect.model_dir.empty()) {
    TANDEM_ASSIGN_OR_RETURN(auto loaded, Tokenizer::Load(options.connect.model_dir));
    return Decode([tokenizer = std::shared_ptr<const Tokenizer>(std::move(loaded)),
                   skip = options.skip_special](const std::vector<int32_t>& ids) {
      return tokenizer->Decode(ids, skip);
    });
  }
  TANDEM_ASSIGN_OR_RETURN(auto connected, Client::Connect(options.connect));
  return Decode([client = std::shared_ptr<Client>(std::move(connected)),
                 skip = options.skip_special](
                    const std::vector<int32_t>& ids) -> absl::StatusOr<std::string> {
    v1::DetokenizeRequest request;
    request.mutable_ids()->Add(ids.begin(), ids.end());
    request.set_skip_special(skip);
    v1::DetokenizeResponse response;
    TANDEM_RETURN_IF_ERROR(
        client->Explain(client->stub().Detokenize(client->NewContext().get(), request, &response)));
    return response.text();
  });
}

absl::Status RunTokenize(const TokenizeOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(const Encode encode, NewEncode(options));
  if (!options.jsonl.empty()) {
    return ForEachJsonLine(options.jsonl, [&](const nlohmann::json& line) -> absl::Status {
      TANDEM_ASSIGN_OR_RETURN(const std::string text, StringMember(line, "text"));
      TANDEM_ASSIGN_OR_RETURN(const auto ids, encode(text));
      std::cout << Dump({{"ids", ids}}) << "\n";
      return absl::OkStatus();
    });
  }
  TANDEM_ASSIGN_OR_RETURN(const auto ids, encode(options.text));
  if (options.connect.json) {
    std::cout << Dump({{"ids", ids}}) << "\n";
    return absl::OkStatus();
  }
  for (size_t i = 0; i < ids.size(); ++i) std::cout << (i > 0 ? " " : "") << ids[i];
  std::cout << "\n";
  return absl::OkStatus();
}

absl::Status RunDetokenize(const DetokenizeOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(const Decode decode, NewDecode(options));
  if (!options.jsonl.empty()) {
    return ForEachJsonLine(options.jsonl, [&](const nlohmann::json& line) -> absl::Status {
      TANDEM_ASSIGN_OR_RETURN(const auto ids, IdsMember(line, "ids"));
      TANDEM_ASSIGN_OR_RETURN(const std::string text, decode(ids));
      std::cout << Dump({{"text", text}}) << "\n";
      return absl::OkStatus();
    });
  }
  std::vector<int32_t> ids = options.ids;
  if (!options.ids_file.empty()) {
    TANDEM_ASSIGN_OR_RETURN(ids, ReadIdsFile(options.ids_file));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::string text, decode(ids));
  std::cout << (options.connect.json ? Dump({{"text", text}}) : text) << "\n";
  return absl::OkStatus();
}

}  // namespace

Command AddTokenize(CommandLine& root) {
  auto options = std::make_shared<TokenizeOptions>();
  CommandLine* app = root.AddSubcommand("tokenize", "text to token ids");
  Option text = app->AddOption("text", options->text, "text to tokenize");
  const Option jsonl =
      app->AddOption("--jsonl", options->jsonl,
                     "answer each line {\"text\": ...} of this file with a line {\"ids\": [...]}");
  text.Excludes(jsonl);
  app->AddFlag("--plain", options->plain, "names of added tokens are plain text");
  app->AddFlag("--bos", options->bos, "put the begin-of-sequence token in front");
  options->connect.AddTo(*app);
  return {app, [options] { return RunTokenize(*options); }};
}

Command AddDetokenize(CommandLine& root) {
  auto options = std::make_shared<DetokenizeOptions>();
  CommandLine* app = root.AddSubcommand("detokenize", "token ids to text");
  app->AddOption("ids", options->ids, "token ids");
  app->AddOption("--ids-file", options->ids_file, "file of whitespace-separated token ids");
  app->AddOption("--jsonl", options->jsonl,
                 "answer each line {\"ids\": [...]} of this file with a line {\"text\": ...}");
  app->AddFlag("--skip-special", options->skip_special, "leave special tokens out");
  options->connect.AddTo(*app);
  return {app, [options] { return RunDetokenize(*options); }};
}

}  // namespace tandem::tool
