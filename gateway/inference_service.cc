#include "gateway/inference_service.h"

#include <algorithm>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/service/grpc_status.h"
#include "common/status.h"
#include "gateway/streaming_call.h"
#include "gateway/text_stream.h"
#include "gateway/unary_call.h"
#include "gateway/validate.h"

namespace tandem {
namespace {

// A message of ids may hold many more, and each may stand for a hundred bytes of text.
constexpr int kMaxDetokenizeIds = 1 << 20;
constexpr size_t kMaxEchoBytes = 1 << 14;  // of a message: gRPC's clients take 4 MiB

static_assert(std::endian::native == std::endian::little, "logits travel as the memory holds them");

template <typename Request>
absl::StatusOr<Request> Parse(const grpc::ByteBuffer* buffer) {
  Request request;
  if (ParseMessage(*buffer, &request)) return request;
  return absl::InvalidArgumentError(
      absl::StrCat("the request is not a valid ", Request::descriptor()->full_name(),
                   ": a string in it is not valid UTF-8, or its bytes are malformed"));
}

uint64_t Microseconds(absl::Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Microseconds(duration)));
}

class GenerateCall : public StreamingCall {
 public:
  static constexpr char kRpc[] = "Generate";
  using StreamingCall::StreamingCall;

  // Errors: ValidateGenerate's.
  absl::Status Start(const v1::GenerateRequest& request, const ServedModel& model,
                     absl::Time deadline) {
    TANDEM_ASSIGN_OR_RETURN(ValidRequest valid,
                            ValidateGenerate(request, model, [this] { return cancelled(); }));
    valid.job.deadline = deadline;
    v1::GenerateResponse response;
    response.mutable_started()->set_model(model.name);
    response.mutable_started()->set_prompt_tokens(static_cast<uint32_t>(valid.job.prompt.size()));
    response.mutable_started()->set_seed(valid.job.sampling.seed);
    std::vector<grpc::ByteBuffer> first = {SerializeMessage(response)};
    std::vector<SubmittedJob> jobs;
    left_ = valid.choices;
    for (uint32_t i = 0; i < valid.choices; ++i) {
      Choice& choice = choices_.emplace_back(this, i, model, valid);
      if (request.echo()) {
        const std::string echo = choice.Echo(request, valid.job.prompt);
        if (static_cast<int64_t>(echo.size()) > max_unread_bytes() / valid.choices) {
          return absl::InvalidArgumentError(
              absl::StrCat("echo of a prompt of ", echo.size(), " bytes in ", valid.choices,
                           " answers is more than the ", max_unread_bytes(),
                           " bytes that may wait for clients"));
        }
        choice.AddEcho(echo, &first);
      }
      jobs.push_back({valid.job, Sink(&choice)});
      jobs.back().job.sampling.choice = i;
    }
    Submit(std::move(jobs), first);
    return absl::OkStatus();
  }

 private:
  // One of the answers.
  class Choice : public JobSink {
   public:
    Choice(GenerateCall* call, uint32_t index, const ServedModel& model, const ValidRequest& valid)
        : call_(*call),
          index_(index),
          text_(model.tokenizer.get(), valid.stop, valid.job.sampling.min_tokens),
          wants_top_(valid.job.top_logprobs > 0),
          prompt_tokens_(static_cast<uint32_t>(valid.job.prompt.size())) {}

    // The prompt's text; first.
    std::string Echo(const v1::GenerateRequest& request, absl::Span<const int32_t> prompt) {
      return request.has_text() ? request.text() : text_.Echo(prompt);
    }
    // It in chunks that every client takes.
    void AddEcho(absl::string_view text, std::vector<grpc::ByteBuffer>* messages) const {
      while (!text.empty()) {
        size_t size = std::min(text.size(), kMaxEchoBytes);
        while (size < text.size() && (static_cast<uint8_t>(text[size]) & 0xC0) == 0x80) --size;
        v1::GenerateResponse response;
        response.mutable_chunk()->set_choice(index_);
        response.mutable_chunk()->set_text(std::string(text.substr(0, size)));
        messages->push_back(SerializeMessage(response));
        text.remove_prefix(size);
      }
    }

