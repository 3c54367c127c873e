#include "client.h"

#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/command_line.h"
#include "common/mode.h"
#include "common/service/grpc_channel.h"
#include "common/service/grpc_status.h"
#include "common/status.h"
#include "gateway/request_metrics.h"

namespace tandem::tool {

void ConnectOptions::AddTo(CommandLine& app) {
  const Option server_option =
      app.AddOption("--server", server, "gateway to ask, host:port").ShowDefault();
  trust.AddTo(app);
  app.AddOption("--model", model_dir, "checkpoint folder to run in this process instead")
      .Excludes(server_option);
  app.AddOption("--served-name", served_name, "with --model: what the model is called");
  app.AddOption("--dtype", dtype, "with --model: f32 or bf16").ShowDefault();
  backend.AddTo(app, "with --model: ");
  app.AddOption("--cache-tokens", cache_tokens, "with --model: size of the latent cache")
      .Range(int64_t{64}, int64_t{1} << 36)
      .ShowDefault();
  app.AddOption("--timeout", timeout_s, "seconds that a request may take, 0 for no limit")
      .NonNegative();
  AddJsonTo(app);
}

void ConnectOptions::AddJsonTo(CommandLine& app) { app.AddFlag("--json", json, "print JSON"); }

Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ConnectOptions& options) {
  auto client = std::unique_ptr<Client>(new Client);
  client->options_ = options;
  std::shared_ptr<grpc::Channel> channel;
  if (options.model_dir.empty()) {
    TANDEM_ASSIGN_OR_RETURN(client->trust_, MakeClientTrust(options.trust));
    grpc::ChannelArguments arguments = ClientChannelArguments();
    if (!options.trust.server_name.empty()) {
      arguments.SetSslTargetNameOverride(options.trust.server_name);
    }
    channel = grpc::CreateCustomChannel(options.server,
                                        MakeChannelCredentials(client->trust_.get()), arguments);
  } else {
    EmbeddedOptions embedded;
    embedded.model_dir = options.model_dir;
    embedded.served_name = options.served_name;
    TANDEM_ASSIGN_OR_RETURN(embedded.dtype, ParseMode(options.dtype));
    embedded.backend = options.backend;
    embedded.made_up_weights = options.made_up_weights;
    embedded.max_running = options.max_running;
    embedded.cache_tokens = options.cache_tokens;
    TANDEM_ASSIGN_OR_RETURN(client->deployment_, InProcessDeployment::Create(embedded));
    channel = client->deployment_->Channel();
  }
  client->stub_ = v1::Inference::NewStub(channel);
  return client;
}

std::unique_ptr<grpc::ClientContext> Client::NewContext() const {
  auto context = std::make_unique<grpc::ClientContext>();
  if (options_.timeout_s > 0) {
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::microseconds(std::llround(options_.timeout_s * 1e6)));
  }
  return context;
}

absl::Status Client::Explain(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  if (status.error_code() == grpc::DEADLINE_EXCEEDED) {
    return absl::DeadlineExceededError(
        absl::StrCat("no answer within the ", options_.timeout_s, " s of --timeout"));
  }
  if (status.error_code() == grpc::UNAVAILABLE && options_.model_dir.empty() &&
      absl::StrContains(status.error_message(), "failed to connect")) {
    return absl::UnavailableError(
        absl::StrCat("no server answers at ", options_.server,
                     ": start one with scripts/run --keep, or use --model"));
  }
  return FromGrpc(status);
}

absl::StatusOr<v1::GetStatusResponse> Client::GetStatus(bool placement) {
  v1::GetStatusRequest request;
  request.set_placement(placement);
  v1::GetStatusResponse status;
  TANDEM_RETURN_IF_ERROR(Explain(stub_->GetStatus(NewContext().get(), request, &status)));
  return status;
}

void AddMessage(v1::GenerateRequest& request, const ChatMessage& message) {
  auto* added = request.mutable_chat()->add_messages();
  added->set_role(message.role);
  added->set_content(message.content);
}

absl::StatusOr<Completion> RunGenerate(Client& client, const v1::GenerateRequest& request,
                                       const std::function<void(const std::string&)>& on_text) {
  return RunGenerate(client, *client.NewContext(), request, on_text);
}

namespace {

// `on_text`: of choice 0.
absl::StatusOr<std::vector<Completion>> ReadChoices(
    Client& client, grpc::ClientContext& context, const v1::GenerateRequest& request,
    const std::function<void(const std::string&)>& on_text) {
  const auto stream = client.stub().Generate(&context, request);
  std::vector<Completion> choices(std::max(request.n(), 1u));
  v1::GenerateResponse response;
  const auto add_text = [&](uint32_t choice, const std::string& text) {
    choices.at(choice).text += text;
    if (choice == 0 && !text.empty() && on_text) on_text(text);
  };
  while (stream->Read(&response)) {
    if (response.chunk().choice() >= choices.size() ||
        response.finished().choice() >= choices.size()) {
      return absl::InternalError("the server answers with more choices than were asked for");
    }
    if (response.has_started()) {
      for (Completion& completion : choices) completion.started = response.started();
    } else if (response.has_chunk()) {
      const auto& chunk = response.chunk();
      Completion& completion = choices[chunk.choice()];
      completion.ids.insert(completion.ids.end(), chunk.token_ids().begin(),
                            chunk.token_ids().end());
      completion.log_probs.insert(completion.log_probs.end(), chunk.log_probs().begin(),
                                  chunk.log_probs().end());
      completion.top_logprobs.insert(completion.top_logprobs.end(), chunk.top_logprobs().begin(),
                                     chunk.top_logprobs().end());
      add_text(chunk.choice(), chunk.text());
    } else if (response.has_finished()) {
      choices[response.finished().choice()].finished = response.finished();
      add_text(response.finished().choice(), response.finished().text());
    }
  }
  TANDEM_RETURN_IF_ERROR(client.Explain(stream->Finish()));
  return choices;
}

}  // namespace

