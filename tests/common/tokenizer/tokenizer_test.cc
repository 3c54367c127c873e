#include "common/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/common/tokenizer/mini_tokenizer.h"
#include "tests/common/tokenizer/stop_at.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using AddedTokens = Tokenizer::AddedTokens;

std::string ReadWholeFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::unique_ptr<const Tokenizer> Mini() {
  auto tokenizer = Tokenizer::Parse(MiniTokenizerJson().dump(), MiniConfigJson().dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, absl::string_view text,
                            AddedTokens added_tokens = AddedTokens::kMatch, bool add_bos = false) {
  const auto ids = tokenizer.Encode(text, added_tokens, add_bos);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return *ids;
}

TEST(TokenizerTest, EncodesByHand) {
  const auto mini = Mini();
  EXPECT_THAT(Encode(*mini, "hello world"), ElementsAre(259, 260, 'o', 'r', 'l', 'd'));
  EXPECT_THAT(Encode(*mini, "abc12"), ElementsAre(262, '1', '2'));
  EXPECT_THAT(Encode(*mini, "é"), ElementsAre(0xC3, 0xA9));
  EXPECT_THAT(Encode(*mini, ""), ElementsAre());
  EXPECT_THAT(Encode(*mini, "", AddedTokens::kMatch, /*add_bos=*/true), ElementsAre(kMiniBos));
  EXPECT_EQ(mini->bos_id(), kMiniBos);
  EXPECT_EQ(mini->eos_id(), kMiniEos);
  EXPECT_TRUE(mini->add_bos());
  EXPECT_EQ(mini->vocab_size(), kMiniUser + 1);
}

TEST(TokenizerTest, MatchesAddedTokensOnlyOnDemand) {
  const auto mini = Mini();
  const std::string text = "a<｜end▁of▁sentence｜><｜User｜>b <｜User";
  const std::vector<int32_t> matched = Encode(*mini, text);
  ASSERT_GE(matched.size(), 5u);
  EXPECT_THAT(std::vector<int32_t>(matched.begin(), matched.begin() + 5),
              ElementsAre('a', kMiniEos, kMiniUser, 'b', ' '));
  EXPECT_THAT(Encode(*mini, text, AddedTokens::kPlain), testing::Each(testing::Lt(264)));
  EXPECT_EQ(*mini->Decode(Encode(*mini, text, AddedTokens::kPlain), false), text);
}

TEST(TokenizerTest, AddedTokensAreLeftmostThenLongest) {
  nlohmann::json file = MiniTokenizerJson();
  const auto add = [&](int id, const char* content, bool normalized) {
    file["added_tokens"].push_back({{"id", id}, {"content", content}, {"normalized", normalized}});
  };
  add(310, "pq", true);
  add(311, "pqpq", true);
  add(312, "qpqr", true);
  add(313, "xx", false);
  add(314, "pxxq", true);  // never matches: xx is taken before tokens that are normalized
  const auto tokenizer = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(Encode(**tokenizer, "pqpqpqr"), ElementsAre(311, 310, 'r'));
  EXPECT_THAT(Encode(**tokenizer, "qqpqrpq"), ElementsAre('q', 312, 310));
  EXPECT_THAT(Encode(**tokenizer, "pxxq pq"), ElementsAre('p', 313, 'q', ' ', 310));
}

// The ids of "ab" as a prompt of plain text.
std::vector<int32_t> PromptOf(const nlohmann::json& file, const nlohmann::json& config) {
  const auto tokenizer = Tokenizer::Parse(file.dump(), config.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  if (!tokenizer.ok()) return {};
  const Tokenizer& t = **tokenizer;
  EXPECT_FALSE(t.prompt_rule().empty());
  return *t.Encode("ab", AddedTokens::kPlain, t.add_bos(), t.add_eos());
}

TEST(TokenizerTest, ATemplateGivesOneBosWhateverTheConfigSays) {
  nlohmann::json eos_too = BosTemplateJson();
  const char* eos = "<｜end▁of▁sentence｜>";
  eos_too["single"].push_back({{"SpecialToken", {{"id", eos}, {"type_id", 0}}}});
  eos_too["special_tokens"][eos] = {{"id", eos}, {"ids", {kMiniEos}}, {"tokens", {eos}}};
  nlohmann::json text_only = BosTemplateJson();
  text_only["single"].erase(0);
  for (const bool in_sequence : {false, true}) {
    const auto with = [&](const nlohmann::json& post_processor) {
      nlohmann::json file = MiniTokenizerJson();
      file["post_processor"] = post_processor;
      if (in_sequence) {
        file["post_processor"] = {{"type", "Sequence"},
                                  {"processors", {{{"type", "ByteLevel"}}, post_processor}}};
      }
      return file;
    };
    for (const nlohmann::json& add_bos : nlohmann::json({true, false, nullptr})) {
      nlohmann::json config = MiniConfigJson();
      config["add_bos_token"] = add_bos;
      EXPECT_THAT(PromptOf(with(BosTemplateJson()), config), ElementsAre(kMiniBos, 261));
      EXPECT_THAT(PromptOf(with(eos_too), config), ElementsAre(kMiniBos, 261, kMiniEos));
    }
    EXPECT_THAT(PromptOf(with(text_only), MiniConfigJson()), ElementsAre(kMiniBos, 261));
    EXPECT_THAT(PromptOf(with(BosTemplateJson()), nlohmann::json::object()),
                ElementsAre(kMiniBos, 261));
  }
}

TEST(TokenizerTest, AddEosTokenIsHonoured) {
  nlohmann::json config = MiniConfigJson();
  config["add_eos_token"] = true;
  EXPECT_THAT(PromptOf(MiniTokenizerJson(), config), ElementsAre(kMiniBos, 261, kMiniEos));
}

TEST(TokenizerTest, WithoutAddBosTokenANamedBosIsAdded) {
  nlohmann::json config = MiniConfigJson();
  config.erase("add_bos_token");
  EXPECT_THAT(PromptOf(MiniTokenizerJson(), config), ElementsAre(kMiniBos, 261));
  config["add_bos_token"] = nullptr;
  EXPECT_THAT(PromptOf(MiniTokenizerJson(), config), ElementsAre(kMiniBos, 261));
  const auto tokenizer = Tokenizer::Parse(MiniTokenizerJson().dump(), config.dump());
  EXPECT_THAT((*tokenizer)->prompt_rule(), HasSubstr("bos_token of tokenizer_config.json"));
  config["add_bos_token"] = false;
  EXPECT_THAT(PromptOf(MiniTokenizerJson(), config), ElementsAre(261));
  config.erase("add_bos_token");
  config.erase("bos_token");
  EXPECT_THAT(PromptOf(MiniTokenizerJson(), config), ElementsAre(261));
}

// As HF `tokenizers` 0.23.3 with these tokens.
TEST(TokenizerTest, AddedTokensTakeTheSpaceAroundThemAndMindWords) {
  nlohmann::json file = MiniTokenizerJson();
  const auto add = [&](int id, const char* content, const char* flag) {
    file["added_tokens"].push_back({{"id", id}, {"content", content}, {flag, true}});
  };
  add(303, "<l>", "lstrip");
  add(304, "<r>", "rstrip");
  add(305, "<w>", "single_word");
  const auto parsed = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const Tokenizer& t = **parsed;
  EXPECT_THAT(Encode(t, "a \u2003\n<l> b"), ElementsAre('a', 303, ' ', 'b'));
  EXPECT_THAT(Encode(t, "a <r>\u3000\t\u00A0b"), ElementsAre('a', ' ', 304, 'b'));
  EXPECT_THAT(Encode(t, "<r>  <l>"), ElementsAre(304, 303));
  EXPECT_THAT(Encode(t, "a<w>"), ElementsAre('a', '<', 'w', '>'));
  EXPECT_THAT(Encode(t, "a <w>.<w>"), ElementsAre('a', ' ', 305, '.', 305));
  EXPECT_THAT(Encode(t, "<w>\u0301"), ElementsAre('<', 'w', '>', 0xCC, 0x81));  // a mark
  EXPECT_THAT(Encode(t, "<w>\u200B"), ElementsAre(305, 0xE2, 0x80, 0x8B));      // no word
  EXPECT_THAT(Encode(t, "a \n<l>", AddedTokens::kPlain),
              ElementsAre('a', ' ', '\n', '<', 'l', '>'));
}

// The spelling of DeepSeek-Coder-V2-Lite: full-width bars (U+FF5C) and U+2581 for a space.
TEST(TokenizerTest, MarkersOfFillInTheMiddleCountInTheirRealSpellingOnly) {
  nlohmann::json file = MiniTokenizerJson();
  const char* markers[] = {"<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"};
  for (int i = 0; i < 3; ++i) {
    file["added_tokens"].push_back({{"id", 303 + i}, {"content", markers[i]}});
  }
  const auto parsed = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const char* text = "<｜fim▁begin｜>ab\n<｜fim▁hole｜>\nhello<｜fim▁end｜>";
  EXPECT_THAT(Encode(**parsed, text), ElementsAre(304, 261, '\n', 303, '\n', 259, 305));
  const auto none = testing::Each(testing::Lt(300));
  EXPECT_THAT(Encode(**parsed, text, AddedTokens::kPlain), none);
  EXPECT_THAT(Encode(**parsed, "<|fim_begin|>ab<|fim_hole|>"), none);
  EXPECT_THAT(Encode(**parsed, "<｜fim_begin｜>ab<｜fim hole｜>"), none);
}

TEST(TokenizerTest, ManySpacesCostNoQuadraticTime) {
  nlohmann::json file = MiniTokenizerJson();
  file["added_tokens"].push_back(
      {{"id", 303}, {"content", " "}, {"lstrip", true}, {"rstrip", true}});
  file["added_tokens"].push_back({{"id", 304}, {"content", "\t"}, {"rstrip", true}});
  const auto tokenizer = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(Encode(**tokenizer, std::string(1 << 20, ' ')), ElementsAre(303));
  EXPECT_EQ(Encode(**tokenizer, std::string(1 << 20, '\t')).size(), 1u << 20);
}

// The vocabulary's "abc" (262) is an added token too.
TEST(TokenizerTest, PlainTextNeverYieldsAnAddedToken) {
  nlohmann::json file = MiniTokenizerJson();
  file["added_tokens"].push_back({{"id", 262}, {"content", "abc"}, {"special", true}});
  const auto tokenizer = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(Encode(**tokenizer, "abc ab"), ElementsAre(262, ' ', 261));
  EXPECT_THAT(Encode(**tokenizer, "abc ab", AddedTokens::kPlain),
              ElementsAre('a', 'b', 'c', ' ', 261));
}

TEST(TokenizerTest, NamesTheByteThatIsNotUtf8) {
  const auto mini = Mini();
  for (const AddedTokens added_tokens : {AddedTokens::kMatch, AddedTokens::kPlain}) {
    const auto ids = mini->Encode("ok \xC3(", added_tokens, false);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 3"));
  }
}

TEST(TokenizerTest, DecodesWithAndWithoutSpecialTokens) {
  const auto mini = Mini();
  const std::vector<int32_t> ids = {kMiniBos, 259, 260, kMiniUser, 0xC3, kMiniEos, 0xA9};
  EXPECT_EQ(*mini->Decode(ids, false),
            "<｜begin▁of▁sentence｜>hello w<｜User｜>\uFFFD"
            "<｜end▁of▁sentence｜>\uFFFD");
  EXPECT_EQ(*mini->Decode(ids, true), "hello w<｜User｜>é");
}

TEST(TokenizerTest, RefusesToDecodeIdsWithoutAToken) {
  const auto mini = Mini();
  for (const int32_t id : {-1, 264, 303, 1 << 30}) {
    EXPECT_FALSE(mini->HasToken(id));
    EXPECT_EQ(mini->TokenBytes(id), "");
    EXPECT_FALSE(mini->IsSpecial(id));
    const auto text = mini->Decode({'a', id}, false);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(text.status().message()), HasSubstr(std::to_string(id)));
  }
  EXPECT_TRUE(mini->HasToken(0));
}

TEST(TokenizerTest, ThreadsShareOne) {
  const auto mini = Mini();
  const std::string text = "hello world, é漢字 12  \n abc<｜User｜>";
  const std::vector<int32_t> expected = Encode(*mini, text);
  std::vector<std::thread> threads;
  std::vector<int> num_equal(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        num_equal[t] += *mini->Encode(text, AddedTokens::kMatch, false) == expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_equal, testing::Each(200));
}

class TokenizerLoadTest : public testing::Test {
 protected:
  TokenizerLoadTest() {
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~TokenizerLoadTest() override { std::filesystem::remove_all(folder_); }

  void Write(const char* name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }

  std::filesystem::path folder_;
};

TEST_F(TokenizerLoadTest, SaysNotFoundWithoutTokenizerJson) {
  Write("tokenizer_config.json", MiniConfigJson().dump());
  const auto tokenizer = Tokenizer::Load(folder_.string());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json"));
}

TEST_F(TokenizerLoadTest, LoadsWithoutTokenizerConfig) {
  Write("tokenizer.json", MiniTokenizerJson().dump());
  const auto tokenizer = Tokenizer::Load(folder_.string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_id(), std::nullopt);
  EXPECT_FALSE((*tokenizer)->add_bos());
  const auto ids = (*tokenizer)->Encode("a", AddedTokens::kPlain, /*add_bos=*/true);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TokenizerLoadTest, TakesTheBosThatConfigJsonNamesWhereTheTokenizersConfigNamesNone) {
  Write("tokenizer.json", MiniTokenizerJson().dump());
  for (const auto& [config, has_bos] :
       std::vector<std::pair<std::string, bool>>{{R"({"bos_token_id": 300})", true},
                                                 {R"({"bos_token_id": 299})", false},  // no token
                                                 {R"({"bos_token_id": null})", false},
                                                 {R"({"bos_token_id": [1]})", false},
                                                 {"not JSON", false}}) {
    Write("config.json", config);
    const auto tokenizer = Tokenizer::Load(folder_.string());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->add_bos(), has_bos) << config;
    EXPECT_EQ((*tokenizer)->bos_id(), has_bos ? std::optional<int32_t>(kMiniBos) : std::nullopt);
  }
  Write("tokenizer_config.json", R"({"add_bos_token": false})");
  Write("config.json", R"({"bos_token_id": 300})");
  EXPECT_FALSE((*Tokenizer::Load(folder_.string()))->add_bos());
}

TEST_F(TokenizerLoadTest, TheFileWithTheChatTemplateComesFirst) {
  const std::string known = nlohmann::json::parse(
      ReadWholeFile(std::string(TANDEM_SOURCE_DIR) +
                    "/tests/golden/tiny/tokenizer_config.json"))["chat_template"];
  const auto serves_chat = [&](const char* in_config, const std::string& in_file) {
    nlohmann::json config = MiniConfigJson();
    if (in_config != nullptr) config["chat_template"] = in_config;
    Write("tokenizer.json", MiniTokenizerJson().dump());
    Write("tokenizer_config.json", config.dump());
    Write("chat_template.jinja", in_file);
    const auto tokenizer = Tokenizer::Load(folder_.string());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return (*tokenizer)->EncodeChat({{"user", "a"}}, true).ok();
  };
  EXPECT_TRUE(serves_chat(nullptr, known));
  EXPECT_TRUE(serves_chat("{{ other }}", known + "\n"));
  EXPECT_FALSE(serves_chat(known.c_str(), "{{ other }}"));
  std::filesystem::remove(folder_ / "chat_template.jinja");
  std::filesystem::create_directory(folder_ / "chat_template.jinja");
  const auto folder = Tokenizer::Load(folder_.string());
  EXPECT_THAT(std::string(folder.status().message()), HasSubstr("chat_template.jinja"));
}

TEST_F(TokenizerLoadTest, NamesWhatIsNoFile) {
  Write("tokenizer.json", MiniTokenizerJson().dump());
  for (const std::string name :
       {"chat_template.jinja", "tokenizer_config.json", "tokenizer.json"}) {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::remove(path);
    ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
    const auto pipe = Tokenizer::Load(folder_.string());
    EXPECT_EQ(pipe.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(pipe.status().message()), HasSubstr(name + " is not a regular file"));
    std::filesystem::remove(path);
    std::filesystem::create_symlink("nowhere", path);
    const auto link = Tokenizer::Load(folder_.string());
    EXPECT_EQ(link.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(link.status().message()),
                HasSubstr(name + " is a link to a file that is missing"));
    std::filesystem::remove(path);
  }
}

TEST_F(TokenizerLoadTest, NamesTheBrokenFile) {
  Write("tokenizer.json", "{");
  auto tokenizer = Tokenizer::Load(folder_.string());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json"));
  Write("tokenizer.json", MiniTokenizerJson().dump());
  Write("tokenizer_config.json", "[]");
  tokenizer = Tokenizer::Load(folder_.string());
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer_config.json"));
}

TEST(TokenizerTest, LongWorkEndsWhenItIsToldTo) {
  nlohmann::json config = MiniConfigJson();
  config["chat_template"] = nlohmann::json::parse(
      ReadWholeFile(std::string(TANDEM_SOURCE_DIR) +
                    "/tests/golden/tiny/tokenizer_config.json"))["chat_template"];
  const auto parsed = Tokenizer::Parse(MiniTokenizerJson().dump(), config.dump());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto& mini = *parsed;
  constexpr int kBlocks = 16;
  const auto repeat = [](const std::string& unit) {
    std::string text;
    while (text.size() < kBlocks * StopCheck::kBytes) text += unit;
    return text;
  };
  const std::string words = repeat("hello world ");
  const std::vector<int32_t> ids(kBlocks * StopCheck::kBytes, 'a');
  // How often the work asks at least (a block ends behind a token), and the work.
  const std::pair<int, std::function<absl::Status(const StopFunction&)>> works[] = {
      // The split and the pieces.
      {2 * (kBlocks - 1),
       [&](const StopFunction& stop) {
         return mini->Encode(words, AddedTokens::kPlain, true, false, stop).status();
       }},
      {4 * (kBlocks - 1),  // two searches for added tokens that find none, and as above
       [&](const StopFunction& stop) {
         return mini->Encode(words, AddedTokens::kMatch, true, false, stop).status();
       }},
      {kBlocks - 1,  // nothing but added tokens
       [&](const StopFunction& stop) {
         return mini->Encode(repeat("<｜User｜>"), AddedTokens::kMatch, true, false, stop).status();
       }},
      {kBlocks - 1,
       [&](const StopFunction& stop) {
         return mini->Encode(repeat("漢é "), AddedTokens::kPlain, false, false, stop).status();
       }},
      {1,  // one piece, which nothing follows
       [&](const StopFunction& stop) {
         return mini->Encode(repeat("a"), AddedTokens::kPlain, false, false, stop).status();
       }},
      {kBlocks - 1,
       [&](const StopFunction& stop) {
         return mini->EncodeChat({{"user", words}}, true, stop).status();
       }},
      {kBlocks - 1,
       [&](const StopFunction& stop) { return mini->Decode(ids, false, stop).status(); }}};
  for (const auto& [least, work] : works) {
    StopAt never(kNever);
    EXPECT_EQ(work(never.Function()), absl::OkStatus());
    EXPECT_GE(never.asked(), least);
    for (const int last : {1, (never.asked() + 1) / 2, never.asked()}) {
      StopAt stop(last);
      EXPECT_EQ(work(stop.Function()).code(), absl::StatusCode::kCancelled);
      EXPECT_EQ(stop.asked(), last);
    }
  }
}

}  // namespace
}  // namespace tandem
