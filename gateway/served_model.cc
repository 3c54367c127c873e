#include "gateway/served_model.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/checkpoint/digest.h"
#include "common/status.h"
#include "gateway/generation_config.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// The end ids of config.json and generation_config.json; where neither names one, the tokenizer's.
std::vector<int32_t> EosIds(const ServedModel& model, const GenerationConfig& generation) {
  std::vector<int32_t> ids = model.config.eos_token_ids;
  for (const int32_t id : generation.eos_ids) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  if (ids.empty() && model.tokenizer != nullptr && model.tokenizer->eos_id()) {
    ids.push_back(*model.tokenizer->eos_id());
  }
  return ids;
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
                                            Dtype dtype, const std::string& served_name,
                                            const std::function<void(float)>& digest_progress) {
  ServedModel model;
  model.name = served_name.empty() ? DefaultServedName(dir) : served_name;
  model.config = checkpoint.config();
  model.dtype = dtype;
  TANDEM_ASSIGN_OR_RETURN(model.digest, CheckpointDigest(checkpoint, digest_progress));
  model.parameters = checkpoint.num_parameters();
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(dir);
  if (tokenizer.ok()) {
    model.tokenizer = *std::move(tokenizer);
    spdlog::info("{}", model.tokenizer->prompt_rule());
  } else if (Tokenizer::CostsOnlyText(tokenizer.status())) {
    // Clients need not know the folder.
    model.no_tokenizer =
        std::string(absl::StripPrefix(tokenizer.status().message(), absl::StrCat(dir, ": ")));
    // That there is none may be meant so.
    spdlog::log(absl::IsNotFound(tokenizer.status()) ? spdlog::level::info : spdlog::level::warn,
                "text is not served, only token ids: {}", model.no_tokenizer);
  } else {
    return tokenizer.status();
  }
  if (model.tokenizer != nullptr && model.tokenizer->vocab_size() > model.config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(dir, "/tokenizer.json has token ids to ", model.tokenizer->vocab_size() - 1,
                     ", but the model's vocabulary has ", model.config.vocab_size, " rows"));
  }
  TANDEM_ASSIGN_OR_RETURN(const GenerationConfig generation,
                          LoadGenerationConfig(dir, model.config.vocab_size));
  model.default_sampling = generation.sampling;
  model.eos_ids = EosIds(model, generation);
  const SamplingParams& defaults = model.default_sampling;
  spdlog::info(
      "defaults: temperature {}, top_k {}, top_p {}, min_p {}, repetition_penalty {}; generation "
      "ends at ids {}",
      defaults.temperature, defaults.top_k, defaults.top_p, defaults.min_p,
      defaults.repetition_penalty, absl::StrJoin(model.eos_ids, ", "));
  if (!generation.ignored.empty()) {
    spdlog::warn("generation_config.json: not offered, hence ignored: {}",
                 absl::StrJoin(generation.ignored, ", "));
  }
  return model;
}

}  // namespace tandem
