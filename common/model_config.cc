#include "common/model_config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

using Json = nlohmann::json;

// The growth of attention logits that YaRN corrects: g(s, m) = 0.1 m ln(s) + 1 (YaRN,
// arXiv:2309.00071).
double YarnGrowth(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// A JSON value for an error message, cut where it is long.
std::string Brief(const Json& value) {
  constexpr size_t kMaxCharacters = 64;
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  if (text.size() > kMaxCharacters) text.replace(kMaxCharacters, std::string::npos, "...");
  return text;
}

// Typed access to one JSON object; every error names source and key.
class Reader {
 public:
  Reader(const Json& object, absl::string_view source) : object_(object), source_(source) {}

  absl::Status Invalid(const std::string& key, const std::string& problem) const {
    return absl::InvalidArgumentError(absl::StrCat(source_, ": ", key, " ", problem));
  }
  absl::Status Unsupported(const std::string& key, const std::string& problem) const {
    return absl::UnimplementedError(absl::StrCat(source_, ": ", key, " ", problem));
  }

  absl::Status Require(const char* key) const {
    return object_.contains(key) ? absl::OkStatus() : Invalid(key, "is missing");
  }

  // The member, or null where it is missing or null.
  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  absl::StatusOr<double> Number(const char* key, std::optional<double> fallback, double low,
                                double high) const {
    const Json* value = Find(key);
    if (value == nullptr) {
      if (fallback) return *fallback;
      return Invalid(key, "is missing");
    }
    if (!value->is_number())
      return Invalid(key, absl::StrCat("is ", Brief(*value), ", not a number"));
    const double number = value->get<double>();
    if (!(number >= low && number <= high)) {
      return Invalid(key, absl::StrCat("is ", Brief(*value), ", but must be ", low, " to ", high));
    }
    return number;
  }

  // Integers may be written as floats.
  absl::Status Int(const char* key, std::optional<int32_t> fallback, int32_t low, int32_t high,
                   int32_t* to) const {
    TANDEM_ASSIGN_OR_RETURN(const double number, Number(key, fallback, low, high));
    if (number != std::floor(number)) return Invalid(key, "is not an integer");
    *to = static_cast<int32_t>(number);
    return absl::OkStatus();
  }

  absl::Status Width(const char* key, std::optional<int32_t> fallback, int32_t low, int32_t high,
                     int32_t* to) const {
    TANDEM_RETURN_IF_ERROR(Int(key, fallback, low, high, to));
    if (*to % 8 != 0) return Unsupported(key, absl::StrCat("is ", *to, ", not a multiple of 8"));
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Bool(const char* key, bool fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean())
      return Invalid(key, absl::StrCat("is ", Brief(*value), ", not a bool"));
    return value->get<bool>();
  }

  absl::StatusOr<std::string> String(const char* key, const char* fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) {
      return Invalid(key, absl::StrCat("is ", Brief(*value), ", not a string"));
    }
    return value->get<std::string>();
  }

  // Refuses a switch that is not at the value that is implemented.
  absl::Status Must(const char* key, const char* supported) const {
    TANDEM_ASSIGN_OR_RETURN(const std::string value, String(key, supported));
    if (value == supported) return absl::OkStatus();
    return Unsupported(
        key, absl::StrCat("is ", Brief(value), ", but only \"", supported, "\" is supported"));
  }
  absl::Status MustBe(const char* key, bool supported) const {
    TANDEM_ASSIGN_OR_RETURN(const bool value, Bool(key, supported));
    if (value == supported) return absl::OkStatus();
    return Unsupported(key, absl::StrCat("is ", value ? "true" : "false", ", but only ",
                                         supported ? "true" : "false", " is supported"));
  }

  // Up to the rounding of whoever wrote it.
  absl::Status MustBeNumber(const char* key, double supported) const {
    TANDEM_ASSIGN_OR_RETURN(const double value, Number(key, supported, -1e12, 1e12));
    if (std::abs(value - supported) <= 1e-6 * std::abs(supported)) return absl::OkStatus();
    return Unsupported(key, absl::StrCat("is ", value, ", but only ", supported, " is supported"));
  }

  absl::string_view source() const { return source_; }

 private:
  const Json& object_;
  const absl::string_view source_;
};

