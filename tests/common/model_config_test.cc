#include "common/model_config.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kShared = absl::StrCat(TANDEM_SOURCE_DIR, "/../shared/");

// kSmallConfig after an edit of its JSON.
absl::StatusOr<ModelConfig> Parse(const std::function<void(Json&)>& edit) {
  Json json = Json::parse(kSmallConfig);
  edit(json);
  return ParseModelConfig(json.dump(), "config.json");
}

TEST(ModelConfigTest, ReadsV2Lite) {
  if (!std::filesystem::exists(kShared + "model/config.json")) GTEST_SKIP() << "no " << kShared;
  const auto c = LoadModelConfig(kShared + "model");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->vocab_size, 102400);
  EXPECT_EQ(c->hidden_size, 2048);
  EXPECT_EQ(c->intermediate_size, 10944);
  EXPECT_EQ(c->moe_intermediate_size, 1408);
  EXPECT_EQ(c->num_layers, 27);
  EXPECT_EQ(c->num_heads, 16);
  EXPECT_EQ(c->q_lora_rank, 0);
  EXPECT_EQ(c->kv_lora_rank, 512);
  EXPECT_EQ(c->qk_head_dim(), 192);
  EXPECT_EQ(c->cache_row_width(), 576);
  EXPECT_EQ(c->v_head_dim, 128);
  EXPECT_EQ(c->num_experts, 64);
  EXPECT_EQ(c->experts_per_token, 6);
  EXPECT_EQ(c->shared_intermediate_size(), 2816);
  EXPECT_EQ(c->topk_method, TopkMethod::kGreedy);
  EXPECT_FALSE(c->norm_topk_prob);
  EXPECT_EQ(c->routed_scaling_factor, 1.0f);
  EXPECT_EQ(c->rms_norm_eps, 1e-6f);
  EXPECT_EQ(c->max_position_embeddings, 163840);
  EXPECT_FALSE(c->tie_word_embeddings);
  EXPECT_EQ(c->bos_token_id, 100000);
  EXPECT_THAT(c->eos_token_ids, ElementsAre(100001));
  EXPECT_FALSE(c->IsMoeLayer(0));
  for (int layer = 1; layer < 27; ++layer) EXPECT_TRUE(c->IsMoeLayer(layer));
}

TEST(ModelConfigTest, YarnMatchesTheReferenceValues) {
  std::ifstream file(kShared + "golden/yarn_reference_derived.json");
  if (!file) GTEST_SKIP() << "no yarn_reference_derived.json in " << kShared;
  const Json reference = Json::parse(file);
  const auto c = LoadModelConfig(kShared + "model");
  ASSERT_TRUE(c.ok()) << c.status();
  const std::vector<float> frequencies = c->RopeFrequencies();
  ASSERT_EQ(frequencies.size(), 32u);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double expected = reference["inv_freq"][i].get<double>();
    // Four roundings to f32: power, reciprocal, blend.
    EXPECT_NEAR(frequencies[i], expected, expected * 4 * std::ldexp(1.0, -24)) << i;
  }
  EXPECT_EQ(c->SoftmaxScale(), static_cast<float>(reference["softmax_scale"].get<double>()));
  EXPECT_EQ(c->RopeFactor(), 1.0f);
}

TEST(ModelConfigTest, YarnKeepsFastPairsAndDividesSlowOnes) {
  const auto c = Parse([](Json& json) { json["qk_rope_head_dim"] = 64; });
  ASSERT_TRUE(c.ok()) << c.status();
  ModelConfig plain = *c;
  plain.yarn.reset();
  const std::vector<float> scaled = c->RopeFrequencies();
  const std::vector<float> unscaled = plain.RopeFrequencies();
  EXPECT_EQ(unscaled[0], 1.0f);
  EXPECT_FLOAT_EQ(unscaled[16], 0.01f);
  for (int i = 0; i < 32; ++i) {
    if (i <= 10) {
      EXPECT_EQ(scaled[i], unscaled[i]) << i;
    }
    if (i > 10 && i < 23) {
      EXPECT_LT(scaled[i], unscaled[i]) << i;
      EXPECT_GT(scaled[i], unscaled[i] / 40) << i;
    }
    if (i >= 23) {
      EXPECT_FLOAT_EQ(scaled[i], unscaled[i] / 40) << i;
    }
  }
}