    uint32_t completion_tokens() const { return completion_tokens_; }
    bool admitted() const { return admitted_ != absl::Time(); }
    // For the log: what is known so far.
    void AddDetails(LogFields* details) const {
      const auto add_ms = [&](const char* key, absl::Duration time) {
        details->emplace_back(key, absl::ToInt64Milliseconds(time));
      };
      if (reason_ != nullptr) details->emplace_back("finish_reason", reason_);
      details->emplace_back("prompt_tokens", prompt_tokens_);
      if (admitted()) {
        details->emplace_back("cached_tokens", cached_tokens_);
        add_ms("queue_ms", admitted_ - submitted_);
      }
      if (completion_tokens_ > 0) {
        add_ms("prefill_ms", first_ - admitted_);
        add_ms("decode_ms", last_ - first_);
      }
    }

   private:
    v1::GenerateResponse::FinishReason Reason(JobEnd end) const {
      if (end == JobEnd::kStop || text_.stopped()) return v1::GenerateResponse::FINISH_REASON_STOP;
      return end == JobEnd::kEos ? v1::GenerateResponse::FINISH_REASON_EOS
                                 : v1::GenerateResponse::FINISH_REASON_LENGTH;
    }

    void OnAdmitted(int32_t cached_tokens) override {
      admitted_ = absl::Now();
      cached_tokens_ = static_cast<uint32_t>(cached_tokens);
    }
    void OnScored(const ScoredRow&, float, std::vector<float>) override {}

    void OnToken(const DrawnToken& token) override {
      if (text_.stopped()) return;
      const absl::Time before = std::exchange(last_, absl::Now());
      if (completion_tokens_++ == 0) {
        first_ = last_;
        call_.metrics().ObserveFirstToken(first_ - call_.arrived());
      } else {
        call_.metrics().ObserveNextToken(last_ - before);
      }
      v1::GenerateResponse response;
      v1::GenerateResponse::Chunk& chunk = *response.mutable_chunk();
      chunk.set_choice(index_);
      chunk.set_text(text_.Push(token.id));
      chunk.add_token_ids(token.id);
      chunk.add_log_probs(token.log_prob);
      if (wants_top_) {
        v1::GenerateResponse::TopLogProbs& top = *chunk.add_top_logprobs();
        for (const TokenLogProb& candidate : token.top) {
          top.add_token_ids(candidate.token);
          top.add_log_probs(candidate.log_prob);
        }
      }
      call_.Send(response);
      if (text_.stopped()) call_.FinishJob(index_);
    }

    void OnEnd(JobEnd end, absl::Status status) override {
      // A job that fails on the way to being finished has given its whole answer before.
      if (end == JobEnd::kFailed && !text_.stopped()) return call_.Fail(status);
      v1::GenerateResponse response;
      v1::GenerateResponse::Finished& finished = *response.mutable_finished();
      finished.set_choice(index_);
      finished.set_text(text_.Flush());
      finished.set_reason(Reason(end));
      finished.set_prompt_tokens(prompt_tokens_);
      finished.set_completion_tokens(completion_tokens_);
      finished.set_cached_tokens(cached_tokens_);
      finished.set_queue_us(Microseconds(admitted_ - submitted_));
      finished.set_prefill_us(Microseconds(first_ - admitted_));
      finished.set_decode_us(Microseconds(last_ - first_));
      reason_ = FinishReasonLabel(finished.reason());
      call_.metrics().ObserveGenerated({finished.reason(), prompt_tokens_, completion_tokens_,
                                        absl::Now() - call_.arrived(), admitted_ - submitted_,
                                        first_ - admitted_, last_ - first_});
      call_.Send(response);
      call_.OnFinished();
    }

    GenerateCall& call_;
    const uint32_t index_;
    TextStream text_;
    const bool wants_top_;
    const uint32_t prompt_tokens_;
    uint32_t completion_tokens_ = 0;
    uint32_t cached_tokens_ = 0;
    const absl::Time submitted_ = absl::Now();
    absl::Time admitted_, first_, last_;
    const char* reason_ = nullptr;  // once it has given its whole answer
  };

  const char* rpc() const override { return kRpc; }

  // Of several answers: tokens of all, and times of the first.
  LogFields Details() const override {
    LogFields details;
    if (!choices_.empty()) {
      const auto choices = static_cast<int64_t>(choices_.size());
      if (choices > 1) details.emplace_back("choices", choices);
      choices_.front().AddDetails(&details);
      uint32_t completion_tokens = 0;
      for (const Choice& choice : choices_) completion_tokens += choice.completion_tokens();
      if (choices_.front().admitted()) details.emplace_back("completion_tokens", completion_tokens);
    }
    details.emplace_back("total_ms", absl::ToInt64Milliseconds(absl::Now() - arrived()));
    return details;
  }

