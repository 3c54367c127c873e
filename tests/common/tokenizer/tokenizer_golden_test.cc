// The tokenizer against ids made by others: Hugging Face `tokenizers` and llama.cpp.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/tokenizer/chat_template.h"
#include "common/tokenizer/deepseek_split.h"
#include "common/tokenizer/incremental_detokenizer.h"
#include "common/tokenizer/tokenizer.h"

namespace tandem {
namespace {

using nlohmann::json;
using AddedTokens = Tokenizer::AddedTokens;
using Ids = std::vector<int32_t>;

const std::filesystem::path kSource = TANDEM_SOURCE_DIR;
const std::filesystem::path kShared = kSource.parent_path() / "shared";

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<json> ReadLines(const std::filesystem::path& path) {
  std::vector<json> lines;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) lines.push_back(json::parse(line));
  return lines;
}

void CheckEncoding(const Tokenizer& tokenizer, const std::string& text, const Ids& expected,
                   AddedTokens added_tokens = AddedTokens::kMatch) {
  const auto ids = tokenizer.Encode(text, added_tokens, /*add_bos=*/false);
  ASSERT_TRUE(ids.ok()) << ids.status();
  ASSERT_EQ(*ids, expected) << testing::PrintToString(text);
}

// Decodes at once and as a stream.
void CheckDecoding(const Tokenizer& tokenizer, const Ids& ids, const std::string& expected,
                   bool skip_special = false) {
  const auto text = tokenizer.Decode(ids, skip_special);
  ASSERT_TRUE(text.ok()) << text.status();
  ASSERT_EQ(*text, expected);
  IncrementalDetokenizer detokenizer(&tokenizer, skip_special);
  std::string streamed;
  for (const int32_t id : ids) streamed += detokenizer.Push(id);
  ASSERT_EQ(streamed + detokenizer.Flush(), expected);
}

class V2LiteTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!std::filesystem::exists(kShared / "model" / "tokenizer.json")) return;
    auto loaded = Tokenizer::Load((kShared / "model").string());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = loaded->release();
  }
  static void TearDownTestSuite() {
    delete tokenizer_;
    tokenizer_ = nullptr;
  }
  void SetUp() override {
    if (tokenizer_ == nullptr) GTEST_SKIP() << "../shared/model/tokenizer.json is not there";
  }

  static const Tokenizer* tokenizer_;
};
const Tokenizer* V2LiteTest::tokenizer_ = nullptr;

TEST_F(V2LiteTest, KnowsItsTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 100002);
  EXPECT_EQ(tokenizer_->bos_id(), 100000);
  EXPECT_EQ(tokenizer_->eos_id(), 100001);
  EXPECT_TRUE(tokenizer_->add_bos());
  EXPECT_TRUE(tokenizer_->IsSpecial(100001));
  EXPECT_FALSE(tokenizer_->HasToken(100002));
  EXPECT_EQ(tokenizer_->TokenBytes(100000), "<｜begin▁of▁sentence｜>");
}

TEST_F(V2LiteTest, ItsPatternsAreThoseOfTheFastPath) {
  const json file = json::parse(ReadFile(kShared / "model" / "tokenizer.json"));
  const json& steps = file["pre_tokenizer"]["pretokenizers"];
  ASSERT_EQ(steps.size(), DeepSeekPatterns().size() + 2);
  for (size_t i = 0; i < DeepSeekPatterns().size(); ++i) {
    EXPECT_EQ(steps[i]["pattern"]["Regex"], DeepSeekPatterns()[i]) << "step " << i;
  }
}

class V2LiteVectorsTest : public V2LiteTest, public testing::WithParamInterface<const char*> {};