TEST(ModelConfigTest, TheTwoMscalesAreKeptApart) {
  const auto c = Parse([](Json& json) {
    json["rope_scaling"]["factor"] = 8;
    json["rope_scaling"]["mscale"] = 0.5;
    json["rope_scaling"]["mscale_all_dim"] = 1.0;
  });
  ASSERT_TRUE(c.ok()) << c.status();
  const double all = 0.1 * std::log(8.0) + 1;
  EXPECT_FLOAT_EQ(c->RopeFactor(), (0.05 * std::log(8.0) + 1) / all);
  EXPECT_FLOAT_EQ(c->SoftmaxScale(), all * all / std::sqrt(24.0));
}

TEST(ModelConfigTest, WithoutMscaleAllDimTheSoftmaxIsNotScaled) {
  const auto c = Parse([](Json& json) { json["rope_scaling"]["mscale_all_dim"] = 0; });
  ASSERT_TRUE(c.ok());
  EXPECT_FLOAT_EQ(c->SoftmaxScale(), 1 / std::sqrt(24.0));
  EXPECT_FLOAT_EQ(c->RopeFactor(), 0.0707 * std::log(40.0) + 1);
}

TEST(ModelConfigTest, WithoutScalingBothFactorsAreNeutral) {
  for (const bool absent : {false, true}) {
    const auto c = Parse([&](Json& json) {
      json["rope_scaling"] = nullptr;
      if (absent) json.erase("rope_scaling");
    });
    ASSERT_TRUE(c.ok()) << c.status();
    EXPECT_FALSE(c->yarn.has_value());
    EXPECT_FLOAT_EQ(c->SoftmaxScale(), 1 / std::sqrt(24.0));
    EXPECT_EQ(c->RopeFactor(), 1.0f);
  }
}

TEST(ModelConfigTest, YarnKeysDefaultAsInTheOriginal) {
  const auto c = Parse([](Json& json) {
    json["rope_scaling"] = {{"type", "yarn"}, {"factor", 40}};
  });
  ASSERT_TRUE(c.ok()) << c.status();
  ASSERT_TRUE(c->yarn.has_value());
  EXPECT_EQ(c->yarn->original_max_position_embeddings, 4096);
  EXPECT_EQ(c->yarn->beta_fast, 32);
  EXPECT_EQ(c->yarn->beta_slow, 1);
  EXPECT_EQ(c->yarn->mscale, 1);
  EXPECT_EQ(c->yarn->mscale_all_dim, 0);
}

TEST(ModelConfigTest, RopeIsReadFromEverySpelling) {
  const std::function<void(Json&)> spellings[] = {
      [](Json& json) {
        json["rope_scaling"].erase("type");
        json["rope_scaling"]["rope_type"] = "yarn";
      },
      [](Json& json) { json["rope_scaling"]["rope_type"] = "yarn"; },
      [](Json& json) {  // transformers 5
        json["rope_parameters"] = json["rope_scaling"];
        json["rope_parameters"]["rope_theta"] = 10000.0;
        json["rope_parameters"]["rope_type"] = "yarn";
        json.erase("rope_scaling");
        json.erase("rope_theta");
      },
      [](Json& json) {
        json["rope_parameters"] = json["rope_scaling"];
        json.erase("rope_scaling");
      },
      [](Json& json) { json["rope_scaling"]["rope_type"] = "deepseek_yarn"; },
      [](Json& json) { json["rope_scaling"]["type"] = "deepseek_yarn"; },
      [](Json& json) {  // both, for tools of both kinds
        json["rope_parameters"] = json["rope_scaling"];
        json["rope_parameters"]["rope_theta"] = 10000.0;
        json["rope_parameters"]["rope_type"] = "deepseek_yarn";
      },
      [](Json& json) {  // theta in the newer one alone
        json["rope_parameters"] = json["rope_scaling"];
        json["rope_parameters"]["rope_theta"] = 10000.0;
        json.erase("rope_theta");
      },
      [](Json& json) {  // neutral values
        json["rope_interleave"] = true;
        json["partial_rotary_factor"] = 1.0;
        json["rope_scaling"]["partial_rotary_factor"] = 1;
        json["rope_scaling"]["mscale"] = 0.707;
        json["rope_scaling"]["mscale_all_dim"] = 0.707;
        json["rope_scaling"]["attention_factor"] = 1.0;
      },
      [](Json& json) {
        json["rope_interleave"] = nullptr;
        json["partial_rotary_factor"] = nullptr;
        json["rope_scaling"]["attention_factor"] = nullptr;
      },
      [](Json& json) {  // what the general YaRN derives from mscale alone, with DeepSeek's rule
        json["rope_scaling"]["mscale"] = 1;
        json["rope_scaling"]["mscale_all_dim"] = 0;
        json["rope_scaling"]["attention_factor"] = 0.1 * std::log(40.0) + 1;
      },
  };
  for (const auto& spelling : spellings) {
    const auto c = Parse(spelling);
    ASSERT_TRUE(c.ok()) << c.status();
    ASSERT_TRUE(c->yarn.has_value());
    EXPECT_EQ(c->yarn->factor, 40);
    EXPECT_EQ(c->rope_theta, 10000);
  }
}