constexpr int32_t kMaxWidth = 1 << 20;
// Well above 1, by whose logarithm YaRN divides.
constexpr double kMinTheta = 2;

absl::Status ParseShape(const Reader& r, ModelConfig* c) {
  TANDEM_RETURN_IF_ERROR(r.Int("vocab_size", {}, 1, 1 << 24, &c->vocab_size));
  TANDEM_RETURN_IF_ERROR(r.Width("hidden_size", {}, 8, kMaxWidth, &c->hidden_size));
  TANDEM_RETURN_IF_ERROR(r.Width("intermediate_size", {}, 8, kMaxWidth, &c->intermediate_size));
  TANDEM_RETURN_IF_ERROR(r.Int("num_hidden_layers", {}, 1, 4096, &c->num_layers));
  TANDEM_RETURN_IF_ERROR(r.Int("num_attention_heads", {}, 1, 1024, &c->num_heads));
  TANDEM_RETURN_IF_ERROR(r.Width("q_lora_rank", 0, 0, kMaxWidth, &c->q_lora_rank));
  TANDEM_RETURN_IF_ERROR(r.Width("kv_lora_rank", {}, 8, 1 << 16, &c->kv_lora_rank));
  TANDEM_RETURN_IF_ERROR(r.Width("qk_nope_head_dim", {}, 8, 4096, &c->qk_nope_head_dim));
  TANDEM_RETURN_IF_ERROR(r.Width("qk_rope_head_dim", {}, 8, 4096, &c->qk_rope_head_dim));
  TANDEM_RETURN_IF_ERROR(r.Width("v_head_dim", {}, 8, 4096, &c->v_head_dim));
  TANDEM_RETURN_IF_ERROR(
      r.Int("max_position_embeddings", {}, 1, 1 << 28, &c->max_position_embeddings));
  TANDEM_ASSIGN_OR_RETURN(const double eps, r.Number("rms_norm_eps", {}, 0, 1));
  c->rms_norm_eps = static_cast<float>(eps);
  TANDEM_ASSIGN_OR_RETURN(c->tie_word_embeddings, r.Bool("tie_word_embeddings", false));
  return absl::OkStatus();
}

