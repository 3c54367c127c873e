// Prompts, stops and readers as clients send them.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(60);
constexpr char kBos[] = "<｜begin▁of▁sentence｜>";

v1::GenerateRequest TextRequest(const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(8);
  request.set_ignore_eos(true);
  return request;
}

v1::GenerateRequest IdsRequest(int count, uint32_t max_tokens) {
  v1::GenerateRequest request = TextRequest("");
  request.clear_text();
  for (int i = 0; i < count; ++i) request.mutable_token_ids()->add_ids((i * 37 + 11) % 500 + 11);
  request.set_max_tokens(max_tokens);
  return request;
}

// A whole answer with its last event.
struct Whole {
  grpc::Status status;
  std::vector<int32_t> ids;
  v1::GenerateResponse::Finished finished;
};

Whole Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto stream = stub.Generate(&context, request);
  Whole whole;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    for (const int32_t id : response.chunk().token_ids()) whole.ids.push_back(id);
    if (response.has_finished()) whole.finished = response.finished();
  }
  whole.status = stream->Finish();
  return whole;
}

int Occurrences(const std::string& text, const std::string& word) {
  int count = 0;
  for (size_t at = text.find(word); at != text.npos; at = text.find(word, at + 1)) ++count;
  return count;
}

TEST(PromptsTest, WhoeverWritesBosHimselfCanLeaveOursOut) {
  Deployment deployment({});
  const auto tokens = [&](v1::GenerateRequest request, std::optional<bool> add_bos) {
    request.set_match_added_tokens(true);
    if (add_bos) request.set_add_bos(*add_bos);
    const Whole whole = Generate(deployment.stub(), request);
    EXPECT_TRUE(whole.status.ok()) << whole.status.error_message();
    return static_cast<int>(whole.finished.prompt_tokens());
  };
  const v1::GenerateRequest plain = TextRequest("one two");
  const v1::GenerateRequest with_bos = TextRequest(std::string(kBos) + "one two");
  const int one = tokens(plain, std::nullopt);
  EXPECT_EQ(tokens(plain, true), one);
  EXPECT_EQ(tokens(plain, false), one - 1);
  EXPECT_EQ(tokens(with_bos, false), one);
  EXPECT_EQ(Occurrences(deployment.gateway().Output(), "begin-of-sequence"), 0);
  EXPECT_EQ(tokens(with_bos, std::nullopt), one + 1);  // as Hugging Face's tokenizers do
  EXPECT_EQ(tokens(with_bos, true), one + 1);
  EXPECT_EQ(Occurrences(deployment.gateway().Output(), "begin-of-sequence"), 1);

  v1::GenerateRequest ids = IdsRequest(3, 1);
  ids.set_add_bos(false);
  const Whole refused = Generate(deployment.stub(), ids);
  EXPECT_EQ(refused.status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("add_bos"));

  v1::ScoreRequest score;
  score.set_text("one two");
  score.set_add_bos(false);
  grpc::ClientContext context;
  v1::ScoreResponse first;
  const auto stream = deployment.stub().Score(&context, score);
  ASSERT_TRUE(stream->Read(&first));
  EXPECT_EQ(static_cast<int>(first.prompt_tokens()), one - 1);
  // A row for each token, the last without a target.
  int rows = first.rows_size();
  for (v1::ScoreResponse more; stream->Read(&more);) rows += more.rows_size();
  EXPECT_EQ(rows, one - 1);
}

TEST(PromptsTest, AStopIdEndsTheAnswerBeforeIt) {
  Deployment deployment({});
  const v1::GenerateRequest request = IdsRequest(10, 40);
  const Whole whole = Generate(deployment.stub(), request);
  ASSERT_EQ(whole.ids.size(), 40u);
  const auto stop = std::find_if(whole.ids.begin() + 5, whole.ids.end(), [&](int32_t id) {
    return std::count(whole.ids.begin(), whole.ids.end(), id) == 1;
  });
  ASSERT_NE(stop, whole.ids.end());
  v1::GenerateRequest stopped = request;
  stopped.add_stop_token_ids(0);
  stopped.add_stop_token_ids(*stop);
  const Whole cut = Generate(deployment.stub(), stopped);
  EXPECT_EQ(cut.ids, std::vector<int32_t>(whole.ids.begin(), stop));
  EXPECT_EQ(cut.finished.reason(), v1::GenerateResponse::FINISH_REASON_STOP);

  stopped.add_stop_token_ids(1 << 30);
  const Whole refused = Generate(deployment.stub(), stopped);
  EXPECT_EQ(refused.status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("stop_token_ids[2]"));
}

