#include "common/tokenizer/tokenizer_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string>

#include "common/tokenizer/tokenizer.h"
#include "tests/common/tokenizer/mini_tokenizer.h"

namespace tandem {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TEST(TokenizerFileTest, ReadsMergesOfBothSpellings) {
  json file = MiniTokenizerJson();
  const auto as_strings = ParseTokenizerFile(file.dump());
  ASSERT_TRUE(as_strings.ok()) << as_strings.status();
  for (json& merge : file["model"]["merges"]) {
    const std::string text = merge;
    const size_t space = text.find(' ');
    merge = json::array({text.substr(0, space), text.substr(space + 1)});
  }
  const auto as_arrays = ParseTokenizerFile(file.dump());
  ASSERT_TRUE(as_arrays.ok()) << as_arrays.status();
  ASSERT_EQ(as_arrays->merges.size(), as_strings->merges.size());
  for (size_t i = 0; i < as_arrays->merges.size(); ++i) {
    EXPECT_EQ(as_arrays->merges[i].result, as_strings->merges[i].result);
  }
}

struct BadFile {
  const char* name;
  std::function<void(json&)> edit;
  absl::StatusCode code;
  const char* message;  // a part of it
};

const absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
const absl::StatusCode kUnsupported = absl::StatusCode::kUnimplemented;

json& Step(json& file, int index) { return file["pre_tokenizer"]["pretokenizers"][index]; }

// Sets the post-processor that the tools of Llama checkpoints write, and returns it.
json& Template(json& file) { return file["post_processor"] = BosTemplateJson(); }

TEST(TokenizerFileTest, RefusesWhatItCannotDoAndNamesIt) {
  const BadFile cases[] = {
      {"not an object", [](json& f) { f = json::array(); }, kInvalid, "JSON object"},
      {"truncation",
       [](json& f) {
         f["truncation"] = {{"a", 1}};
       },
       kUnsupported, "truncation"},
      {"normalizer",
       [](json& f) {
         f["normalizer"] = {{"type", "NFC"}};
       },
       kUnsupported, "normalizer"},
      {"normalizers",
       [](json& f) {
         f["normalizer"]["normalizers"].push_back({{"type", "NFC"}});
       },
       kUnsupported, "normalizer"},
      {"no pre_tokenizer", [](json& f) { f.erase("pre_tokenizer"); }, kUnsupported,
       "pre_tokenizer"},
      {"pre_tokenizer",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Metaspace"}};
       },
       kUnsupported, "pre_tokenizer"},
      {"step type", [](json& f) { Step(f, 0)["type"] = "Whitespace"; }, kUnsupported, "Whitespace"},
      {"step no object", [](json& f) { Step(f, 0) = 7; }, kUnsupported, "step 0"},
      {"string pattern",
       [](json& f) {
         Step(f, 0)["pattern"] = {{"String", "a"}};
       },
       kUnsupported, "Regex"},
      {"no pattern", [](json& f) { Step(f, 0).erase("pattern"); }, kInvalid, "pattern"},
      {"bad regex", [](json& f) { Step(f, 0)["pattern"]["Regex"] = "(["; }, kInvalid, "(["},
      {"behavior", [](json& f) { Step(f, 1)["behavior"] = "Removed"; }, kUnsupported, "behavior"},
      {"invert", [](json& f) { Step(f, 1)["invert"] = true; }, kUnsupported, "invert"},
      {"digits", [](json& f) { Step(f, 5)["individual_digits"] = false; }, kUnsupported,
       "individual_digits"},
      {"use_regex", [](json& f) { Step(f, 6)["use_regex"] = true; }, kUnsupported, "use_regex"},
      {"prefix space", [](json& f) { Step(f, 6)["add_prefix_space"] = true; }, kUnsupported,
       "add_prefix_space"},
      {"no ByteLevel", [](json& f) { f["pre_tokenizer"]["pretokenizers"].erase(6); }, kUnsupported,
       "ByteLevel"},
      {"post_processor", [](json& f) { f["post_processor"]["type"] = "RobertaProcessing"; },
       kUnsupported, "RobertaProcessing"},
      {"processors",
       [](json& f) {
         f["post_processor"] = {{"type", "Sequence"}};
       },
       kInvalid, "processors"},
      {"two templates",
       [](json& f) {
         f["post_processor"] = {{"type", "Sequence"},
                                {"processors", {BosTemplateJson(), BosTemplateJson()}}};
       },
       kUnsupported, "TemplateProcessing after a template"},
      {"no single",
       [](json& f) {
         f["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       kInvalid, "single"},
      {"template without text", [](json& f) { Template(f)["single"].erase(1); }, kUnsupported,
       "leaves out the text"},
      {"template of two texts",
       [](json& f) {
         json& single = Template(f)["single"];
         single.push_back(single[1]);
       },
       kUnsupported, "one text"},
      {"template of two tokens",
       [](json& f) {
         json& single = Template(f)["single"];
         single.insert(single.begin(), single[0]);
       },
       kUnsupported, "at most one token"},
      {"template with an unknown token", [](json& f) { Template(f)["special_tokens"].clear(); },
       kInvalid, "<｜begin▁of▁sentence｜>"},
      {"template with an id without a token",
       [](json& f) { Template(f)["special_tokens"]["<｜begin▁of▁sentence｜>"]["ids"] = {299}; },
       kInvalid, "299"},
      {"template with two ids",
       [](json& f) {
         Template(f)["special_tokens"]["<｜begin▁of▁sentence｜>"]["ids"] = {1, 2};
       },
       kUnsupported, "2 ids"},
      {"decoder", [](json& f) { f["decoder"] = nullptr; }, kUnsupported, "decoder"},
      {"no model", [](json& f) { f.erase("model"); }, kInvalid, "model"},
      {"model type", [](json& f) { f["model"]["type"] = "Unigram"; }, kUnsupported, "Unigram"},
      {"dropout", [](json& f) { f["model"]["dropout"] = 0.1; }, kUnsupported, "dropout"},
      {"unk", [](json& f) { f["model"]["unk_token"] = "?"; }, kUnsupported, "unk_token"},
      {"byte_fallback", [](json& f) { f["model"]["byte_fallback"] = true; }, kUnsupported,
       "byte_fallback"},
      {"ignore_merges", [](json& f) { f["model"]["ignore_merges"] = true; }, kUnsupported,
       "ignore_merges"},
      {"vocab", [](json& f) { f["model"]["vocab"] = json::array(); }, kInvalid, "vocab"},
      {"negative id", [](json& f) { f["model"]["vocab"]["a"] = -1; }, kInvalid, "\"a\""},
      {"huge id", [](json& f) { f["model"]["vocab"]["a"] = 4000000000; }, kInvalid, "\"a\""},
      {"text id", [](json& f) { f["model"]["vocab"]["a"] = "5"; }, kInvalid, "\"a\""},
      {"same id", [](json& f) { f["model"]["vocab"]["a"] = 98; }, kInvalid, "98"},
      {"empty token", [](json& f) { f["model"]["vocab"][""] = 299; }, kInvalid, "empty"},
      {"merges", [](json& f) { f["model"]["merges"] = 1; }, kInvalid, "merges"},
      {"merge of three", [](json& f) { f["model"]["merges"][1] = "a b c"; }, kInvalid, "merges[1]"},
      {"merge of one", [](json& f) { f["model"]["merges"][1] = "ab"; }, kInvalid, "merges[1]"},
      {"merge of numbers",
       [](json& f) {
         f["model"]["merges"][1] = {1, 2};
       },
       kInvalid, "merges[1]"},
      {"unknown merge", [](json& f) { f["model"]["merges"][1] = "a a"; }, kInvalid, "merges[1]"},
      {"added_tokens", [](json& f) { f["added_tokens"] = 3; }, kInvalid, "added_tokens"},
      {"added no object", [](json& f) { f["added_tokens"][0] = 3; }, kInvalid, "added_tokens"},
      {"added no id", [](json& f) { f["added_tokens"][0].erase("id"); }, kInvalid, "added_tokens"},
      {"added empty", [](json& f) { f["added_tokens"][0]["content"] = ""; }, kInvalid, "added"},
      {"added lstrip", [](json& f) { f["added_tokens"][0]["lstrip"] = 1; }, kInvalid, "lstrip"},
      {"added flag", [](json& f) { f["added_tokens"][0]["special"] = "yes"; }, kInvalid, "special"},
      {"added twice", [](json& f) { f["added_tokens"].push_back(f["added_tokens"][0]); }, kInvalid,
       "twice"},
      {"added on a token", [](json& f) { f["added_tokens"][0]["id"] = 5; }, kInvalid,
       "contradicts"},
  };
  for (const BadFile& bad : cases) {
    json file = MiniTokenizerJson();
    bad.edit(file);
    const auto tokenizer = Tokenizer::Parse(file.dump(), "");
    EXPECT_EQ(tokenizer.status().code(), bad.code) << bad.name << ": " << tokenizer.status();
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(bad.message)) << bad.name;
  }
}

TEST(TokenizerFileTest, RefusesBadConfigs) {
  const BadFile cases[] = {
      {"no object", [](json& c) { c = 5; }, kInvalid, "JSON object"},
      {"bos type", [](json& c) { c["bos_token"] = 5; }, kInvalid, "bos_token"},
      {"bos object",
       [](json& c) {
         c["bos_token"] = {{"a", 1}};
       },
       kInvalid, "bos_token"},
      {"bos unknown", [](json& c) { c["bos_token"] = "<s>"; }, kUnsupported, "<s>"},
      {"bos missing", [](json& c) { c.erase("bos_token"); }, kUnsupported, "bos_token"},
      {"eos empty", [](json& c) { c["eos_token"] = ""; }, kUnsupported, "added_tokens"},
      {"add_bos", [](json& c) { c["add_bos_token"] = 1; }, kInvalid, "add_bos_token"},
      {"add_eos", [](json& c) { c["add_eos_token"] = "yes"; }, kInvalid, "add_eos_token"},
      {"eos missing",
       [](json& c) {
         c.erase("eos_token");
         c["add_eos_token"] = true;
       },
       kUnsupported, "eos_token"},
  };
  for (const BadFile& bad : cases) {
    json config = MiniConfigJson();
    bad.edit(config);
    const auto tokenizer = Tokenizer::Parse(MiniTokenizerJson().dump(), config.dump());
    EXPECT_EQ(tokenizer.status().code(), bad.code) << bad.name << ": " << tokenizer.status();
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(bad.message)) << bad.name;
  }
}

TEST(TokenizerFileTest, SurvivesGarbage) {
  const std::string good = MiniTokenizerJson().dump();
  std::mt19937 rng(5);
  for (int round = 0; round < 300; ++round) {
    std::string bad = good;
    for (int i = 0; i < 3; ++i) bad[rng() % bad.size()] = static_cast<char>(rng());
    if (round % 3 == 0) bad.resize(rng() % bad.size());
    const auto tokenizer = Tokenizer::Parse(bad, bad);
    if (tokenizer.ok()) (void)(*tokenizer)->Encode("hello", Tokenizer::AddedTokens::kMatch, false);
  }
}

TEST(TokenizerFileTest, SurvivesDeepNesting) {
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  EXPECT_FALSE(ParseTokenizerFile(deep).ok());
  EXPECT_FALSE(ParseTokenizerFile("{\"normalizer\":" + deep + "}").ok());
  EXPECT_FALSE(ParseTokenizerFile("{\"decoder\":{\"type\":" + deep + "}}").ok());
  json file = MiniTokenizerJson();
  file["post_processor"] = "HERE";
  std::string text = file.dump();
  text.replace(text.find("\"HERE\""), 6, deep);
  EXPECT_FALSE(ParseTokenizerFile(text).ok());
  EXPECT_TRUE(ParseTokenizerConfig("{\"chat_template\":" + deep + "}").ok());
  EXPECT_FALSE(ParseTokenizerConfig("{\"add_bos_token\":" + deep + "}").ok());
}

}  // namespace
}  // namespace tandem