TEST(ModelConfigTest, DefaultRopeParametersMeanNoScaling) {
  const auto c = Parse([](Json& json) {
    json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 50000}};
    json.erase("rope_scaling");
    json.erase("rope_theta");
  });
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_FALSE(c->yarn.has_value());
  EXPECT_EQ(c->rope_theta, 50000);
}

TEST(ModelConfigTest, NumbersMayBeWrittenAsIntegersOrFloats) {
  const auto c = Parse([](Json& json) {
    json["hidden_size"] = 32.0;
    json["routed_scaling_factor"] = 16;
    json["rope_scaling"]["factor"] = 40.0;
  });
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->hidden_size, 32);
  EXPECT_EQ(c->routed_scaling_factor, 16.0f);
}

TEST(ModelConfigTest, EndOfTextMayBeAnIntegerAListOrMissing) {
  const auto list = Parse([](Json& json) { json["eos_token_id"] = {1, 7}; });
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_THAT(list->eos_token_ids, ElementsAre(1, 7));
  const auto none = Parse([](Json& json) {
    json.erase("eos_token_id");
    json["bos_token_id"] = nullptr;
  });
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_THAT(none->eos_token_ids, IsEmpty());
  EXPECT_FALSE(none->bos_token_id.has_value());
}

TEST(ModelConfigTest, QueryCompressionIsOffWhenNullAbsentOrZero) {
  EXPECT_EQ(Parse([](Json& json) { json["q_lora_rank"] = nullptr; })->q_lora_rank, 0);
  EXPECT_EQ(Parse([](Json& json) { json["q_lora_rank"] = 0; })->q_lora_rank, 0);
  EXPECT_EQ(Parse([](Json& json) { json.erase("q_lora_rank"); })->q_lora_rank, 0);
  EXPECT_EQ(Parse([](Json& json) { json["q_lora_rank"] = 24; })->q_lora_rank, 24);
}

TEST(ModelConfigTest, OptionalSwitchesMayBeMissing) {
  const auto c = Parse([](Json& json) {
    for (const char* key :
         {"moe_layer_freq", "norm_topk_prob", "scoring_func", "n_group", "topk_group",
          "tie_word_embeddings", "attention_bias", "hidden_act", "bos_token_id", "torch_dtype"}) {
      json.erase(key);
    }
  });
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->moe_layer_freq, 1);
  EXPECT_FALSE(c->norm_topk_prob);
}

TEST(ModelConfigTest, ReadsGroupLimitedRouting) {
  const auto c = Parse([](Json& json) {
    json["topk_method"] = "group_limited_greedy";
    json["n_group"] = 4;
    json["topk_group"] = 2;
    json["norm_topk_prob"] = true;
  });
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->topk_method, TopkMethod::kGroupLimitedGreedy);
  EXPECT_EQ(c->num_groups, 4);
  EXPECT_EQ(c->top_groups, 2);
  EXPECT_TRUE(c->norm_topk_prob);
}

