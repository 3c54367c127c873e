// Checkpoints whose small files other tools wrote, served whole: what they say shows in the
// answers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// A copy of the tiny model.
class Copy {
 public:
  Copy() { std::filesystem::copy(TinyModel(), dir_.path()); }
  const std::string& path() const { return dir_.path(); }

  json Read(const std::string& name) const {
    std::ifstream file(absl::StrCat(path(), "/", name), std::ios::binary);
    return json::parse(file);
  }
  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(absl::StrCat(path(), "/", name), std::ios::binary) << content;
  }

 private:
  TempDir dir_;
};

v1::GenerateRequest Request() {
  v1::GenerateRequest request;
  request.set_text("one two three");
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(6);
  return request;
}

std::vector<int32_t> ChatIds(Deployment& deployment) {
  v1::TokenizeRequest request;
  v1::ChatMessage& message = *request.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("Hello");
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  const grpc::Status status = deployment.stub().Tokenize(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return {response.ids().begin(), response.ids().end()};
}

v1::GetModelResponse Model(Deployment& deployment) {
  v1::GetModelResponse model;
  grpc::ClientContext context;
  EXPECT_TRUE(deployment.stub().GetModel(&context, {}, &model).ok());
  return model;
}

TEST(CheckpointFilesTest, FilesOfOtherToolsGiveTheSamePromptsAndTheirEndIdsEndAnswers) {
  Deployment original{DeploymentOptions()};
  const Answer answer = Ask(original.stub(), Request());
  ASSERT_EQ(answer.ids.size(), 6u) << answer.status.error_message();
  // The first id that is not there before it.
  const auto end = std::find_if(answer.ids.begin() + 2, answer.ids.end(), [&](const int32_t& id) {
    return std::find(answer.ids.data(), &id, id) == &id;
  });
  ASSERT_NE(end, answer.ids.end());

  Copy copy;
  json tokenizer = copy.Read("tokenizer.json");
  const char* bos = "<｜begin▁of▁sentence｜>";
  tokenizer["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single",
          {{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}},
           {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
         {"special_tokens", {{bos, {{"id", bos}, {"ids", {1022}}, {"tokens", {bos}}}}}}}}}};
  copy.Write("tokenizer.json", tokenizer.dump());
  json config = copy.Read("tokenizer_config.json");
  copy.Write("chat_template.jinja", absl::StrCat(std::string(config["chat_template"]), "\n"));
  config.erase("chat_template");
  config.erase("add_bos_token");
  copy.Write("tokenizer_config.json", config.dump());
  copy.Write(
      "generation_config.json",
      json({{"eos_token_id", {1023, *end}}, {"top_k", -1}, {"top_p", 0}, {"temperature", nullptr}})
          .dump());
  DeploymentOptions options;
  options.model = copy.path();
  Deployment deployment(options);

  EXPECT_THAT(Model(deployment).eos_ids(), ElementsAre(1023, *end));
  EXPECT_TRUE(Model(deployment).has_chat_template());
  EXPECT_EQ(ChatIds(deployment), ChatIds(original));
  const Answer shorter = Ask(deployment.stub(), Request());
  EXPECT_TRUE(shorter.status.ok()) << shorter.status.error_message();
  EXPECT_EQ(shorter.ids, std::vector<int32_t>(answer.ids.begin(), end));
  // top_p 0 leaves the best alone, whatever the seed.
  v1::GenerateRequest sampled = Request();
  sampled.clear_sampling();
  EXPECT_EQ(Ask(deployment.stub(), sampled).ids, shorter.ids);

  EXPECT_EQ(deployment.Status().default_sampling().top_k(), 0u);
  TempDir dir;
  Process tool({Binary("tandem"), "status", "--server", deployment.address()},
               absl::StrCat(dir.path(), "/output"));
  EXPECT_EQ(tool.Wait(absl::Seconds(60)), 0);
  EXPECT_THAT(tool.Output(), HasSubstr("defaults: temperature 1, top_k 0, top_p 1e-06"));
  EXPECT_THAT(deployment.gateway().Output(), HasSubstr("text prompts begin with token 1022"));
}

class UnknownTokenizerTest : public testing::TestWithParam<int> {};  // workers of each kind

TEST_P(UnknownTokenizerTest, CostsTextButNotTheServingOfIds) {
  Copy copy;
  json tokenizer = copy.Read("tokenizer.json");
  tokenizer["normalizer"] = {{"type", "NFC"}};
  copy.Write("tokenizer.json", tokenizer.dump());
  DeploymentOptions options;
  options.model = copy.path();
  options.attention_workers = GetParam();
  options.expert_workers = GetParam();
  Deployment deployment(options);
  const Answer text = Ask(deployment.stub(), Request());
  EXPECT_EQ(text.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(text.status.error_message(), HasSubstr("tokenizer.json: normalizer is NFC"));
  v1::GenerateRequest request = Request();
  request.mutable_token_ids()->add_ids(5);
  EXPECT_EQ(Ask(deployment.stub(), request).ids.size(), 6u);
}

INSTANTIATE_TEST_SUITE_P(Deployments, UnknownTokenizerTest, testing::Values(0, 1),
                         [](const auto& info) {
                           return info.param == 0 ? "OneProcess" : "ThreeProcesses";
                         });

}  // namespace
}  // namespace tandem::test