absl::Status ParseExperts(const Reader& r, ModelConfig* c) {
  TANDEM_RETURN_IF_ERROR(r.Int("n_routed_experts", 0, 0, 1 << 16, &c->num_experts));
  if (c->num_experts == 0) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(
      r.Width("moe_intermediate_size", {}, 8, kMaxWidth, &c->moe_intermediate_size));
  // null says that there are none; without the key nothing is said, and a missing answer would go
  // unnoticed, since tensors that are not asked for are ignored.
  TANDEM_RETURN_IF_ERROR(r.Require("n_shared_experts"));
  TANDEM_RETURN_IF_ERROR(r.Int("n_shared_experts", 0, 0, 64, &c->num_shared_experts));
  TANDEM_RETURN_IF_ERROR(r.Int("num_experts_per_tok", {}, 1, 256, &c->experts_per_token));
  TANDEM_RETURN_IF_ERROR(r.Int("first_k_dense_replace", {}, 0, 4096, &c->first_k_dense_replace));
  TANDEM_RETURN_IF_ERROR(r.Int("moe_layer_freq", 1, 1, 4096, &c->moe_layer_freq));
  TANDEM_RETURN_IF_ERROR(r.Must("scoring_func", "softmax"));
  TANDEM_ASSIGN_OR_RETURN(c->norm_topk_prob, r.Bool("norm_topk_prob", false));
  TANDEM_ASSIGN_OR_RETURN(const double scaling, r.Number("routed_scaling_factor", {}, 0, 1e6));
  c->routed_scaling_factor = static_cast<float>(scaling);
  if (c->experts_per_token > c->num_experts) {
    return r.Invalid(
        "num_experts_per_tok",
        absl::StrCat("is ", c->experts_per_token, ", but there are ", c->num_experts, " experts"));
  }
  // The original gate normalises only where there is something to normalise.
  c->norm_topk_prob = c->norm_topk_prob && c->experts_per_token > 1;
  // "gready" is how the original configuration class spells its default.
  TANDEM_RETURN_IF_ERROR(r.Require("topk_method"));
  TANDEM_ASSIGN_OR_RETURN(const std::string method, r.String("topk_method", "greedy"));
  if (method == "greedy" || method == "gready") return absl::OkStatus();
  if (method != "group_limited_greedy") {
    return r.Unsupported("topk_method", absl::StrCat("is ", Brief(method),
                                                     ", but only greedy and "
                                                     "group_limited_greedy are supported"));
  }
  c->topk_method = TopkMethod::kGroupLimitedGreedy;
  TANDEM_RETURN_IF_ERROR(r.Int("n_group", {}, 1, 1 << 16, &c->num_groups));
  TANDEM_RETURN_IF_ERROR(r.Int("topk_group", {}, 1, c->num_groups, &c->top_groups));
  if (c->num_experts % c->num_groups != 0) {
    return r.Invalid("n_group", absl::StrCat("is ", c->num_groups, ", which does not divide ",
                                             c->num_experts, " experts"));
  }
  if (c->experts_per_token > c->num_experts / c->num_groups * c->top_groups) {
    return r.Invalid("topk_group", "leaves fewer experts than num_experts_per_tok");
  }
  return absl::OkStatus();
}

struct Rope {
  double theta = 0;
  std::optional<YarnScaling> yarn;
  bool operator==(const Rope&) const = default;
};

// The kind of scaling; empty: none is named. "deepseek_yarn" is what other servers write for
// DeepSeek's own YaRN, which is the only one here.
absl::StatusOr<std::string> RopeType(const Reader& r, const std::string& key, const Reader& s) {
  TANDEM_ASSIGN_OR_RETURN(std::string old_type, s.String("type", ""));
  TANDEM_ASSIGN_OR_RETURN(std::string type, s.String("rope_type", old_type.c_str()));
  for (std::string* name : {&old_type, &type}) {
    if (*name == "deepseek_yarn") *name = "yarn";
  }
  if (!old_type.empty() && type != old_type) {
    return r.Invalid(key, "has a type and a rope_type that differ");
  }
  return type;
}