TEST(ModelConfigTest, OneChosenExpertIsScaledAndNotNormalised) {
  const auto c = Parse([](Json& json) {
    json["num_experts_per_tok"] = 1;
    json["norm_topk_prob"] = true;
  });
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_FALSE(c->norm_topk_prob);
}

TEST(ModelConfigTest, LayersFollowFirstDenseAndFrequency) {
  const auto c = Parse([](Json& json) {
    json["num_hidden_layers"] = 8;
    json["first_k_dense_replace"] = 3;
    json["moe_layer_freq"] = 2;
  });
  ASSERT_TRUE(c.ok()) << c.status();
  std::vector<int> moe;
  for (int layer = 0; layer < 8; ++layer) {
    if (c->IsMoeLayer(layer)) moe.push_back(layer);
  }
  EXPECT_THAT(moe, ElementsAre(4, 6));
}

TEST(ModelConfigTest, WithoutRoutedExpertsEveryLayerIsDense) {
  const auto c = Parse([](Json& json) { json["n_routed_experts"] = nullptr; });
  ASSERT_TRUE(c.ok()) << c.status();
  for (int layer = 0; layer < 3; ++layer) EXPECT_FALSE(c->IsMoeLayer(layer));
}

TEST(ModelConfigTest, ReadsTheGoldenConfigs) {
  for (const char* name : {"hf_tiny_v2lite", "hf_tiny_q_lora", "hf_tiny_plain",
                           "hf_tiny_two_mscales", "hf_wide_2_layers"}) {
    const std::string dir = kShared + "golden/" + name;
    if (!std::filesystem::exists(dir)) GTEST_SKIP() << "no " << dir;
    EXPECT_TRUE(LoadModelConfig(dir).ok()) << LoadModelConfig(dir).status();
  }
  const auto plain = LoadModelConfig(kShared + "golden/hf_tiny_plain");
  EXPECT_TRUE(plain->tie_word_embeddings);
  EXPECT_EQ(plain->rms_norm_eps, 1e-5f);
  EXPECT_EQ(ModelConfig::kLatentNormEps, 1e-6f);
  EXPECT_EQ(plain->first_k_dense_replace, 2);
}

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

struct BadConfig {
  const char* name;
  void (*edit)(Json& json);
  absl::StatusCode code;
  std::string key;  // what the sentence must name
};

class BadConfigTest : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, IsRefusedByItsKey) {
  const auto config = Parse(GetParam().edit);
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), GetParam().code) << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("config.json"));
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(GetParam().key));
}

#define TANDEM_SET(key, value) [](Json& json) { json[key] = value; }

