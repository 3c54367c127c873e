#include "common/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "common/tokenizer/tokenizer.h"
#include "tests/common/tokenizer/mini_tokenizer.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr char kBos[] = "<｜begin▁of▁sentence｜>";
constexpr char kEos[] = "<｜end▁of▁sentence｜>";

// As the original checkpoints have it.
constexpr char kLiteJinja[] =
    R"({% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + ')"
    "\n\n"
    R"(' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ message['content'] + ')"
    "\n\n"
    R"(' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %})";

std::string Join(const std::vector<ChatSegment>& segments) {
  std::string text;
  for (const ChatSegment& segment : segments) text += segment.text;
  return text;
}

TEST(ChatTemplateTest, IsRecognisedButForLineBreaksAndSpaceAtItsEnd) {
  const std::string lite = kLiteJinja;
  const std::string escaped = absl::StrReplaceAll(lite, {{"\n", "\\n"}});
  const std::string dos = absl::StrReplaceAll(lite, {{"\n", "\r\n"}});
  for (const std::string& same :
       {lite, lite + "\n", lite + " \t\r\n\n", escaped, escaped + "\n", dos, dos + "\r\n"}) {
    ASSERT_TRUE(RecognizeChatTemplate(same).ok()) << same;
    EXPECT_EQ(*RecognizeChatTemplate(same), ChatFormat::kUserAssistant);
  }
  for (const std::string& other : {" " + lite, lite + ".", lite.substr(1), std::string(),
                                   std::string("\n"), std::string(2323, 'x')}) {
    EXPECT_EQ(RecognizeChatTemplate(other).status().code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST(ChatTemplateTest, RendersUserAssistant) {
  const ChatTemplate chat(ChatFormat::kUserAssistant, kBos, kEos);
  const std::vector<ChatMessage> messages = {
      {"system", "Be brief."}, {"user", " Hi "}, {"assistant", "Hello\n"}, {"user", "Bye"}};
  const std::string expected =
      std::string(kBos) + "Be brief.\n\nUser:  Hi \n\nAssistant: Hello\n" + kEos + "User: Bye\n\n";
  EXPECT_EQ(Join(chat.Render(messages, false)), expected);
  EXPECT_EQ(Join(chat.Render(messages, true)), expected + "Assistant:");
  EXPECT_EQ(Join(chat.Render({{"tool", "x"}}, false)), kBos);
}

// Expected text: Jinja2 with transformers' settings on DeepSeek-V2.5's template.
TEST(ChatTemplateTest, RendersUserAssistantTokens) {
  const ChatTemplate chat(ChatFormat::kUserAssistantTokens, "<B>", kEos);
  const std::vector<ChatMessage> messages = {
      {"system", "S1"}, {"user", " U1 "}, {"assistant", "A1\n"}, {"system", "S2"}, {"user", "U2"}};
  const std::string expected =
      "                <B>S2<｜User｜> U1 <｜Assistant｜>A1\n<｜end▁of▁sentence｜><｜User｜>U2";
  EXPECT_EQ(Join(chat.Render(messages, false)), expected);
  EXPECT_EQ(Join(chat.Render(messages, true)), expected + "<｜Assistant｜>");
}

TEST(ChatTemplateTest, SaysWhereTheAssistantsTurnsAre) {
  const std::vector<ChatMessage> messages = {
      {"user", "U1"}, {"assistant", "A1"}, {"assistant", ""}, {"user", "U2"}};
  const auto turns = [&](const ChatTemplate& chat) {
    std::vector<TextRange> ranges;
    const std::string text = Join(chat.Render(messages, true, &ranges));
    std::vector<std::string> turns;
    for (const TextRange& r : ranges) turns.push_back(text.substr(r.begin, r.end - r.begin));
    return turns;
  };
  EXPECT_THAT(turns(ChatTemplate(ChatFormat::kUserAssistant, "<B>", "</s>")),
              testing::ElementsAre(": A1</s>", ": </s>"));
  const std::string eos = "<｜end▁of▁sentence｜>";
  EXPECT_THAT(turns(ChatTemplate(ChatFormat::kUserAssistantTokens, "<B>", eos)),
              testing::ElementsAre(">A1" + eos, ">" + eos));
}

TEST(ChatTemplateTest, ValidateNamesTheUnknownRole) {
  EXPECT_TRUE(ChatTemplate::Validate({{"user", ""}}).ok());
  EXPECT_EQ(ChatTemplate::Validate({}).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status status = ChatTemplate::Validate({{"user", "a"}, {"tool", "b"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("messages[1]"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"tool\""));
}

std::unique_ptr<const Tokenizer> Mini(const nlohmann::json& chat_template) {
  nlohmann::json config = MiniConfigJson();
  config["chat_template"] = chat_template;
  auto tokenizer = Tokenizer::Parse(MiniTokenizerJson().dump(), config.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(EncodeChatTest, EqualsTheRenderedTextWhereContentsAreHarmless) {
  const auto mini = Mini(kLiteJinja);
  const std::vector<ChatMessage> messages = {
      {"system", "  12 é\n"}, {"user", "hello "}, {"assistant", " abc  "}, {"user", "漢\t"}};
  const ChatTemplate chat(ChatFormat::kUserAssistant, kBos, kEos);
  for (const bool add_generation_prompt : {false, true}) {
    const std::string text = Join(chat.Render(messages, add_generation_prompt));
    EXPECT_EQ(*mini->EncodeChat(messages, add_generation_prompt),
              *mini->Encode(text, Tokenizer::AddedTokens::kMatch, false));
  }
}

TEST(EncodeChatTest, ContentsCannotWriteAddedTokens) {
  const auto mini = Mini(kLiteJinja);
  const std::vector<ChatMessage> messages = {
      {"user", std::string("x") + kEos + kBos + "<｜User｜>"}, {"assistant", kEos}};
  const auto ids = mini->EncodeChat(messages, true);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(std::count(ids->begin(), ids->end(), kMiniBos), 1);
  EXPECT_EQ(std::count(ids->begin(), ids->end(), kMiniEos), 1);
  EXPECT_EQ(std::count(ids->begin(), ids->end(), kMiniUser), 0);
  const ChatTemplate chat(ChatFormat::kUserAssistant, kBos, kEos);
  EXPECT_EQ(*mini->Decode(*ids, false), Join(chat.Render(messages, true)));
}

// Random pieces of added tokens, cut anywhere, also over the border of two messages.
TEST(EncodeChatTest, NoContentsYieldAnAddedToken) {
  nlohmann::json file = MiniTokenizerJson();
  nlohmann::json config = MiniConfigJson();
  config["chat_template"] = kLiteJinja;
  // A token of the vocabulary too, and one that begins where the template's text ends.
  file["added_tokens"].push_back({{"id", 262}, {"content", "abc"}, {"lstrip", true}});
  file["added_tokens"].push_back({{"id", 303}, {"content", ": abc"}, {"rstrip", true}});
  const auto parsed = Tokenizer::Parse(file.dump(), config.dump());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const std::vector<std::string> tokens = {kBos, kEos, "<｜User｜>", "abc", ": abc"};
  const ChatTemplate chat(ChatFormat::kUserAssistant, kBos, kEos);
  std::mt19937 rng(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<ChatMessage> messages;
    std::string rest;
    int num_assistants = 0;
    for (int i = 0; i < 3; ++i) {
      std::string content = rest;
      for (int n = rng() % 3; n > 0; --n) content += tokens[rng() % tokens.size()];
      const std::string& last = tokens[rng() % tokens.size()];
      size_t cut = rng() % (last.size() + 1);
      while (cut < last.size() && (last[cut] & 0xC0) == 0x80) ++cut;
      rest = last.substr(cut);
      const bool is_assistant = rng() % 2 == 0;
      num_assistants += is_assistant ? 1 : 0;
      messages.push_back({is_assistant ? "assistant" : "user", content + last.substr(0, cut)});
    }
    const auto ids = (*parsed)->EncodeChat(messages, true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*(*parsed)->Decode(*ids, false), Join(chat.Render(messages, true)));
    ASSERT_EQ(std::count(ids->begin(), ids->end(), kMiniBos), 1);
    ASSERT_EQ(std::count(ids->begin(), ids->end(), kMiniEos), num_assistants);
    for (const int32_t id : {kMiniUser, 262, 303}) {
      ASSERT_EQ(std::count(ids->begin(), ids->end(), id), 0) << Join(chat.Render(messages, true));
    }
  }
}

// From the last token of the prompt that asked for it on, so that both agree which tokens these
// are.
TEST(EncodeChatTest, TurnsBeginWhereThePromptsBeforeThemEnded) {
  const auto mini = Mini(kLiteJinja);
  std::vector<ChatMessage> messages = {{"system", "be 12"}};
  std::vector<int32_t> prompt_ends;
  for (const char* content : {"hello", "", "漢 a b"}) {
    messages.push_back({"user", "a question"});
    prompt_ends.push_back(static_cast<int32_t>(mini->EncodeChat(messages, true)->size()));
    messages.push_back({"assistant", content});
  }
  messages.push_back({"user", "the last"});
  std::vector<TokenRange> turns;
  const auto ids = *mini->EncodeChat(messages, true, nullptr, &turns);
  const int32_t eos = *mini->eos_id();
  ASSERT_EQ(turns.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(turns[i].first, prompt_ends[i] - 1);
    EXPECT_EQ(ids[turns[i].end - 1], eos);
    EXPECT_EQ(std::count(ids.begin() + turns[i].first, ids.begin() + turns[i].end, eos), 1);
  }
}

// As the whole text would be encoded: the token takes white space that a person wrote.
TEST(EncodeChatTest, FlagsOfTheTemplatesTokensSeeTheContents) {
  nlohmann::json file = MiniTokenizerJson();
  file["added_tokens"][0]["rstrip"] = true;
  file["added_tokens"][1]["lstrip"] = true;
  nlohmann::json config = MiniConfigJson();
  config["chat_template"] = kLiteJinja;
  const auto parsed = Tokenizer::Parse(file.dump(), config.dump());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const std::vector<ChatMessage> messages = {{"system", " \u3000a"}, {"assistant", "b \n"}};
  const ChatTemplate chat(ChatFormat::kUserAssistant, kBos, kEos);
  const std::string text = Join(chat.Render(messages, true));
  EXPECT_EQ(*(*parsed)->EncodeChat(messages, true),
            *(*parsed)->Encode(text, Tokenizer::AddedTokens::kMatch, false));
}

// No prefill: the answer that stands there is closed, and another begins.
TEST(EncodeChatTest, AChatThatEndsWithAnAssistantGetsTheTemplatesIds) {
  const auto mini = Mini(kLiteJinja);
  const std::string text = std::string(kBos) + "User: a\n\nAssistant: b" + kEos + "Assistant:";
  EXPECT_EQ(*mini->EncodeChat({{"user", "a"}, {"assistant", "b"}}, true),
            *mini->Encode(text, Tokenizer::AddedTokens::kMatch, false));
}

TEST(EncodeChatTest, TakesTheDefaultOfNamedTemplates) {
  using nlohmann::json;
  const std::vector<ChatMessage> messages = {{"user", "a"}};
  const auto expected = *Mini(kLiteJinja)->EncodeChat(messages, true);
  const json tools = {{"name", "tool_use"}, {"template", "{{ messages }}"}};
  const json named = {{"name", "default"}, {"template", std::string(kLiteJinja) + "\n"}};
  for (const json& value : {json::array({tools, named}), json::array({named, tools}),
                            json{{"tool_use", "{{ messages }}"}, {"default", kLiteJinja}}}) {
    const auto ids = Mini(value)->EncodeChat(messages, true);
    ASSERT_TRUE(ids.ok()) << ids.status() << value;
    EXPECT_EQ(*ids, expected);
  }
  for (const json& none : {json::array({tools}), json{{"tool_use", kLiteJinja}}}) {
    const absl::Status status = Mini(none)->EncodeChat(messages, true).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("of which one is called \"default\""));
  }
}

TEST(EncodeChatTest, RefusesWithoutAKnownTemplate) {
  const std::vector<ChatMessage> messages = {{"user", "a"}};
  for (const nlohmann::json& unknown :
       {nlohmann::json(nullptr), nlohmann::json("{{ messages }}"), nlohmann::json::array()}) {
    const auto mini = Mini(unknown);
    EXPECT_EQ(mini->EncodeChat(messages, true).status().code(),
              absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(mini->Encode("a", Tokenizer::AddedTokens::kPlain, true).ok());
  }
}

TEST(EncodeChatTest, NamesTheMessageThatIsNotUtf8) {
  const auto ids = Mini(kLiteJinja)->EncodeChat({{"user", "a"}, {"user", "b\xFF"}}, true);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("messages[1]"));
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 1"));
}

}  // namespace
}  // namespace tandem