  // Both from the driver's thread. A call without one of its answers is of no use: what the others
  // still do is in vain.
  void Fail(const absl::Status& status) {
    if (std::exchange(failed_, true)) return;
    End(ToGrpc(status));
    CancelJobs();
  }
  void OnFinished() {
    if (--left_ == 0) End(grpc::Status::OK);
  }

  std::deque<Choice> choices_;
  uint32_t left_ = 0;
  bool failed_ = false;
};

class ScoreCall : public StreamingCall, private JobSink {
 public:
  static constexpr char kRpc[] = "Score";
  using StreamingCall::StreamingCall;

  // Errors: ValidateScore's.
  absl::Status Start(const v1::ScoreRequest& request, const ServedModel& model,
                     absl::Time deadline) {
    TANDEM_ASSIGN_OR_RETURN(ValidRequest valid, ValidateScore(request, model, max_unread_bytes(),
                                                              [this] { return cancelled(); }));
    Job& job = valid.job;
    job.deadline = deadline;
    // Of the last position nothing is computed without logits.
    const bool wants_last =
        request.positions().empty() ||
        request.positions(request.positions_size() - 1) + 1 == job.prompt.size();
    prompt_tokens_ = static_cast<uint32_t>(job.prompt.size());
    v1::ScoreResponse response;
    response.set_prompt_tokens(prompt_tokens_);
    const int32_t last = static_cast<int32_t>(job.prompt.size()) - 1;
    if (wants_last && (job.scored.empty() || job.scored.back().position != last)) last_ = last;
    if (job.scored.empty()) {
      Send(response);
      OnEnd(JobEnd::kScored, absl::OkStatus());
    } else {
      std::vector<SubmittedJob> jobs;
      jobs.push_back({std::move(job), Sink(this)});
      Submit(std::move(jobs), {SerializeMessage(response)});
    }
    return absl::OkStatus();
  }

 private:
  const char* rpc() const override { return kRpc; }
  LogFields Details() const override {
    LogFields details;
    if (prompt_tokens_ > 0) details.emplace_back("prompt_tokens", prompt_tokens_);
    details.emplace_back("total_ms", absl::ToInt64Milliseconds(absl::Now() - arrived()));
    return details;
  }

  void OnAdmitted(int32_t) override {}
  void OnToken(const DrawnToken&) override {}

  void OnScored(const ScoredRow& row, float log_prob, std::vector<float> logits) override {
    v1::ScoreResponse response;
    v1::ScoreResponse::Row& to = *response.add_rows();
    to.set_position(static_cast<uint32_t>(row.position));
    to.set_target(row.target);
    to.set_log_prob(row.target < 0 ? 0 : log_prob);
    to.set_logits(logits.data(), logits.size() * sizeof(float));
    Send(response);
  }

  void OnEnd(JobEnd end, absl::Status status) override {
    if (end == JobEnd::kFailed) return End(ToGrpc(status));
    if (last_ >= 0) OnScored({last_, -1, false}, 0, {});
    metrics().CountScored();
    End(grpc::Status::OK);
  }

  uint32_t prompt_tokens_ = 0;
  int32_t last_ = -1;
};

// A call that carries nothing but its end.
class RefusedCall : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedCall(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

// The status of a call over its client's limits, and in its trailers when to ask again.
absl::Status Refused(grpc::CallbackServerContext* context, const ClientLimits::Decision& decision) {
  if (!absl::IsResourceExhausted(decision.status)) return decision.status;
  // gRPC's own clients wait for so long before they ask again (proposal A6).
  const int64_t ms =
      absl::ToInt64Milliseconds(absl::Ceil(decision.retry_after, absl::Milliseconds(1)));
  context->AddTrailingMetadata(kRetryPushback, absl::StrCat(ms));
  return decision.status;
}

// Each choice counts for its client as a call. What is out of range is refused later.
int ChoicesOf(const v1::GenerateRequest& request) {
  return request.n() > kMaxChoices ? 1 : static_cast<int>(request.n());
}
int ChoicesOf(const v1::ScoreRequest&) { return 1; }

absl::Time Deadline(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture()
                                                                  : absl::FromChrono(deadline);
}

grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context,
                                   const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

absl::StatusOr<v1::TokenizeResponse> TokenizeRequested(const v1::TokenizeRequest& request,
                                                       const ServedModel& model,
                                                       const StopFunction& stop) {
  TANDEM_RETURN_IF_ERROR(ValidateModelName(request.model(), model));
  TANDEM_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(model));
  std::vector<int32_t> ids;
  if (request.has_chat()) {
    TANDEM_ASSIGN_OR_RETURN(ids, tokenizer->EncodeChat(ChatFromProto(request.chat()), true, stop));
  } else {
    TANDEM_ASSIGN_OR_RETURN(ids, tokenizer->Encode(request.text(),
                                                   request.plain() ? Tokenizer::AddedTokens::kPlain
                                                                   : Tokenizer::AddedTokens::kMatch,
                                                   request.add_bos(), /*add_eos=*/false, stop));
  }
  v1::TokenizeResponse response;
  response.mutable_ids()->Add(ids.begin(), ids.end());
  return response;
}

