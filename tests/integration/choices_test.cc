// Several answers to one request: each is the same in every shape, whatever becomes of the others.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;

constexpr int kChoices = 4;
constexpr absl::Duration kLimit = absl::Seconds(60);

// Everything that came of a call, by choice.
struct Choices {
  grpc::Status status;
  std::vector<Answer> answers;
  std::vector<std::optional<v1::GenerateResponse::Finished>> finished;
  int started = 0;
  int changes = 0;  // of the choice, from one event to the next

  bool operator==(const Choices& other) const {
    const auto same = [](const Answer& a, const Answer& b) {
      return std::tie(a.ids, a.bits, a.text) == std::tie(b.ids, b.bits, b.text);
    };
    return status.ok() && other.status.ok() &&
           std::equal(answers.begin(), answers.end(), other.answers.begin(), other.answers.end(),
                      same);
  }
};

Choices AskChoices(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                   absl::Duration timeout = absl::Seconds(120)) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const auto stream = stub.Generate(&context, request);
  Choices choices;
  choices.answers.resize(request.has_n() ? request.n() : 1);
  choices.finished.resize(choices.answers.size());
  v1::GenerateResponse response;
  uint32_t last = 0;
  while (stream->Read(&response)) {
    choices.started += response.has_started() ? 1 : 0;
    if (response.has_started()) continue;
    EXPECT_EQ(choices.started, 1);
    const bool ends = response.has_finished();
    const uint32_t choice = ends ? response.finished().choice() : response.chunk().choice();
    choices.changes += choice == last ? 0 : 1;
    last = choice;
    Answer& answer = choices.answers.at(choice);
    EXPECT_FALSE(choices.finished[choice].has_value()) << "an event behind the last";
    const auto& chunk = response.chunk();
    answer.ids.insert(answer.ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    for (const float log_prob : chunk.log_probs()) {
      answer.bits.push_back(std::bit_cast<uint32_t>(log_prob));
    }
    answer.text += chunk.text() + response.finished().text();
    if (ends) choices.finished[choice] = response.finished();
  }
  choices.status = stream->Finish();
  return choices;
}

// 40 prompts, of which many begin alike, with penalties in most.
std::vector<v1::GenerateRequest> Requests() {
  std::vector<v1::GenerateRequest> requests;
  const std::vector<int> lengths = {1, 17, 64, 65, 66, 100, 128, 129, 150, 200};
  for (int i = 0; i < 40; ++i) {
    v1::GenerateRequest request;
    for (int k = 0; k < lengths[i % lengths.size()]; ++k) {
      const int beginning = k < 64 ? i % 3 : i;
      request.mutable_token_ids()->add_ids((k * 37 + beginning * 101) % 500 + 11);
    }
    v1::Sampling& sampling = *request.mutable_sampling();
    sampling.set_temperature(i % 4 == 0 ? 0.0f : 0.9f);
    sampling.set_seed(2000 + i);
    if (i % 3 != 0) sampling.set_repetition_penalty(1.2f);
    if (i % 3 != 1) sampling.set_frequency_penalty(0.3f);
    if (i % 5 == 0) sampling.set_presence_penalty(0.5f);
    if (i % 7 == 0) sampling.set_min_p(0.05f);
    if (i % 6 == 0) (*sampling.mutable_logit_bias())[33] = 1.5f;
    request.set_max_tokens(8 + i % 9);
    request.set_ignore_eos(true);
    request.set_n(kChoices);
    requests.push_back(request);
  }
  return requests;
}

