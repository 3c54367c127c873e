#include "gateway/served_model.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/checkpoint/digest.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// Sampling defaults; a missing file or member leaves the usual ones.
absl::StatusOr<SamplingParams> LoadSamplingDefaults(const std::string& dir) {
  SamplingParams params;
  params.temperature = 1.0f;
  const std::string path = absl::StrCat(dir, "/generation_config.json");
  std::ifstream file(path, std::ios::binary);
  if (!file) return params;
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  }
  const auto number = [&](const char* name, float low, float high, float* to) -> absl::Status {
    const auto it = json.find(name);
    if (it == json.end() || it->is_null()) return absl::OkStatus();
    if (!it->is_number() || it->get<float>() < low || it->get<float>() > high) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", name, " is ", it->dump(), ", but must be ", low, " to ", high));
    }
    *to = it->get<float>();
    return absl::OkStatus();
  };
  float top_k = 0;
  TANDEM_RETURN_IF_ERROR(number("temperature", 0.0f, 100.0f, &params.temperature));
  TANDEM_RETURN_IF_ERROR(number("top_p", 1e-6f, 1.0f, &params.top_p));
  TANDEM_RETURN_IF_ERROR(number("top_k", 0.0f, 1e6f, &top_k));
  params.top_k = static_cast<int32_t>(top_k);
  if (json.value("do_sample", nlohmann::json(true)) == nlohmann::json(false))
    params.temperature = 0;
  return params;
}

}  // namespace

std::string DefaultServedName(const std::string& dir) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::weakly_canonical(dir, error);
  if (!path.has_filename()) path = path.parent_path();  // it ends in a slash
  const std::string repository = path.parent_path().parent_path().filename().string();
  if (path.parent_path().filename() == "snapshots" && absl::StartsWith(repository, "models--")) {
    return repository.substr(repository.rfind("--") + 2);
  }
  return path.has_filename() ? path.filename().string() : dir;
}

absl::StatusOr<ServedModel> LoadServedModel(const Checkpoint& checkpoint, const std::string& dir,
                                            Dtype dtype, const std::string& served_name) {
  ServedModel model;
  model.name = served_name.empty() ? DefaultServedName(dir) : served_name;
  model.config = checkpoint.config();
  model.dtype = dtype;
  TANDEM_ASSIGN_OR_RETURN(model.digest, CheckpointDigest(checkpoint));
  model.parameters = checkpoint.num_parameters();
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(dir);
  if (tokenizer.ok()) {
    model.tokenizer = *std::move(tokenizer);
    spdlog::info("{}", model.tokenizer->prompt_rule());
  } else if (absl::IsNotFound(tokenizer.status())) {
    model.no_tokenizer = "no tokenizer.json";
  } else if (absl::IsUnimplemented(tokenizer.status())) {
    // Clients need not know the folder.
    model.no_tokenizer =
        std::string(absl::StripPrefix(tokenizer.status().message(), absl::StrCat(dir, ": ")));
    spdlog::warn("text is not served, only token ids: {}", model.no_tokenizer);
  } else {
    return tokenizer.status();
  }
  if (model.tokenizer != nullptr && model.tokenizer->vocab_size() > model.config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(dir, "/tokenizer.json has token ids to ", model.tokenizer->vocab_size() - 1,
                     ", but the model's vocabulary has ", model.config.vocab_size, " rows"));
  }
  TANDEM_ASSIGN_OR_RETURN(model.default_sampling, LoadSamplingDefaults(dir));
  model.eos_ids = model.config.eos_token_ids;
  if (model.eos_ids.empty() && model.tokenizer != nullptr && model.tokenizer->eos_id()) {
    model.eos_ids.push_back(*model.tokenizer->eos_id());
  }
  return model;
}

}  // namespace tandem