// Of rope_scaling or of rope_parameters, `key`; theta may stand beside it.
absl::StatusOr<Rope> ParseRopeObject(const Reader& r, const std::string& key, const Json& object) {
  if (!object.is_object()) return r.Invalid(key, "is not an object");
  const Reader s(object, r.source());
  Rope rope;
  std::optional<double> outer_theta;
  if (r.Find("rope_theta") != nullptr || s.Find("rope_theta") == nullptr) {
    TANDEM_ASSIGN_OR_RETURN(outer_theta, r.Number("rope_theta", {}, kMinTheta, 1e12));
  }
  TANDEM_ASSIGN_OR_RETURN(rope.theta, s.Number("rope_theta", outer_theta, kMinTheta, 1e12));
  TANDEM_ASSIGN_OR_RETURN(std::string type, RopeType(r, key, s));
  TANDEM_RETURN_IF_ERROR(s.MustBeNumber("partial_rotary_factor", 1));
  if (type.empty() && s.Find("factor") == nullptr) type = "default";
  if (type == "default") return rope;
  if (type != "yarn") {
    return r.Unsupported(
        key, absl::StrCat("has the type ", Brief(type), ", but only yarn is supported"));
  }
  // A key of the general YaRN that DeepSeek-V2's own code does not know, and that would change it.
  TANDEM_RETURN_IF_ERROR(s.MustBe("truncate", true));
  YarnScaling yarn;
  TANDEM_ASSIGN_OR_RETURN(yarn.factor, s.Number("factor", {}, 1, 1e6));
  TANDEM_ASSIGN_OR_RETURN(yarn.original_max_position_embeddings,
                          s.Number("original_max_position_embeddings", 4096, 1, 1e9));
  TANDEM_ASSIGN_OR_RETURN(yarn.beta_fast, s.Number("beta_fast", 32, 1e-6, 1e6));
  TANDEM_ASSIGN_OR_RETURN(yarn.beta_slow, s.Number("beta_slow", 1, 1e-6, 1e6));
  TANDEM_ASSIGN_OR_RETURN(yarn.mscale, s.Number("mscale", 1, 0, 1e3));
  TANDEM_ASSIGN_OR_RETURN(yarn.mscale_all_dim, s.Number("mscale_all_dim", 0, 0, 1e3));
  // The general YaRN's factor of cosine and sine, which DeepSeek's derives from the two mscales.
  TANDEM_RETURN_IF_ERROR(s.MustBeNumber(
      "attention_factor",
      YarnGrowth(yarn.factor, yarn.mscale) / YarnGrowth(yarn.factor, yarn.mscale_all_dim)));
  rope.yarn = yarn;
  return rope;
}

absl::Status ParseRope(const Reader& r, ModelConfig* c) {
  // The pairs that are rotated lie side by side in DeepSeek-V2.
  TANDEM_RETURN_IF_ERROR(r.MustBe("rope_interleave", true));
  TANDEM_RETURN_IF_ERROR(r.MustBeNumber("partial_rotary_factor", 1));
  // transformers 5 writes rope_parameters, with rope_theta inside; tools that know both write both.
  const Json* const parameters = r.Find("rope_parameters");
  const Json* const scaling = r.Find("rope_scaling");
  const Json none = Json::object();
  const bool newer = parameters != nullptr;
  TANDEM_ASSIGN_OR_RETURN(const Rope rope,
                          ParseRopeObject(r, newer ? "rope_parameters" : "rope_scaling",
                                          newer                ? *parameters
                                          : scaling != nullptr ? *scaling
                                                               : none));
  if (newer && scaling != nullptr) {
    // What rope_scaling leaves out about theta, rope_parameters says.
    Json older = *scaling;
    if (older.is_object() && !older.contains("rope_theta")) older["rope_theta"] = rope.theta;
    TANDEM_ASSIGN_OR_RETURN(const Rope other, ParseRopeObject(r, "rope_scaling", older));
    if (!(other == rope)) {
      return r.Invalid("rope_scaling", "and rope_parameters are both there and differ");
    }
  }
  c->rope_theta = rope.theta;
  c->yarn = rope.yarn;
  return absl::OkStatus();
}

absl::Status ParseTokens(const Reader& r, ModelConfig* c) {
  const auto id = [&](const char* key, const Json& value) -> absl::StatusOr<int32_t> {
    if (!value.is_number_integer() || value.get<double>() < 0 ||
        value.get<double>() >= c->vocab_size) {
      return r.Invalid(key,
                       absl::StrCat("is ", Brief(value), ", which is no token of ", c->vocab_size));
    }
    return value.get<int32_t>();
  };
  if (const Json* bos = r.Find("bos_token_id")) {
    TANDEM_ASSIGN_OR_RETURN(c->bos_token_id, id("bos_token_id", *bos));
  }
  if (const Json* eos = r.Find("eos_token_id")) {
    const Json list = eos->is_array() ? *eos : Json::array({*eos});
    constexpr size_t kMaxEosIds = 256;
    if (list.size() > kMaxEosIds) return r.Invalid("eos_token_id", "is a list of over 256 ids");
    for (const Json& value : list) {
      TANDEM_ASSIGN_OR_RETURN(const int32_t token, id("eos_token_id", value));
      c->eos_token_ids.push_back(token);
    }
  }
  return absl::OkStatus();
}

}  // namespace

