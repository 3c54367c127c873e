#include "gateway/generation_config.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxEosIds = 256;
constexpr float kMaxTemperature = 100;
// top_p 0 keeps the most probable token alone; so does this, which is less than its probability.
constexpr float kOnlyTheBest = 1e-6f;

class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}

  absl::StatusOr<GenerationConfig> Read(int32_t vocab_size) const {
    GenerationConfig config;
    config.sampling.temperature = 1.0f;
    TANDEM_RETURN_IF_ERROR(ReadSampling(&config.sampling));
    TANDEM_RETURN_IF_ERROR(ReadEosIds(vocab_size, &config.eos_ids));
    // What changes answers in transformers, with the value at which it does not.
    const std::pair<const char*, Json> not_offered[] = {{"encoder_repetition_penalty", 1},
                                                        {"no_repeat_ngram_size", 0},
                                                        {"typical_p", 1},
                                                        {"epsilon_cutoff", 0},
                                                        {"eta_cutoff", 0},
                                                        {"num_beams", 1},
                                                        {"penalty_alpha", 0},
                                                        {"guidance_scale", 1},
                                                        {"min_length", 0},
                                                        {"min_new_tokens", 0},
                                                        {"bad_words_ids", Json::array()},
                                                        {"suppress_tokens", Json::array()},
                                                        {"begin_suppress_tokens", Json::array()},
                                                        {"stop_strings", Json::array()},
                                                        {"forced_bos_token_id", nullptr},
                                                        {"forced_eos_token_id", nullptr}};
    for (const auto& [name, neutral] : not_offered) {
      const Json* value = Find(name);
      if (value != nullptr && *value != neutral) config.ignored.push_back(name);
    }
    return config;
  }

 private:
  // nullptr if it is absent or null.
  const Json* Find(const char* name) const {
    const auto it = json_.find(name);
    return it == json_.end() || it->is_null() ? nullptr : &*it;
  }

  static absl::Status Invalid(const char* name, const Json& value, absl::string_view expected) {
    const std::string found = value.is_structured()
                                  ? absl::StrCat("an ", value.type_name())
                                  : value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", found.substr(0, 100), ", expected ", expected));
  }

  // Leaves `to` as it is where there is none.
  absl::Status ReadFloat(const char* name, float least, float most, float* to) const {
    const Json* value = Find(name);
    if (value == nullptr) return absl::OkStatus();
    const float number = value->is_number() ? value->get<float>() : NAN;
    if (!(number >= least && number <= most)) {
      return Invalid(name, *value, absl::StrCat(least, " to ", most));
    }
    *to = number;
    return absl::OkStatus();
  }

  absl::Status ReadSampling(SamplingParams* sampling) const {
    TANDEM_RETURN_IF_ERROR(ReadFloat("temperature", 0, kMaxTemperature, &sampling->temperature));
    if (const Json* top_p = Find("top_p")) {
      if (!top_p->is_number() || !(top_p->get<double>() >= 0) || top_p->get<double>() > 1) {
        return Invalid("top_p", *top_p, "0 to 1");
      }
      sampling->top_p = std::max(top_p->get<float>(), kOnlyTheBest);
    }
    if (const Json* top_k = Find("top_k")) {
      const double value = top_k->is_number() ? top_k->get<double>() : -2;
      if (value < -1 || value > 1e9 || value != std::floor(value)) {
        return Invalid("top_k", *top_k, "an integer, with 0 or -1 for no limit");
      }
      sampling->top_k = std::max(0, static_cast<int32_t>(value));
    }
    TANDEM_RETURN_IF_ERROR(ReadFloat("min_p", 0, 1, &sampling->min_p));
    TANDEM_RETURN_IF_ERROR(ReadFloat("repetition_penalty", kMinRepetitionPenalty,
                                     kMaxRepetitionPenalty, &sampling->repetition_penalty));
    if (const Json* do_sample = Find("do_sample")) {
      if (!do_sample->is_boolean()) return Invalid("do_sample", *do_sample, "true or false");
      if (!do_sample->get<bool>()) sampling->temperature = 0;
    }
    return absl::OkStatus();
  }

  absl::Status ReadEosIds(int32_t vocab_size, std::vector<int32_t>* ids) const {
    const Json* eos = Find("eos_token_id");
    if (eos == nullptr) return absl::OkStatus();
    const size_t count = eos->is_array() ? eos->size() : 1;
    if (count > kMaxEosIds) {
      return absl::InvalidArgumentError(
          absl::StrCat("eos_token_id has ", count, " ids, more than ", kMaxEosIds));
    }
    for (size_t i = 0; i < count; ++i) {
      const Json& id = eos->is_array() ? (*eos)[i] : *eos;
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
        return Invalid("eos_token_id", id, absl::StrCat("ids from 0 to ", vocab_size - 1));
      }
      const int32_t value = id.get<int32_t>();
      if (std::find(ids->begin(), ids->end(), value) == ids->end()) ids->push_back(value);
    }
    return absl::OkStatus();
  }

  const Json& json_;
};

}  // namespace

absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& dir, int32_t vocab_size) {
  const std::string path = absl::StrCat(dir, "/generation_config.json");
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::string> file,
                          ReadSmallFileIfThere(path, kMaxFileBytes));
  std::string text = file.value_or("");
  if (absl::StripAsciiWhitespace(text).empty()) text = "{}";
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  }
  absl::StatusOr<GenerationConfig> config = Reader(json).Read(vocab_size);
  if (!config.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", config.status().message()));
  }
  return config;
}

}  // namespace tandem