TEST(PromptsTest, AStopStringMayBeASpecialTokensText) {
  Deployment deployment({});
  v1::GenerateRequest request = IdsRequest(10, 3000);
  request.mutable_sampling()->set_temperature(100);  // any token is as likely
  request.mutable_sampling()->set_seed(5);
  const Whole whole = Generate(deployment.stub(), request);
  const auto text_of = [&](int32_t id, bool skip_special) {
    grpc::ClientContext context;
    v1::DetokenizeRequest ask;
    ask.add_ids(id);
    ask.set_skip_special(skip_special);
    v1::DetokenizeResponse answer;
    EXPECT_TRUE(deployment.stub().Detokenize(&context, ask, &answer).ok());
    return answer.text();
  };
  const auto special = std::find_if(whole.ids.begin(), whole.ids.end(), [&](int32_t id) {
    return text_of(id, true).empty() && !text_of(id, false).empty();
  });
  ASSERT_NE(special, whole.ids.end()) << "no special token was drawn";
  request.add_stop(text_of(*special, false));
  const Whole cut = Generate(deployment.stub(), request);
  EXPECT_EQ(cut.finished.reason(), v1::GenerateResponse::FINISH_REASON_STOP);
  EXPECT_EQ(cut.ids, std::vector<int32_t>(whole.ids.begin(), special + 1));
}

// How long grpc.health.v1.Health/Check took. Its answer is bytes here: field 1, then 1 for SERVING.
absl::Duration AskHealth(const std::shared_ptr<grpc::Channel>& channel) {
  const std::string name = "tandem.v1.Inference";
  const grpc::Slice slice("\x0a" + std::string(1, static_cast<char>(name.size())) + name);
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const absl::Time start = absl::Now();
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                          grpc::ByteBuffer(&slice, 1), &queue);
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->StartCall();
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  const absl::Duration took = absl::Now() - start;
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(answer.Length(), 2u);
  return took;
}

TEST(PromptsTest, TextThatCannotFitIsRefusedAndLongTextHoldsNobodyUp) {
  Deployment deployment({});
  std::string text, longer;
  while (text.size() < 4'000'000) text += "one two three four five six seven eight nine ten ";
  while (longer.size() < 40'000'000) longer += text;
  // A chat of very many empty messages has no text but what the template writes around them.
  v1::GenerateRequest empty_messages = TextRequest("");
  for (int i = 0; i < 160'000; ++i) {
    empty_messages.mutable_chat()->add_messages()->set_role(i % 2 ? "assistant" : "user");
  }
  std::atomic<int> working = 0;
  const auto client = [&](const v1::GenerateRequest& request, const char* sentence) {
    ++working;
    return std::thread([&deployment, &working, request, sentence] {
      const Whole whole = Generate(deployment.stub(), request);
      EXPECT_EQ(whole.status.error_code(), grpc::INVALID_ARGUMENT);
      EXPECT_THAT(whole.status.error_message(), HasSubstr(sentence));
      --working;
    });
  };
  std::vector<std::thread> clients;
  constexpr char kTooManyTokens[] = "tokens, but the model's context is";
  for (int i = 0; i < 3; ++i) clients.push_back(client(TextRequest(text), kTooManyTokens));
  clients.push_back(client(empty_messages, kTooManyTokens));
  clients.push_back(client(TextRequest(longer), "bytes of text"));

  const auto channel =
      grpc::CreateChannel(deployment.address(), grpc::InsecureChannelCredentials());
  AskHealth(channel);  // the connection
  std::vector<absl::Duration> health;
  while (working > 0) {
    health.push_back(AskHealth(channel));
    EXPECT_EQ(deployment.Status().state(), "serving");
    EXPECT_TRUE(Generate(deployment.stub(), TextRequest("one")).status.ok());
  }
  for (std::thread& thread : clients) thread.join();
  ASSERT_GT(health.size(), 3u);
  std::sort(health.begin(), health.end());
  printf("%zu health checks meanwhile, the slowest took %s\n", health.size(),
         absl::FormatDuration(health.back()).c_str());
  // A text that held them up would do so for seconds. One in ten may meet a machine that is busy
  // with something else; with nothing else on it, none takes 100 ms.
  EXPECT_LT(health[health.size() * 9 / 10 - 1], absl::Seconds(1));

  const Whole too_large = Generate(deployment.stub(), TextRequest(longer + longer));
  EXPECT_EQ(too_large.status.error_code(), grpc::RESOURCE_EXHAUSTED);
}