std::vector<Choices> AskAllChoices(v1::Inference::Stub& stub, int at_once) {
  const std::vector<v1::GenerateRequest> requests = Requests();
  std::vector<Choices> all(requests.size());
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < at_once; ++i) {
    threads.emplace_back([&] {
      for (size_t mine; (mine = next++) < requests.size();) {
        all[mine] = AskChoices(stub, requests[mine]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return all;
}

// Embedded, one request at a time, without a prefix cache.
const std::vector<Choices>& Reference() {
  static const auto* const choices = [] {
    DeploymentOptions options;
    options.gateway_flags = {"--prefix-caching", "false"};
    Deployment deployment(options);
    return new std::vector<Choices>(AskAllChoices(deployment.stub(), 1));
  }();
  return *choices;
}

void ExpectReference(Deployment& deployment) {
  const std::vector<Choices> all = AskAllChoices(deployment.stub(), 8);
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_TRUE(Reference()[i].status.ok()) << Reference()[i].status.error_message();
    ASSERT_TRUE(all[i].status.ok()) << all[i].status.error_message();
    EXPECT_EQ(all[i], Reference()[i]) << "request " << i;
  }
}

TEST(ChoicesTest, ChoiceZeroIsTheAnswerOfOneAndTheOthersAreTheirOwn) {
  Deployment deployment({});
  const std::vector<v1::GenerateRequest> requests = Requests();
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    const Choices& choices = Reference()[i];
    ASSERT_TRUE(choices.status.ok()) << choices.status.error_message();
    v1::GenerateRequest one = requests[i];
    one.clear_n();
    const Answer answer = Ask(deployment.stub(), one);
    EXPECT_EQ(answer.ids, choices.answers[0].ids);
    EXPECT_EQ(answer.bits, choices.answers[0].bits);
    std::set<std::vector<int32_t>> different;
    for (int k = 0; k < kChoices; ++k) {
      ASSERT_TRUE(choices.finished[k].has_value());
      const v1::GenerateResponse::Finished& finished = *choices.finished[k];
      EXPECT_EQ(finished.reason(), v1::GenerateResponse::FINISH_REASON_LENGTH);
      EXPECT_EQ(finished.completion_tokens(), one.max_tokens());
      EXPECT_EQ(finished.prompt_tokens(), static_cast<uint32_t>(one.token_ids().ids_size()));
      EXPECT_EQ(choices.answers[k].ids.size(), one.max_tokens());
      different.insert(choices.answers[k].ids);
    }
    EXPECT_EQ(different.size(), one.sampling().temperature() > 0 ? kChoices : 1u);
  }
}

TEST(ChoicesTest, TheirPromptsPagesAreComputedOnce) {
  Deployment deployment({});
  v1::GenerateRequest request = SeededRequest(7, 30);
  request.mutable_token_ids()->clear_ids();
  for (int i = 0; i < 650; ++i) request.mutable_token_ids()->add_ids(i % 500 + 11);
  request.set_n(16);
  const Choices choices = AskChoices(deployment.stub(), request);
  ASSERT_TRUE(choices.status.ok()) << choices.status.error_message();
  EXPECT_EQ(choices.started, 1);
  EXPECT_GT(choices.changes, 30) << "the choices do not come side by side";
  EXPECT_EQ(choices.finished[0]->cached_tokens(), 0u);
  for (int i = 1; i < 16; ++i) EXPECT_EQ(choices.finished[i]->cached_tokens(), 640u);
  EXPECT_EQ(deployment.Counter("gateway", "prefill_rows_total"), 640 + 16 * 10);
  EXPECT_EQ(deployment.Counter("gateway", "tokens_generated_total"), 16 * 30);
}

TEST(ChoicesTest, GiveTheSameBitsWithPrefixHitsInSeveralProcesses) {
  DeploymentOptions options;
  options.attention_workers = 2;
  options.expert_workers = 2;
  Deployment deployment(options);
  ExpectReference(deployment);
  EXPECT_GT(deployment.Counter("gateway", "prefix_cache_hits_total"), 0);
  EXPECT_TRUE(deployment.WaitIdle());
}

TEST(ChoicesTest, GiveTheSameBitsWhereATinyCacheForcesPreemptions) {
  for (const char* const test_seed : {"0", "9"}) {
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

// What ends a call ends all of it, whatever its choices are at.
TEST(ChoicesTest, CancelDeadlineAndDisconnectEndAll) {
  DeploymentOptions options;
  options.attention_workers = 1;
  options.expert_workers = 1;
  Deployment deployment(options);
  v1::GenerateRequest request = SeededRequest(20, 20000);
  request.set_n(8);
  const auto live = [&] { return deployment.Counter("attention", "sequences_live"); };

  const Choices late = AskChoices(deployment.stub(), request, absl::Milliseconds(800));
  EXPECT_EQ(late.status.error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(deployment.WaitIdle());
  {
    grpc::ClientContext context;
    const auto stream = deployment.stub().Generate(&context, request);
    v1::GenerateResponse response;
    ASSERT_TRUE(WaitUntil([&] { return live() == 8; }, kLimit));
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(stream->Read(&response));
    context.TryCancel();
    while (stream->Read(&response)) continue;
    EXPECT_EQ(stream->Finish().error_code(), grpc::CANCELLED);
  }
  EXPECT_TRUE(deployment.WaitIdle());
  // While the others wait for the prompt.
  v1::GenerateRequest long_prompt = request;
  for (int i = 0; i < 30000; ++i) long_prompt.mutable_token_ids()->add_ids(i % 500 + 11);
  {
    grpc::ClientContext context;
    const auto stream = deployment.stub().Generate(&context, long_prompt);
    ASSERT_TRUE(WaitUntil([&] { return live() == 1; }, kLimit));
    EXPECT_EQ(deployment.Counter("gateway", "jobs_waiting"), 7);
    context.TryCancel();
    v1::GenerateResponse response;
    while (stream->Read(&response)) continue;
    EXPECT_EQ(stream->Finish().error_code(), grpc::CANCELLED);
  }
  EXPECT_TRUE(deployment.WaitIdle());
  TempDir dir;
  Process client({Binary("tandem"), "generate", "--server", deployment.address(), "--max-tokens",
                  "50000", "--ignore-eos", "-n", "4", "one two three"},
                 dir.path() + "/client");
  ASSERT_TRUE(WaitUntil([&] { return live() == 4; }, kLimit)) << client.Output();
  client.Signal(SIGKILL);
  EXPECT_TRUE(deployment.WaitIdle());
  EXPECT_EQ(deployment.Counter("gateway", "unread_bytes"), 0);
}

// A choice that has its stop string ends, and the others go on.
TEST(ChoicesTest, EachEndsByItself) {
  Deployment deployment({});
  v1::GenerateRequest request = SeededRequest(20, 40);
  request.set_n(8);
  const Choices whole = AskChoices(deployment.stub(), request);
  ASSERT_TRUE(whole.status.ok());
  request.add_stop("a");
  const Choices cut = AskChoices(deployment.stub(), request);
  ASSERT_TRUE(cut.status.ok());
  int stopped = 0;
  for (size_t i = 0; i < 8; ++i) {
    const size_t at = whole.answers[i].text.find('a');
    EXPECT_EQ(cut.answers[i].text, whole.answers[i].text.substr(0, at));
    const bool stops = at != std::string::npos;
    EXPECT_EQ(cut.finished[i]->reason(), stops ? v1::GenerateResponse::FINISH_REASON_STOP
                                               : v1::GenerateResponse::FINISH_REASON_LENGTH);
    EXPECT_EQ(cut.finished[i]->completion_tokens(), cut.answers[i].ids.size());
    stopped += stops ? 1 : 0;
  }
  EXPECT_GT(stopped, 0);
  EXPECT_TRUE(deployment.WaitIdle());
}

TEST(ChoicesTest, EachCountsForTheLimits) {
  DeploymentOptions options;
  options.gateway_flags = {"--max-waiting", "6", "--client-calls", "14"};
  Deployment deployment(options);
  v1::GenerateRequest request = SeededRequest(20, 4);
  request.set_n(6);
  EXPECT_TRUE(AskChoices(deployment.stub(), request).status.ok());
  request.set_n(7);
  const grpc::Status many = AskChoices(deployment.stub(), request).status;
  EXPECT_EQ(many.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(many.error_message(), HasSubstr("n is 7, but at most 6 requests may wait"));
  request.set_n(15);
  const grpc::Status limited = AskChoices(deployment.stub(), request).status;
  EXPECT_EQ(limited.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(limited.error_message(), HasSubstr("counts as 15"));
  for (const uint32_t n : {0u, 17u}) {
    request.set_n(n);
    const grpc::Status refused = AskChoices(deployment.stub(), request).status;
    EXPECT_EQ(refused.error_code(), grpc::INVALID_ARGUMENT);
    EXPECT_THAT(refused.error_message(), HasSubstr("n is " + std::to_string(n)));
  }
  request.set_n(6);
  EXPECT_TRUE(AskChoices(deployment.stub(), request).status.ok());
  EXPECT_TRUE(deployment.WaitIdle());
}

}  // namespace
}  // namespace tandem::test