float ModelConfig::SoftmaxScale() const {
  double scale = 1.0 / std::sqrt(static_cast<double>(qk_head_dim()));
  if (yarn && yarn->mscale_all_dim != 0) {
    const double growth = YarnGrowth(yarn->factor, yarn->mscale_all_dim);
    scale *= growth * growth;
  }
  return static_cast<float>(scale);
}

float ModelConfig::RopeFactor() const {
  if (!yarn) return 1.0f;
  return static_cast<float>(YarnGrowth(yarn->factor, yarn->mscale) /
                            YarnGrowth(yarn->factor, yarn->mscale_all_dim));
}

std::vector<float> ModelConfig::RopeFrequencies() const {
  const int32_t pairs = qk_rope_head_dim / 2;
  double low = 0, high = 0;
  if (yarn) {
    const auto correction = [&](double rotations) {
      return qk_rope_head_dim *
             std::log(yarn->original_max_position_embeddings / (rotations * 2 * M_PI)) /
             (2 * std::log(rope_theta));
    };
    low = std::max(std::floor(correction(yarn->beta_fast)), 0.0);
    high = std::min(std::ceil(correction(yarn->beta_slow)), qk_rope_head_dim - 1.0);
    if (low == high) high += 0.001;
  }
  std::vector<float> frequencies(pairs);
  for (int32_t i = 0; i < pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(qk_rope_head_dim);
    const float power = static_cast<float>(std::pow(rope_theta, static_cast<double>(exponent)));
    const float extrapolated = 1.0f / power;
    if (!yarn) {
      frequencies[i] = extrapolated;
      continue;
    }
    const float interpolated = 1.0f / (static_cast<float>(yarn->factor) * power);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    const float a = interpolated * (1.0f - keep);
    const float b = extrapolated * keep;
    frequencies[i] = a + b;
  }
  return frequencies;
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json, absl::string_view source) {
  // What is nested deeper than any key that is read is dropped unread, so that memory is bounded.
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth <= 4; };
  const Json object = Json::parse(json.begin(), json.end(), shallow, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(source, " is not a JSON object"));
  }
  const Reader r(object, source);
  TANDEM_ASSIGN_OR_RETURN(const std::string type, r.String("model_type", ""));
  if (type != "deepseek_v2") {
    return r.Unsupported("model_type",
                         absl::StrCat("is ", Brief(type), ", but only deepseek_v2 is supported"));
  }
  TANDEM_RETURN_IF_ERROR(r.MustBe("use_mla", true));
  TANDEM_RETURN_IF_ERROR(r.MustBe("attention_bias", false));
  TANDEM_RETURN_IF_ERROR(r.MustBe("mlp_bias", false));
  TANDEM_RETURN_IF_ERROR(r.Must("hidden_act", "silu"));
  if (r.Find("quantization_config") != nullptr) {
    return r.Unsupported("quantization_config",
                         "is set, but quantized checkpoints are not supported");
  }
  ModelConfig config;
  TANDEM_RETURN_IF_ERROR(ParseShape(r, &config));
  TANDEM_RETURN_IF_ERROR(ParseExperts(r, &config));
  TANDEM_RETURN_IF_ERROR(ParseRope(r, &config));
  TANDEM_RETURN_IF_ERROR(ParseTokens(r, &config));
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  constexpr size_t kMaxConfigBytes = 1 << 20;
  const std::string path = absl::StrCat(dir, "/config.json");
  TANDEM_ASSIGN_OR_RETURN(const std::string json, ReadSmallFile(path, kMaxConfigBytes));
  return ParseModelConfig(json, path);
}

}  // namespace tandem