// What must be known before a request waits among others.
absl::Status CheckSize(const v1::TokenizeRequest&) { return absl::OkStatus(); }
absl::Status CheckSize(const v1::DetokenizeRequest& request) {
  if (request.ids_size() <= kMaxDetokenizeIds) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "ids has ", request.ids_size(), " ids, but at most ", kMaxDetokenizeIds, " are allowed"));
}

absl::StatusOr<v1::DetokenizeResponse> DetokenizeRequested(const v1::DetokenizeRequest& request,
                                                           const ServedModel& model,
                                                           const StopFunction& stop) {
  TANDEM_RETURN_IF_ERROR(ValidateModelName(request.model(), model));
  TANDEM_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(model));
  const std::vector<int32_t> ids(request.ids().begin(), request.ids().end());
  TANDEM_ASSIGN_OR_RETURN(std::string text, tokenizer->Decode(ids, request.skip_special(), stop));
  v1::DetokenizeResponse response;
  response.set_text(std::move(text));
  return response;
}

}  // namespace

InferenceService::InferenceService(StepDriver* driver, StatusFunction status, LiveCallLimits limits,
                                   ClientLimitOptions client_limits, CallerFunction caller,
                                   RequestLogLevel log_requests)
    : driver_(driver),
      status_(std::move(status)),
      caller_(std::move(caller)),
      log_(std::make_shared<RequestLog>(log_requests)),
      client_limits_(client_limits),
      live_(limits) {}

CounterSnapshot InferenceService::Counters() const {
  CounterSnapshot counters = live_.Counters();
  for (auto& counter : client_limits_.Counters()) counters.push_back(std::move(counter));
  return counters;
}

absl::StatusOr<ClientLimits::Lease> InferenceService::Admit(grpc::CallbackServerContext* context) {
  if (!client_limits_.limited()) return ClientLimits::Lease();
  ClientLimits::Decision decision =
      client_limits_.Admit(caller_ ? caller_(*context) : "", absl::Now());
  if (decision.status.ok()) return std::move(decision.lease);
  return Refused(context, decision);
}

absl::StatusOr<const ServedModel*> InferenceService::Model() const {
  const ServedModel* model = model_;
  if (model == nullptr) return absl::UnavailableError("the model is still loading");
  return model;
}