INSTANTIATE_TEST_SUITE_P(
    Unsupported, BadConfigTest,
    testing::ValuesIn(std::vector<BadConfig>{
        {"OtherModel", TANDEM_SET("model_type", "deepseek_v3"), kUnimplemented, "deepseek_v3"},
        {"NoModelType", [](Json& json) { json.erase("model_type"); }, kUnimplemented, "model_type"},
        {"OrdinaryAttention", TANDEM_SET("use_mla", false), kUnimplemented, "use_mla"},
        {"NoauxTc", TANDEM_SET("topk_method", "noaux_tc"), kUnimplemented, "noaux_tc"},
        {"Sigmoid", TANDEM_SET("scoring_func", "sigmoid"), kUnimplemented, "sigmoid"},
        {"AttentionBias", TANDEM_SET("attention_bias", true), kUnimplemented, "attention_bias"},
        {"MlpBias", TANDEM_SET("mlp_bias", true), kUnimplemented, "mlp_bias"},
        {"Gelu", TANDEM_SET("hidden_act", "gelu"), kUnimplemented, "hidden_act"},
        {"Quantized", TANDEM_SET("quantization_config", Json::object()), kUnimplemented,
         "quantization_config"},
        {"LinearRope", TANDEM_SET("rope_scaling", (Json{{"type", "linear"}, {"factor", 2}})),
         kUnimplemented, "linear"},
        {"AttentionFactor", [](Json& json) { json["rope_scaling"]["attention_factor"] = 1.5; },
         kUnimplemented, "attention_factor"},
        {"RopeInHalves", TANDEM_SET("rope_interleave", false), kUnimplemented, "rope_interleave"},
        {"PartialRope", TANDEM_SET("partial_rotary_factor", 0.5), kUnimplemented,
         "partial_rotary_factor"},
        {"PartialRopeInside",
         [](Json& json) { json["rope_scaling"]["partial_rotary_factor"] = 0.5; }, kUnimplemented,
         "partial_rotary_factor"},
        {"UntruncatedYarn", [](Json& json) { json["rope_scaling"]["truncate"] = false; },
         kUnimplemented, "truncate"},
        {"OddWidth", TANDEM_SET("hidden_size", 36), kUnimplemented, "hidden_size"},
        {"OddHead", TANDEM_SET("v_head_dim", 12), kUnimplemented, "v_head_dim"},
    }),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    OutOfRange, BadConfigTest,
    testing::ValuesIn(std::vector<BadConfig>{
        {"ZeroWidth", TANDEM_SET("hidden_size", 0), kInvalid, "hidden_size"},
        {"NegativeLayers", TANDEM_SET("num_hidden_layers", -1), kInvalid, "num_hidden_layers"},
        {"AbsurdWidth", TANDEM_SET("intermediate_size", 1ll << 40), kInvalid, "intermediate_size"},
        {"AbsurdLayers", TANDEM_SET("num_hidden_layers", 1000000000), kInvalid,
         "num_hidden_layers"},
        {"AbsurdExperts", TANDEM_SET("n_routed_experts", 1000000000), kInvalid, "n_routed_experts"},
        {"AbsurdVocabulary", TANDEM_SET("vocab_size", ~0ull), kInvalid, "vocab_size"},
        {"FractionalHeads", TANDEM_SET("num_attention_heads", 1.5), kInvalid,
         "num_attention_heads"},
        {"MoreChosenThanExperts", TANDEM_SET("num_experts_per_tok", 9), kInvalid,
         "num_experts_per_tok"},
        {"NoneChosen", TANDEM_SET("num_experts_per_tok", 0), kInvalid, "num_experts_per_tok"},
        {"GroupsDoNotDivide",
         [](Json& json) {
           json["topk_method"] = "group_limited_greedy";
           json["n_group"] = 3;
           json["topk_group"] = 2;
         },
         kInvalid, "n_group"},
        {"NoGroups",
         [](Json& json) {
           json["topk_method"] = "group_limited_greedy";
           json.erase("n_group");
         },
         kInvalid, "n_group"},
        {"GroupsTooSmallForTheChoice",
         [](Json& json) {
           json["topk_method"] = "group_limited_greedy";
           json["n_group"] = 8;
           json["topk_group"] = 1;
         },
         kInvalid, "topk_group"},
        {"ZeroFrequency", TANDEM_SET("moe_layer_freq", 0), kInvalid, "moe_layer_freq"},
        {"NegativeEpsilon", TANDEM_SET("rms_norm_eps", -1e-6), kInvalid, "rms_norm_eps"},
        {"ThetaWhoseLogarithmIsZero", TANDEM_SET("rope_theta", 1), kInvalid, "rope_theta"},
        {"RopeTypesDiffer", [](Json& json) { json["rope_scaling"]["rope_type"] = "default"; },
         kInvalid, "rope_type"},
        {"RopesDiffer",
         [](Json& json) {
           json["rope_parameters"] = json["rope_scaling"];
           json["rope_parameters"]["factor"] = 20;
         },
         kInvalid, "rope_scaling and rope_parameters"},
        {"RopeThetasDiffer",
         [](Json& json) {
           json["rope_parameters"] = json["rope_scaling"];
           json["rope_scaling"]["rope_theta"] = 5000;
         },
         kInvalid, "rope_scaling and rope_parameters"},
        {"RopeTypeOfAnotherModel",
         [](Json& json) {
           json["rope_scaling"]["type"] = json["rope_scaling"]["rope_type"] = "llama3";
         },
         kUnimplemented, "llama3"},
        {"YarnWithoutType", [](Json& json) { json["rope_scaling"].erase("type"); }, kUnimplemented,
         "rope_scaling"},
        {"ZeroTheta", TANDEM_SET("rope_theta", 0), kInvalid, "rope_theta"},
        {"ZeroContext", TANDEM_SET("max_position_embeddings", 0), kInvalid,
         "max_position_embeddings"},
        {"ShrinkingYarn", [](Json& json) { json["rope_scaling"]["factor"] = 0; }, kInvalid,
         "factor"},
        {"YarnWithoutFactor", [](Json& json) { json["rope_scaling"].erase("factor"); }, kInvalid,
         "factor"},
        {"RopeNotAnObject", TANDEM_SET("rope_scaling", 7), kInvalid, "rope_scaling"},
        {"EndBeyondVocabulary", TANDEM_SET("eos_token_id", 96), kInvalid, "eos_token_id"},
        {"NegativeBegin", TANDEM_SET("bos_token_id", -1), kInvalid, "bos_token_id"},
    }),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    WrongType, BadConfigTest,
    testing::ValuesIn(std::vector<BadConfig>{
        {"WidthAsText", TANDEM_SET("hidden_size", "32"), kInvalid, "hidden_size"},
        {"LayersAsList", TANDEM_SET("num_hidden_layers", Json::array()), kInvalid,
         "num_hidden_layers"},
        {"FlagAsNumber", TANDEM_SET("tie_word_embeddings", 1), kInvalid, "tie_word_embeddings"},
        {"MethodAsNumber", TANDEM_SET("topk_method", 1), kInvalid, "topk_method"},
        {"EndAsText", TANDEM_SET("eos_token_id", "1"), kInvalid, "eos_token_id"},
        {"EpsilonAsObject", TANDEM_SET("rms_norm_eps", Json::object()), kInvalid, "rms_norm_eps"},
    }),
    [](const auto& info) { return info.param.name; });

