// What a request asks of sampling, from the client's side: Score's logits and a float64 oracle say
// what the answer must be.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/integration/deployment.h"
#include "tests/kernels/oracle.h"

namespace tandem::test {
namespace {

constexpr size_t kIdsWithToken = 1025;  // the others are masked

struct Whole {
  grpc::Status status;
  std::vector<int32_t> ids;
  std::vector<float> log_probs;
  std::vector<v1::GenerateResponse::TopLogProbs> top;
  std::string text;
  v1::GenerateResponse::Finished finished;
};

Whole Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto stream = stub.Generate(&context, request);
  Whole whole;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    const auto& chunk = response.chunk();
    whole.ids.insert(whole.ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    whole.log_probs.insert(whole.log_probs.end(), chunk.log_probs().begin(),
                           chunk.log_probs().end());
    whole.top.insert(whole.top.end(), chunk.top_logprobs().begin(), chunk.top_logprobs().end());
    whole.text += chunk.text() + response.finished().text();
    if (response.has_finished()) whole.finished = response.finished();
  }
  whole.status = stream->Finish();
  EXPECT_TRUE(whole.status.ok()) << whole.status.error_message();
  return whole;
}

// Of every position of the ids: the logits of those that have a token.
std::vector<std::vector<double>> Logits(v1::Inference::Stub& stub,
                                        const std::vector<int32_t>& ids) {
  v1::ScoreRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  request.set_logits(true);
  request.set_path(v1::SCORE_PATH_DECODE);
  grpc::ClientContext context;
  const auto stream = stub.Score(&context, request);
  std::vector<std::vector<double>> logits;
  v1::ScoreResponse response;
  while (stream->Read(&response)) {
    for (const auto& row : response.rows()) {
      std::vector<float> values(row.logits().size() / sizeof(float));
      std::memcpy(values.data(), row.logits().data(), row.logits().size());
      logits.emplace_back(values.begin(), values.begin() + kIdsWithToken);
    }
  }
  EXPECT_TRUE(stream->Finish().ok());
  return logits;
}

std::vector<int32_t> Prompt(int seed) {
  const auto ids = SeededRequest(seed, 1).token_ids().ids();
  return {ids.begin(), ids.end()};
}

v1::GenerateRequest Greedy(const std::vector<int32_t>& prompt, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

TEST(SamplingTest, EachTokenIsTheBestOfWhatTheParametersMakeOfTheLogits) {
  Deployment deployment({});
  SamplingParams params;
  params.repetition_penalty = 2.5f;
  params.frequency_penalty = 2.0f;
  params.presence_penalty = 1.5f;
  params.logit_bias = {{20, 3.0f}, {500, -100.0f}};
  int unlike_the_models = 0;
  for (const int seed : {3, 20, 40}) {
    const std::vector<int32_t> prompt = Prompt(seed);
    v1::GenerateRequest request = Greedy(prompt, 20);
    v1::Sampling& sampling = *request.mutable_sampling();
    sampling.set_repetition_penalty(params.repetition_penalty);
    sampling.set_frequency_penalty(params.frequency_penalty);
    sampling.set_presence_penalty(params.presence_penalty);
    for (const auto& [id, bias] : params.logit_bias) (*sampling.mutable_logit_bias())[id] = bias;
    const Whole whole = Generate(deployment.stub(), request);
    ASSERT_EQ(whole.ids.size(), 20u);
    std::vector<int32_t> all = prompt;
    all.insert(all.end(), whole.ids.begin(), whole.ids.end());
    const auto logits = Logits(deployment.stub(), all);
    for (size_t i = 0; i < whole.ids.size(); ++i) {
      const std::vector<double>& own = logits.at(prompt.size() + i - 1);
      const std::vector<int32_t> answer(whole.ids.begin(), whole.ids.begin() + i);
      const std::vector<double> wanted = kernels::oracle::Adjusted(own, prompt, answer, params);
      EXPECT_GE(wanted[whole.ids[i]], *std::max_element(wanted.begin(), wanted.end()) - 1e-4)
          << "token " << i;
      unlike_the_models += own[whole.ids[i]] < *std::max_element(own.begin(), own.end()) ? 1 : 0;
    }
  }
  EXPECT_GT(unlike_the_models, 3);
}

TEST(SamplingTest, TheMostProbableComeWithEachTokenWhateverIsDrawn) {
  DeploymentOptions options;
  options.attention_workers = 1;
  options.expert_workers = 1;
  Deployment deployment(options);
  const std::vector<int32_t> prompt = Prompt(20);
  v1::GenerateRequest request = Greedy(prompt, 8);
  const Whole without = Generate(deployment.stub(), request);
  EXPECT_EQ(without.top.size(), 0u);
  request.set_top_logprobs(20);
  const Whole plain = Generate(deployment.stub(), request);
  EXPECT_EQ(plain.ids, without.ids);
  EXPECT_EQ(plain.log_probs, without.log_probs);
  request.mutable_sampling()->set_repetition_penalty(2);
  (*request.mutable_sampling()->mutable_logit_bias())[33] = 20;
  for (const Whole& whole : {plain, Generate(deployment.stub(), request)}) {
    ASSERT_EQ(whole.top.size(), 8u);
    std::vector<int32_t> all = prompt;
    all.insert(all.end(), whole.ids.begin(), whole.ids.end());
    const auto logits = Logits(deployment.stub(), all);
    for (size_t i = 0; i < whole.top.size(); ++i) {
      const std::vector<double> p = kernels::oracle::Softmax(logits.at(prompt.size() + i - 1));
      const std::vector<int> order = kernels::oracle::Ranking(p);
      ASSERT_EQ(whole.top[i].token_ids_size(), 20);
      ASSERT_EQ(whole.top[i].log_probs_size(), 20);
      EXPECT_NEAR(whole.log_probs[i], std::log(p[whole.ids[i]]), 1e-4);
      for (int k = 0; k < 20; ++k) {
        EXPECT_EQ(whole.top[i].token_ids(k), order[k]);
        EXPECT_NEAR(whole.top[i].log_probs(k), std::log(p[order[k]]), 1e-4);
      }
    }
  }
  EXPECT_EQ(plain.top[0].token_ids(0), plain.ids[0]);
  EXPECT_EQ(plain.top[0].log_probs(0), plain.log_probs[0]);
}

TEST(SamplingTest, EchoIsThePromptsTextBeforeTheAnswers) {
  Deployment deployment({});
  v1::GenerateRequest request = Greedy({}, 5);
  request.set_text("one two é three");
  const Whole answer = Generate(deployment.stub(), request);
  request.set_echo(true);
  request.add_stop("two");
  const Whole echoed = Generate(deployment.stub(), request);
  EXPECT_EQ(echoed.ids, answer.ids);
  EXPECT_EQ(echoed.log_probs, answer.log_probs);
  EXPECT_EQ(echoed.text, request.text() + answer.text);
  // Of ids: as they read, without special tokens.
  v1::TokenizeRequest tokenize;
  tokenize.set_text(request.text());
  tokenize.set_add_bos(true);
  v1::TokenizeResponse ids;
  grpc::ClientContext context;
  ASSERT_TRUE(deployment.stub().Tokenize(&context, tokenize, &ids).ok());
  request.mutable_token_ids()->mutable_ids()->CopyFrom(ids.ids());
  EXPECT_EQ(Generate(deployment.stub(), request).text, echoed.text);
  // A long prompt's text comes in messages that every client takes.
  std::string text;
  while (text.size() < 17'000) text += "é one two three ";
  request.set_text(text);
  request.set_max_tokens(1);
  const Whole whole = Generate(deployment.stub(), request);
  EXPECT_EQ(whole.text.compare(0, text.size(), text), 0);
}

TEST(SamplingTest, MinPLeavesWhatIsProbableEnough) {
  Deployment deployment({});
  const std::vector<int32_t> prompt = Prompt(30);
  v1::GenerateRequest request = Greedy(prompt, 1);
  const std::vector<double> logits = Logits(deployment.stub(), prompt).back();
  request.mutable_sampling()->set_temperature(2);
  request.mutable_sampling()->set_min_p(0.8f);
  const std::vector<double> p = kernels::oracle::SamplingDistribution(logits, {}, 2, 0, 1, 0.79999);
  std::vector<int> drawn(p.size());
  for (int seed = 0; seed < 60; ++seed) {
    request.mutable_sampling()->set_seed(seed);
    ++drawn[Generate(deployment.stub(), request).ids.at(0)];
  }
  for (size_t id = 0; id < p.size(); ++id) {
    if (p[id] == 0) {
      EXPECT_EQ(drawn[id], 0) << id;
    }
  }
  EXPECT_LT(*std::max_element(drawn.begin(), drawn.end()), 60) << "only one was probable enough";
  request.mutable_sampling()->set_min_p(1);
  EXPECT_EQ(Generate(deployment.stub(), request).ids.at(0),
            std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST(SamplingTest, NothingEndsAnAnswerBeforeMinTokens) {
  Deployment deployment({});
  v1::GetModelResponse model;
  grpc::ClientContext context;
  ASSERT_TRUE(deployment.stub().GetModel(&context, {}, &model).ok());
  ASSERT_GT(model.eos_ids_size(), 0);
  v1::GenerateRequest request = Greedy(Prompt(30), 30);
  request.set_ignore_eos(false);
  (*request.mutable_sampling()->mutable_logit_bias())[model.eos_ids(0)] = 100;
  EXPECT_EQ(Generate(deployment.stub(), request).ids.size(), 0u);
  for (const uint32_t min_tokens : {1, 7, 30}) {
    request.set_min_tokens(min_tokens);
    const Whole whole = Generate(deployment.stub(), request);
    EXPECT_EQ(whole.ids.size(), min_tokens);
    EXPECT_EQ(whole.finished.completion_tokens(), min_tokens);
    EXPECT_EQ(whole.finished.reason(), min_tokens == 30 ? v1::GenerateResponse::FINISH_REASON_LENGTH
                                                        : v1::GenerateResponse::FINISH_REASON_EOS);
    EXPECT_THAT(whole.ids, testing::Not(testing::Contains(model.eos_ids(0))));
  }
  // With ignore_eos it is a token as any other.
  request.set_ignore_eos(true);
  EXPECT_THAT(Generate(deployment.stub(), request).ids, testing::Each(model.eos_ids(0)));
  // Stop ids likewise.
  request.clear_sampling();
  request.mutable_sampling()->set_temperature(0);
  (*request.mutable_sampling()->mutable_logit_bias())[77] = 100;
  request.add_stop_token_ids(77);
  request.set_min_tokens(5);
  const Whole stopped = Generate(deployment.stub(), request);
  EXPECT_EQ(stopped.ids.size(), 5u);
  EXPECT_EQ(stopped.finished.reason(), v1::GenerateResponse::FINISH_REASON_STOP);
}

TEST(SamplingTest, AStopStringCountsBehindMinTokens) {
  Deployment deployment({});
  v1::GenerateRequest request = Greedy(Prompt(30), 40);
  const Whole whole = Generate(deployment.stub(), request);
  ASSERT_GT(whole.text.size(), 20u);
  request.add_stop(whole.text.substr(0, 1));
  EXPECT_EQ(Generate(deployment.stub(), request).text, "");
  request.set_min_tokens(10);
  const Whole later = Generate(deployment.stub(), request);
  EXPECT_GE(later.ids.size(), 10u);
  EXPECT_GT(later.text.size(), 0u);
  EXPECT_EQ(whole.text.compare(0, later.text.size(), later.text), 0);
}

// 40 prompts with everything: in every shape the same bits as alone.
std::vector<v1::GenerateRequest> Requests() {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 40; ++i) {
    v1::GenerateRequest request = SeededRequest(7 * i + 1, 30);
    v1::Sampling& sampling = *request.mutable_sampling();
    if (i % 3 == 0) sampling.set_temperature(0);
    if (i % 2 == 0) sampling.set_repetition_penalty(1.2f);
    if (i % 3 != 1) sampling.set_frequency_penalty(0.2f);
    if (i % 4 == 1) sampling.set_presence_penalty(0.6f);
    if (i % 5 == 2) sampling.set_min_p(0.1f);
    request.set_top_logprobs(i % 3);
    for (int k = 0; k < i % 4; ++k) (*sampling.mutable_logit_bias())[100 * k + i] = 2.0f - k;
    if (i % 2 == 1) {
      request.set_min_tokens(12);
      for (int id = 500; id < 560; ++id) request.add_stop_token_ids(id);
    }
    requests.push_back(request);
  }
  return requests;
}

const std::vector<Answer>& Reference() {
  static const auto* const answers = [] {
    Deployment deployment({});
    return new std::vector<Answer>(AskAll(deployment.stub(), Requests(), 1));
  }();
  return *answers;
}

void ExpectReference(Deployment& deployment) {
  const std::vector<Answer> answers = AskAll(deployment.stub(), Requests(), 16);
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSERT_TRUE(Reference()[i].status.ok()) << Reference()[i].status.error_message();
    EXPECT_EQ(answers[i], Reference()[i]) << "request " << i;
  }
}

TEST(SamplingTest, GivesTheSameBitsInSeveralProcesses) {
  DeploymentOptions options;
  options.attention_workers = 2;
  options.expert_workers = 2;
  Deployment deployment(options);
  ExpectReference(deployment);
  EXPECT_TRUE(deployment.WaitIdle());
}

TEST(SamplingTest, GivesTheSameBitsWhereTheCacheIsTiny) {
  for (const char* const test_seed : {"0", "5"}) {
    DeploymentOptions options;
    options.gateway_flags = {"--cache-tokens", "320", "--test-schedule-seed", test_seed};
    Deployment deployment(options);
    const auto preemptions = [&] { return deployment.Counter("gateway", "preemptions_total"); };
    for (int round = 0; round == 0 || (round < 10 && preemptions() == 0); ++round) {
      ExpectReference(deployment);
    }
    EXPECT_GT(preemptions(), 0);
    EXPECT_TRUE(deployment.WaitIdle());
  }
}

}  // namespace
}  // namespace tandem::test