TEST_P(V2LiteVectorsTest, Agree) {
  const std::vector<json> lines = ReadLines(kShared / "golden" / GetParam());
  ASSERT_FALSE(lines.empty());
  for (const json& line : lines) {
    if (line.contains("valid_for_v2_lite") && line["valid_for_v2_lite"] == false) continue;
    const std::string text = line.at("text");
    const Ids ids = line.at("ids");
    ASSERT_NO_FATAL_FAILURE(CheckEncoding(*tokenizer_, text, ids));
    ASSERT_NO_FATAL_FAILURE(CheckDecoding(*tokenizer_, ids, line.value("decoded", text)));
  }
}

INSTANTIATE_TEST_SUITE_P(Files, V2LiteVectorsTest,
                         testing::Values("tokenizer_vectors.jsonl",
                                         "tokenizer_vectors_derived.jsonl",
                                         "tokenizer_random_unicode.jsonl"),
                         [](const auto& info) {
                           const std::string name = info.param;
                           return name.substr(0, name.find('.'));
                         });

TEST_F(V2LiteTest, EveryIdOfWikitextAgrees) {
  const json golden = json::parse(ReadFile(kShared / "golden" / "wikitext2_v2lite.json"));
  const std::string text = golden["text"];
  const Ids expected = golden["ids"];
  const auto ids = tokenizer_->Encode(text, AddedTokens::kMatch, golden["bos_included"]);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, expected);
  EXPECT_EQ(*tokenizer_->Decode(*ids, /*skip_special=*/true), text);
}

TEST_F(V2LiteTest, ChatAgrees) {
  const json golden = json::parse(ReadFile(kShared / "golden" / "chat_template_v2.json"));
  std::vector<ChatMessage> messages;
  for (const json& message : golden["messages"]) {
    messages.push_back({message["role"], message["content"]});
  }
  const std::string expected =
      std::string(golden["real_model_prefix"]) + std::string(golden["expected_without_bos"]);
  const auto ids = tokenizer_->EncodeChat(messages, golden["add_generation_prompt"]);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*tokenizer_->Decode(*ids, /*skip_special=*/false), expected);
  EXPECT_EQ(*ids, *tokenizer_->Encode(expected, AddedTokens::kMatch, /*add_bos=*/false));
}

TEST_F(V2LiteTest, LongPiecesTakeNoQuadraticTime) {
  for (const std::string& text : {std::string(1 << 18, 'a'),
                                  std::string(1 << 18, ' ') + "é" + std::string(1 << 18, ' ') + "1",
                                  std::string(1 << 18, '='), std::string(1 << 18, '\x01')}) {
    const auto ids = tokenizer_->Encode(text, AddedTokens::kPlain, /*add_bos=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*tokenizer_->Decode(*ids, /*skip_special=*/false), text);
  }
}

// The project's own small tokenizer; the files' forms are described in tests/golden/README.md.
class OwnTokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load((folder_ / "tiny").string());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }

  const std::filesystem::path folder_ = kSource / "tests" / "golden";
  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_F(OwnTokenizerTest, RandomUnicodeAgreesWithHuggingFace) {
  const std::vector<json> lines = ReadLines(folder_ / "tokenizer_random.jsonl");
  EXPECT_GE(lines.size(), 10000u);
  for (const json& line : lines) {
    const std::string text = line.at(0);
    const Ids ids = line.at(1);
    const Ids plain_ids = line.size() > 2 && !line[2].is_null() ? Ids(line[2]) : ids;
    const std::string decoded = line.size() > 3 ? std::string(line[3]) : text;
    ASSERT_NO_FATAL_FAILURE(CheckEncoding(*tokenizer_, text, ids));
    ASSERT_NO_FATAL_FAILURE(CheckEncoding(*tokenizer_, text, plain_ids, AddedTokens::kPlain));
    ASSERT_NO_FATAL_FAILURE(CheckDecoding(*tokenizer_, ids, decoded));
  }
}