absl::StatusOr<std::vector<Completion>> RunChoices(Client& client,
                                                   const v1::GenerateRequest& request) {
  return ReadChoices(client, *client.NewContext(), request, nullptr);
}

absl::StatusOr<Completion> RunGenerate(Client& client, grpc::ClientContext& context,
                                       const v1::GenerateRequest& request,
                                       const std::function<void(const std::string&)>& on_text) {
  TANDEM_ASSIGN_OR_RETURN(std::vector<Completion> choices,
                          ReadChoices(client, context, request, on_text));
  return std::move(choices.front());
}

std::string DescribeSpeed(const Completion& completion) {
  const auto& finished = completion.finished;
  const double first_s = 1e-6 * static_cast<double>(finished.queue_us() + finished.prefill_us());
  const double decode_s = 1e-6 * static_cast<double>(finished.decode_us());
  const uint32_t tokens = finished.completion_tokens();
  std::string line = absl::StrFormat("[%u prompt tokens", finished.prompt_tokens());
  if (finished.cached_tokens() > 0) {
    absl::StrAppendFormat(&line, ", %u of them cached", finished.cached_tokens());
  }
  absl::StrAppendFormat(&line, "; first token after %.3f s; %u tokens", first_s, tokens);
  if (tokens > 1 && decode_s > 0) {
    absl::StrAppendFormat(&line, ", %.1f per second", (tokens - 1) / decode_s);
  }
  absl::StrAppendFormat(&line, "; ended by %s; seed %u]", FinishReasonName(finished.reason()),
                        completion.started.seed());
  return line;
}

const char* FinishReasonName(v1::GenerateResponse::FinishReason reason) {
  const char* const label = FinishReasonLabel(reason);
  return label != nullptr ? label : "unknown";
}

void AddBosOption(CommandLine& app, std::optional<bool>* add_bos) {
  app.AddOption("--add-bos", *add_bos,
                "true or false: whether the begin-of-sequence token goes before the text; "
                "default: as the tokenizer says");
}

void SamplingOptions::AddTo(CommandLine& app) {
  app.AddOption("--temperature", temperature, "0 is greedy");
  app.AddOption("--top-k", top_k, "candidates to draw from, 0 for all");
  app.AddOption("--top-p", top_p, "share of the probability to draw from");
  app.AddOption("--min-p", min_p, "of the best one's probability, what others must have");
  app.AddOption("--repetition-penalty", repetition_penalty,
                "above 1: tokens of prompt and answer become less probable");
  app.AddOption("--frequency-penalty", frequency_penalty,
                "taken from a token's logit each time the answer has it");
  app.AddOption("--presence-penalty", presence_penalty,
                "taken from a token's logit once the answer has it");
  app.AddOption("--logit-bias", logit_bias,
                "a token's id and what is added to its logit, -100 to 100; may be given several "
                "times")
      .ValueNames("ID BIAS")
      .OneValueEach();
  app.AddOption("--seed", seed, "the same seed gives the same tokens");
  app.AddOption("--max-tokens", max_tokens, "tokens to generate at most");
  app.AddOption("--min-tokens", min_tokens, "tokens before which nothing ends the answer");
  app.AddFlag("--ignore-eos", ignore_eos, "go on after an end-of-sequence token");
  app.AddOption("--stop", stop, "end before this text; may be given several times").OneValueEach();
  app.AddOption("--priority", priority, "lower goes first").Range(-1000, 1000).ShowDefault();
  app.AddOption("--stop-id", stop_ids, "end before this token; may be given several times")
      .OneValueEach();
}

void SamplingOptions::Fill(v1::GenerateRequest& request) const {
  v1::Sampling& sampling = *request.mutable_sampling();
  if (temperature) sampling.set_temperature(*temperature);
  if (top_k) sampling.set_top_k(*top_k);
  if (top_p) sampling.set_top_p(*top_p);
  if (min_p) sampling.set_min_p(*min_p);
  if (repetition_penalty) sampling.set_repetition_penalty(*repetition_penalty);
  if (frequency_penalty) sampling.set_frequency_penalty(*frequency_penalty);
  if (presence_penalty) sampling.set_presence_penalty(*presence_penalty);
  for (const auto& [id, bias] : logit_bias) (*sampling.mutable_logit_bias())[id] = bias;
  if (seed) sampling.set_seed(*seed);
  if (max_tokens) request.set_max_tokens(*max_tokens);
  request.set_min_tokens(min_tokens);
  request.set_ignore_eos(ignore_eos);
  for (const std::string& text : stop) request.add_stop(text);
  request.mutable_stop_token_ids()->Add(stop_ids.begin(), stop_ids.end());
  request.set_priority(priority);
}

}  // namespace tandem::tool
