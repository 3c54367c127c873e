#include "common/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/common/tokenizer/mini_tokenizer.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using AddedTokens = Tokenizer::AddedTokens;

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

}  // namespace
}  // namespace tandem