TEST_F(OwnTokenizerTest, RandomIdsDecodeAsWithHuggingFace) {
  const std::vector<json> lines = ReadLines(folder_ / "detokenizer_random.jsonl");
  EXPECT_GE(lines.size(), 1000u);
  for (const json& line : lines) {
    const Ids ids = line.at(0);
    const std::string text = line.at(1);
    const std::string without_special = line.size() > 2 ? std::string(line[2]) : text;
    ASSERT_NO_FATAL_FAILURE(CheckDecoding(*tokenizer_, ids, text));
    ASSERT_NO_FATAL_FAILURE(CheckDecoding(*tokenizer_, ids, without_special, true));
  }
}

TEST_F(OwnTokenizerTest, RandomAddedTokensAgreeWithHuggingFace) {
  json file = json::parse(ReadFile(folder_ / "tiny" / "tokenizer.json"));
  int num_texts = 0;
  for (const json& golden : ReadLines(folder_ / "added_tokens_random.jsonl")) {
    file["added_tokens"] = golden["added_tokens"];
    file["post_processor"] = golden["post_processor"];
    const auto parsed = Tokenizer::Parse(file.dump(), "");
    ASSERT_TRUE(parsed.ok()) << parsed.status() << golden["added_tokens"];
    const Tokenizer& tokenizer = **parsed;
    for (const json& line : golden["texts"]) {
      const std::string text = line.at(0);
      const auto ids =
          tokenizer.Encode(text, AddedTokens::kMatch, tokenizer.add_bos(), tokenizer.add_eos());
      ASSERT_TRUE(ids.ok()) << ids.status();
      ASSERT_EQ(*ids, Ids(line.at(1))) << line[0] << " " << golden["added_tokens"];
      ++num_texts;
    }
    for (const json& line : golden["id_lists"]) {
      ASSERT_NO_FATAL_FAILURE(CheckDecoding(tokenizer, line.at(0), line.at(1)));
      ASSERT_NO_FATAL_FAILURE(CheckDecoding(tokenizer, line.at(0), line.at(2), true));
    }
  }
  EXPECT_GE(num_texts, 2000);
}

TEST_F(OwnTokenizerTest, ChatsAgreeWithJinja) {
  const json config = json::parse(ReadFile(folder_ / "tiny" / "tokenizer_config.json"));
  const auto format = RecognizeChatTemplate(std::string(config["chat_template"]));
  ASSERT_TRUE(format.ok()) << format.status();
  const ChatTemplate chat(*format, config["bos_token"]["content"], config["eos_token"]["content"]);
  int num_encoded = 0;
  for (const json& golden : json::parse(ReadFile(folder_ / "chat_template.json"))) {
    std::vector<ChatMessage> messages;
    bool is_harmless = true;  // no content spells an added token
    for (const json& message : golden["messages"]) {
      messages.push_back({message["role"], message["content"]});
      const std::string& content = messages.back().content;
      is_harmless &= *tokenizer_->Encode(content, AddedTokens::kMatch, false) ==
                     *tokenizer_->Encode(content, AddedTokens::kPlain, false);
    }
    const bool add_generation_prompt = golden["add_generation_prompt"];
    std::string text;
    for (const ChatSegment& segment : chat.Render(messages, add_generation_prompt)) {
      text += segment.text;
    }
    ASSERT_EQ(text, golden["text"]);
    ASSERT_NO_FATAL_FAILURE(CheckEncoding(*tokenizer_, text, golden["ids"]));
    const auto ids = tokenizer_->EncodeChat(messages, add_generation_prompt);
    ASSERT_EQ(ids.ok(), ChatTemplate::Validate(messages).ok()) << ids.status();
    if (!ids.ok()) continue;
    ASSERT_EQ(*tokenizer_->Decode(*ids, /*skip_special=*/false), text);
    if (is_harmless) {
      ASSERT_EQ(*ids, Ids(golden["ids"]));
      ++num_encoded;
    }
  }
  EXPECT_GE(num_encoded, 50);
}
}  // namespace
}  // namespace tandem