TEST(PromptsTest, WorkOnALongTextEndsWithItsCall) {
  Deployment deployment({});
  v1::TokenizeRequest request;  // of half a minute's work
  while (request.text().size() < 60'000'000) request.mutable_text()->append("漢é ");
  const auto live = [&] { return deployment.Counter("gateway", "requests_live"); };
  const auto tokenize = [&](grpc::ClientContext* context,
                            const testing::Matcher<grpc::StatusCode>& expected) {
    return std::thread([&deployment, &request, context, expected] {
      v1::TokenizeResponse response;
      EXPECT_THAT(deployment.stub().Tokenize(context, request, &response).error_code(), expected);
    });
  };
  constexpr absl::Duration kSoon = absl::Seconds(5);

  grpc::ClientContext cancelled;
  std::thread client = tokenize(&cancelled, grpc::CANCELLED);
  EXPECT_TRUE(WaitUntil([&] { return live() == 1; }, kLimit));
  cancelled.TryCancel();
  EXPECT_TRUE(WaitUntil([&] { return live() == 0; }, kSoon));
  client.join();

  grpc::ClientContext late;
  late.set_deadline(absl::ToChronoTime(absl::Now() + kSoon));
  client = tokenize(&late, grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(WaitUntil([&] { return live() == 1; }, kSoon));
  client.join();
  EXPECT_TRUE(WaitUntil([&] { return live() == 0; }, kSoon));

  // Nor does it keep a gateway that is told to end.
  grpc::ClientContext kept;
  client = tokenize(&kept, testing::AnyOf(grpc::CANCELLED, grpc::UNAVAILABLE));
  EXPECT_TRUE(WaitUntil([&] { return live() == 1; }, kLimit));
  deployment.gateway().Signal(SIGTERM);
  EXPECT_EQ(deployment.gateway().Wait(kSoon), 0) << deployment.gateway().Output();
  client.join();
}

TEST(PromptsTest, IdsWhoseTextIsAskedForAreBounded) {
  Deployment deployment({});
  const auto detokenize = [&](int count, const std::string& model) {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.set_model(model);
    for (int i = 0; i < count; ++i) request.add_ids(20);
    v1::DetokenizeResponse response;
    return deployment.stub().Detokenize(&context, request, &response);
  };
  EXPECT_TRUE(detokenize(1 << 20, "").ok());
  const grpc::Status refused = detokenize((1 << 20) + 1, "");
  EXPECT_EQ(refused.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("ids has 1048577 ids"));
  const grpc::Status broken = detokenize(1, "\xff");
  EXPECT_EQ(broken.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(broken.error_message(), HasSubstr("UTF-8"));
}

TEST(PromptsTest, WhatNeedsExactlyTheCacheOrTheContextFits) {
  DeploymentOptions options;
  options.gateway_flags = {"--cache-tokens", "1024"};
  Deployment deployment(options);
  // The last token is drawn, not kept: 1,000 + 24 rows.
  const Whole exact = Generate(deployment.stub(), IdsRequest(1000, 25));
  EXPECT_TRUE(exact.status.ok()) << exact.status.error_message();
  EXPECT_EQ(exact.ids.size(), 25u);
  const Whole more = Generate(deployment.stub(), IdsRequest(1000, 26));
  EXPECT_EQ(more.status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_THAT(more.status.error_message(), HasSubstr("the prompt and max_tokens keep 1025 tokens"));

  v1::GenerateRequest unset = IdsRequest(1000, 1);
  unset.clear_max_tokens();
  EXPECT_EQ(Generate(deployment.stub(), unset).ids.size(), 25u);

  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(deployment.stub().GetModel(&context, {}, &model).ok());
  // Within the context, so only the cache is too small.
  const Whole context_exact =
      Generate(deployment.stub(), IdsRequest(10, model.context_tokens() - 10));
  EXPECT_EQ(context_exact.status.error_code(), grpc::RESOURCE_EXHAUSTED);
  const Whole context_more =
      Generate(deployment.stub(), IdsRequest(10, model.context_tokens() - 9));
  EXPECT_EQ(context_more.status.error_code(), grpc::INVALID_ARGUMENT);
}

// A client that takes in little that its user has not read: the probe of the connection's bandwidth
// would make its window as large as an answer.
std::unique_ptr<v1::Inference::Stub> StubOfSmallWindow(const Deployment& deployment) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  return v1::Inference::NewStub(grpc::CreateCustomChannel(
      deployment.address(), grpc::InsecureChannelCredentials(), arguments));
}

TEST(PromptsTest, ReadersThatStopReadingAreEndedAndOthersGoOn) {
  DeploymentOptions options;
  options.gateway_flags = {"--max-unread-bytes", "8000000"};
  Deployment deployment(options);
  v1::ScoreRequest request;
  *request.mutable_token_ids() = IdsRequest(1500, 1).token_ids();
  request.set_logits(true);
  struct Reader {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::ScoreResponse>> stream;
  };
  const auto stub = StubOfSmallWindow(deployment);
  std::vector<Reader> readers(4);
  for (Reader& reader : readers) reader.stream = stub->Score(&reader.context, request);
  ASSERT_TRUE(
      WaitUntil([&] { return deployment.Counter("gateway", "requests_shed_total") > 0; }, kLimit));
  EXPECT_TRUE(Generate(deployment.stub(), IdsRequest(5, 5)).status.ok());
  EXPECT_LE(deployment.Counter("gateway", "unread_bytes"), 10'000'000);
  int shed = 0;
  for (Reader& reader : readers) {
    v1::ScoreResponse response;
    while (reader.stream->Read(&response)) {
    }
    const grpc::Status status = reader.stream->Finish();
    if (status.ok()) continue;
    ++shed;
    EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("wait for their clients to read them"));
  }
  EXPECT_GT(shed, 0);
  EXPECT_TRUE(deployment.WaitIdle());
  EXPECT_EQ(deployment.Counter("gateway", "unread_bytes"), 0);
}

TEST(PromptsTest, UnaryAnswersThatNobodyReadsCountToo) {
  DeploymentOptions options;
  options.gateway_flags = {"--max-unread-bytes", "3000000"};
  Deployment deployment(options);
  v1::TokenizeRequest request;
  while (request.text().size() < 4'000'000) request.mutable_text()->append("one two three four ");
  const auto stub = StubOfSmallWindow(deployment);
  grpc::CompletionQueue queue;
  struct Reader {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<v1::TokenizeResponse>> call;
    v1::TokenizeResponse response;
    grpc::Status status;
  };
  std::vector<Reader> readers(4);
  for (Reader& reader : readers) {
    // Sends the request; without Finish no answer is read beyond the stream's window.
    reader.call = stub->PrepareAsyncTokenize(&reader.context, request, &queue);
    reader.call->StartCall();
    reader.call->ReadInitialMetadata(&reader);
  }
  ASSERT_TRUE(
      WaitUntil([&] { return deployment.Counter("gateway", "requests_shed_total") > 0; }, kLimit));
  int shed = 0;
  for (Reader& reader : readers) {
    reader.call->Finish(&reader.response, &reader.status, &reader);
  }
  for (size_t i = 0; i < 2 * readers.size(); ++i) {
    void* tag = nullptr;
    bool ok = false;
    ASSERT_TRUE(queue.Next(&tag, &ok));
  }
  for (const Reader& reader : readers) {
    if (reader.status.ok()) continue;
    ++shed;
    EXPECT_EQ(reader.status.error_code(), grpc::RESOURCE_EXHAUSTED)
        << reader.status.error_message();
  }
  EXPECT_GT(shed, 0);
  EXPECT_TRUE(deployment.WaitIdle());
  EXPECT_EQ(deployment.Counter("gateway", "unread_bytes"), 0);
}

TEST(PromptsTest, AWriteThatStallsEndsItsCall) {
  DeploymentOptions options;
  options.gateway_flags = {"--stall-limit", "0.5"};
  Deployment deployment(options);
  v1::ScoreRequest request;
  *request.mutable_token_ids() = IdsRequest(1500, 1).token_ids();
  request.set_logits(true);
  grpc::ClientContext context;
  const auto stream = deployment.stub().Score(&context, request);
  ASSERT_TRUE(
      WaitUntil([&] { return deployment.Counter("gateway", "requests_shed_total") > 0; }, kLimit));
  for (v1::ScoreResponse response; stream->Read(&response);) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_THAT(status.error_message(), HasSubstr("has read nothing for 500ms"));
  EXPECT_TRUE(deployment.WaitIdle());
  EXPECT_EQ(deployment.Counter("gateway", "unread_bytes"), 0);
}

}  // namespace
}  // namespace tandem::test