RequestTag InferenceService::Identify(grpc::CallbackServerContext* context) {
  RequestTag tag = TagOf(context->client_metadata());
  context->AddInitialMetadata(kRequestIdKey, tag.request_id);
  return tag;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Refuse(const char* rpc,
                                                                     const RequestTag& tag,
                                                                     const absl::Status& status) {
  metrics_->CountError(status.code());
  const LogScope scope(FieldsOf(tag));
  log_->Ended(rpc, ToGrpc(status), {});
  return new RefusedCall(status);
}

template <typename Call, typename Request>
grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::StartCall(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer) {
  RequestTag tag = Identify(context);
  absl::StatusOr<ClientLimits::Lease> lease = Admit(context);
  if (!lease.ok()) return Refuse(Call::kRpc, tag, lease.status());
  const absl::StatusOr<const ServedModel*> model = Model();
  if (!model.ok()) return Refuse(Call::kRpc, tag, model.status());
  absl::StatusOr<Request> parsed = Parse<Request>(buffer);
  if (!parsed.ok()) return Refuse(Call::kRpc, tag, parsed.status());
  const auto request = std::make_shared<const Request>(*std::move(parsed));
  if (const int more = ChoicesOf(*request) - 1; more > 0) {
    const ClientLimits::Decision decision = client_limits_.AddCalls(&*lease, more, absl::Now());
    if (!decision.status.ok()) return Refuse(Call::kRpc, tag, Refused(context, decision));
  }
  const auto call = std::make_shared<Call>(StreamingCall::Service{driver_, &live_, metrics_, log_},
                                           std::move(tag), context);
  call->Hold(*std::move(lease));
  call->KeepAlive();
  // First, so that a text which cannot fit neither waits for others nor they for it.
  absl::Status taken = ValidateTextBytes(*request, **model);
  if (taken.ok()) {
    taken = text_work_.Do(TextBytes(*request), [call, request, &model = **model,
                                                deadline = Deadline(*context)] {
      const LogScope scope(FieldsOf(call->tag()));
      const absl::Status started = call->cancelled() ? absl::CancelledError("the client is gone")
                                                     : call->Start(*request, model, deadline);
      if (!started.ok()) call->End(ToGrpc(started));
    });
  }
  if (!taken.ok()) call->End(ToGrpc(taken));
  return call.get();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer) {
  return StartCall<GenerateCall, v1::GenerateRequest>(context, buffer);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Score(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer) {
  return StartCall<ScoreCall, v1::ScoreRequest>(context, buffer);
}

template <typename Request, typename Response>
grpc::ServerUnaryReactor* InferenceService::StartUnary(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer,
    grpc::ByteBuffer* response,
    absl::StatusOr<Response> (*answer)(const Request&, const ServedModel&, const StopFunction&)) {
  RequestTag tag = Identify(context);
  absl::StatusOr<ClientLimits::Lease> lease = Admit(context);
  if (!lease.ok()) return Finished(context, lease.status());
  const absl::StatusOr<const ServedModel*> model = Model();
  if (!model.ok()) return Finished(context, model.status());
  absl::StatusOr<Request> parsed = Parse<Request>(buffer);
  if (!parsed.ok()) return Finished(context, parsed.status());
  if (const absl::Status size = CheckSize(*parsed); !size.ok()) return Finished(context, size);
  const auto request = std::make_shared<const Request>(*std::move(parsed));
  auto* const call = new UnaryCall(&live_, context, response);
  call->Hold(*std::move(lease));
  const absl::Status taken =
      text_work_.Do(TextBytes(*request), [call, request, answer, tag, &model = **model] {
        const LogScope scope(FieldsOf(tag));
        if (call->cancelled()) return call->Fail(absl::CancelledError("the client is gone"));
        const absl::StatusOr<Response> answered =
            answer(*request, model, [call] { return call->cancelled(); });
        if (!answered.ok()) return call->Fail(answered.status());
        call->Answer(*answered);
      });
  if (!taken.ok()) call->Fail(taken);
  return call;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* buffer,
                                                     grpc::ByteBuffer* response) {
  return StartUnary(context, buffer, response, TokenizeRequested);
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* buffer,
                                                       grpc::ByteBuffer* response) {
  return StartUnary(context, buffer, response, DetokenizeRequested);
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest*,
                                                     v1::GetModelResponse* response) {
  const absl::StatusOr<ClientLimits::Lease> lease = Admit(context);
  if (!lease.ok()) return Finished(context, lease.status());
  const absl::StatusOr<const ServedModel*> served = Model();
  if (!served.ok()) return Finished(context, served.status());
  const ServedModel& model = **served;
  response->set_name(model.name);
  response->set_dtype(DtypeName(model.dtype));
  response->set_context_tokens(static_cast<uint32_t>(model.config.max_position_embeddings));
  response->set_vocab_size(static_cast<uint32_t>(model.config.vocab_size));
  response->set_num_layers(static_cast<uint32_t>(model.config.num_layers));
  response->set_has_tokenizer(model.tokenizer != nullptr);
  response->set_has_chat_template(model.tokenizer != nullptr &&
                                  model.tokenizer->EncodeChat({{"user", "x"}}, true).ok());
  response->mutable_eos_ids()->Add(model.eos_ids.begin(), model.eos_ids.end());
  if (model.config.bos_token_id) response->set_bos_id(*model.config.bos_token_id);
  response->set_digest(model.digest);
  response->set_parameters(model.parameters);
  *response->mutable_default_sampling() = DefaultsToProto(model.default_sampling);
  return Finished(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::GetStatus(grpc::CallbackServerContext* context,
                                                      const v1::GetStatusRequest* request,
                                                      v1::GetStatusResponse* response) {
  const absl::StatusOr<ClientLimits::Lease> lease = Admit(context);
  if (!lease.ok()) return Finished(context, lease.status());
  *response = status_(*request);
  return Finished(context, absl::OkStatus());
}

}  // namespace tandem