TEST(ModelConfigTest, NamesEveryMissingKey) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
        "num_hidden_layers", "num_attention_heads", "n_shared_experts", "first_k_dense_replace",
        "topk_method", "routed_scaling_factor", "kv_lora_rank", "qk_nope_head_dim",
        "qk_rope_head_dim", "v_head_dim", "num_experts_per_tok", "rms_norm_eps", "rope_theta",
        "max_position_embeddings"}) {
    const auto config = Parse([&](Json& json) { json.erase(key); });
    ASSERT_FALSE(config.ok()) << key;
    EXPECT_EQ(config.status().code(), kInvalid);
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(key));
  }
}

TEST(ModelConfigTest, RefusesGarbageWithoutFalling) {
  const std::string garbage[] = {"",
                                 "{",
                                 "[]",
                                 "null",
                                 "7",
                                 "\xff",
                                 "{}}",
                                 "{\"model_type\":",
                                 std::string(100000, '['),
                                 std::string(1000, '\0')};
  for (const std::string& text : garbage) {
    const auto config = ParseModelConfig(text, "config.json");
    EXPECT_EQ(config.status().code(), kInvalid) << config.status();
  }
}

TEST(ModelConfigTest, SurvivesEveryCutAndEveryFlippedByte) {
  const std::string whole = kSmallConfig;
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_FALSE(ParseModelConfig(whole.substr(0, i), "config.json").ok()) << i;
    for (const int flip : {0x01, 0x10, 0x80}) {
      std::string broken = whole;
      broken[i] = static_cast<char>(broken[i] ^ flip);
      const auto config = ParseModelConfig(broken, "config.json");
      if (config.ok()) config->RopeFrequencies();
    }
  }
}

TEST(ModelConfigTest, QuotesOnlyTheBeginningOfALongValue) {
  const auto config = Parse([](Json& json) { json["hidden_act"] = std::string(100000, 'x'); });
  EXPECT_LT(config.status().message().size(), 300u);
}

TEST(ModelConfigTest, RefusesAFileThatIsFarTooLarge) {
  const ScratchDir dir;
  WriteFile(dir.File("config.json"), kSmallConfig + std::string(2 << 20, ' '));
  EXPECT_EQ(LoadModelConfig(dir.path()).status().code(), kInvalid);
}

TEST(ModelConfigTest, NamesAMissingFile) {
  const ScratchDir dir;
  const auto config = LoadModelConfig(dir.path());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("config.json"));
}

}  // namespace
}  // namespace tandem
