#include "gateway/validate.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/transport/attention_link.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr int kDefaultMaxTokens = 1024;
constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxStopIds = 64;
constexpr float kMaxTemperature = 100;
// Of a score's answer, which may wait in memory for its client: half of what all may by default.
constexpr int64_t kMaxScoreBytes = int64_t{1} << 29;
constexpr int64_t kScoreRowBytes = 64;  // of a row without logits, at most

// White space that an added token takes in (lstrip, rstrip) counts here as well.
absl::Status CheckTextBytes(size_t bytes, const ServedModel& model) {
  if (model.tokenizer == nullptr) return absl::OkStatus();
  const auto context = static_cast<size_t>(model.config.max_position_embeddings);
  const size_t longest = model.tokenizer->max_token_bytes();
  if (bytes <= context * longest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the prompt has ", bytes, " bytes of text, but the model's context is ", context,
                   " tokens, which are at most ", longest, " bytes each"));
}

absl::Status CheckIds(const char* field, absl::Span<const int32_t> ids, const ServedModel& model) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model.config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(field, "[", i, "] is ", ids[i],
                                                     ", but the vocabulary is 0 to ",
                                                     model.config.vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

// Request is GenerateRequest or ScoreRequest, as below.
template <typename Request>
absl::StatusOr<std::vector<int32_t>> TextIds(const Request& request, const ServedModel& model,
                                             const StopFunction& stop) {
  TANDEM_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(model));
  if (request.text().empty()) return absl::InvalidArgumentError("text is empty");
  const bool add_bos = request.has_add_bos() ? request.add_bos() : tokenizer->add_bos();
  TANDEM_ASSIGN_OR_RETURN(
      std::vector<int32_t> ids,
      tokenizer->Encode(request.text(),
                        request.match_added_tokens() ? Tokenizer::AddedTokens::kMatch
                                                     : Tokenizer::AddedTokens::kPlain,
                        add_bos, tokenizer->add_eos(), stop));
  if (add_bos && ids.size() > 1 && ids[1] == ids[0]) {
    static std::once_flag said;
    std::call_once(said, [] {
      spdlog::warn(
          "a prompt's text begins with the begin-of-sequence token, and another one was put before "
          "it: add_bos = false leaves that out (said once)");
    });
  }
  return ids;
}

// The prompt's ids from whichever field holds them; of a chat also where the assistant's turns are.
template <typename Request>
absl::StatusOr<std::vector<int32_t>> PromptIds(const Request& request, const ServedModel& model,
                                               const StopFunction& stop,
                                               std::vector<TokenRange>* assistant_turns = nullptr) {
  std::vector<int32_t> ids;
  if (request.has_add_bos() && !request.has_text()) {
    return absl::InvalidArgumentError("add_bos is set, but it goes with text only");
  }
  if (request.has_text()) {
    TANDEM_ASSIGN_OR_RETURN(ids, TextIds(request, model, stop));
  } else if (request.has_token_ids()) {
    ids.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
    TANDEM_RETURN_IF_ERROR(CheckIds("token_ids", ids, model));
  } else if constexpr (requires { request.chat(); }) {
    if (!request.has_chat()) {
      return absl::InvalidArgumentError("prompt is missing: set text, token_ids or chat");
    }
    TANDEM_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(model));
    TANDEM_ASSIGN_OR_RETURN(
        ids, tokenizer->EncodeChat(ChatFromProto(request.chat()),
                                   /*add_generation_prompt=*/true, stop, assistant_turns));
  } else {
    return absl::InvalidArgumentError("prompt is missing: set text or token_ids");
  }
  if (ids.empty()) return absl::InvalidArgumentError("prompt has no tokens");
  const int64_t context = model.config.max_position_embeddings;
  if (static_cast<int64_t>(ids.size()) > context) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt has ", ids.size(), " tokens, but the model's context is ", context));
  }
  return ids;
}

// The pages below `expanded_length` that an assistant's turn touches: when they were generated they
// were in the absorbed form, and so they are from then on.
std::vector<PageRange> PagesOfTurns(absl::Span<const TokenRange> turns, int32_t expanded_length) {
  std::vector<PageRange> pages;
  for (const TokenRange& turn : turns) {
    const int32_t first = turn.first / kPageTokens;
    const int32_t end = std::min((turn.end - 1) / kPageTokens + 1, expanded_length / kPageTokens);
    if (first >= end) break;
    if (!pages.empty() && first <= pages.back().end) {
      pages.back().end = end;
    } else {
      pages.push_back({first, end});
    }
  }
  return pages;
}

// Whether `value` is within; a NaN is not.
absl::Status CheckRange(const char* field, float value, float least, float most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sampling.", field, " is ", value, ", but must be ", least, " to ", most));
}

absl::StatusOr<std::vector<LogitBias>> ValidateLogitBias(const v1::Sampling& sampling,
                                                         const ServedModel& model) {
  if (sampling.logit_bias_size() > kMaxLogitBiases) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.logit_bias has ",
                                                   sampling.logit_bias_size(), " ids, but at most ",
                                                   kMaxLogitBiases, " are allowed"));
  }
  std::vector<LogitBias> biases;
  for (const auto& [id, bias] : sampling.logit_bias()) {
    if (id < 0 || id >= model.config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("sampling.logit_bias has id ", id,
                                                     ", but the vocabulary is 0 to ",
                                                     model.config.vocab_size - 1));
    }
    TANDEM_RETURN_IF_ERROR(CheckRange(absl::StrCat("logit_bias[", id, "]").c_str(), bias,
                                      -kMaxLogitBias, kMaxLogitBias));
    biases.push_back({id, bias});
  }
  std::sort(biases.begin(), biases.end(), [](auto& a, auto& b) { return a.id < b.id; });
  return biases;
}

absl::StatusOr<SamplingParams> ValidateSampling(const v1::Sampling& sampling,
                                                const ServedModel& model) {
  SamplingParams params = model.default_sampling;
  if (sampling.has_temperature()) params.temperature = sampling.temperature();
  if (sampling.has_top_p()) params.top_p = sampling.top_p();
  if (sampling.has_min_p()) params.min_p = sampling.min_p();
  if (sampling.has_repetition_penalty()) params.repetition_penalty = sampling.repetition_penalty();
  params.frequency_penalty = sampling.frequency_penalty();
  params.presence_penalty = sampling.presence_penalty();
  TANDEM_RETURN_IF_ERROR(CheckRange("temperature", params.temperature, 0, kMaxTemperature));
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.top_p is ", params.top_p, ", but must be above 0 and at most 1"));
  }
  TANDEM_RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0, 1));
  TANDEM_RETURN_IF_ERROR(CheckRange("repetition_penalty", params.repetition_penalty,
                                    kMinRepetitionPenalty, kMaxRepetitionPenalty));
  TANDEM_RETURN_IF_ERROR(
      CheckRange("frequency_penalty", params.frequency_penalty, -kMaxPenalty, kMaxPenalty));
  TANDEM_RETURN_IF_ERROR(
      CheckRange("presence_penalty", params.presence_penalty, -kMaxPenalty, kMaxPenalty));
  TANDEM_ASSIGN_OR_RETURN(params.logit_bias, ValidateLogitBias(sampling, model));
  if (sampling.has_top_k()) {
    params.top_k = static_cast<int32_t>(std::min<uint32_t>(sampling.top_k(), INT32_MAX));
  }
  if (sampling.has_seed()) {
    params.seed = sampling.seed();
  } else {
    std::random_device device;
    params.seed = (uint64_t{device()} << 32) | device();
  }
  return params;
}

}  // namespace

size_t TextBytes(const v1::GenerateRequest& request) {
  size_t bytes = request.text().size() + request.chat().ByteSizeLong();
  if (request.echo()) {  // each choice makes text of them
    const uint32_t choices = std::clamp<uint32_t>(request.n(), 1, kMaxChoices);
    bytes += choices * sizeof(int32_t) * static_cast<size_t>(request.token_ids().ids_size());
  }
  return bytes;
}
size_t TextBytes(const v1::ScoreRequest& request) { return request.text().size(); }
size_t TextBytes(const v1::TokenizeRequest& request) {
  return request.text().size() + request.chat().ByteSizeLong();
}
size_t TextBytes(const v1::DetokenizeRequest& request) {
  return sizeof(int32_t) * static_cast<size_t>(request.ids_size());
}

absl::Status ValidateTextBytes(const v1::GenerateRequest& request, const ServedModel& model) {
  // Every template writes something around a message.
  const int64_t context = model.config.max_position_embeddings;
  if (request.chat().messages_size() > context) {
    return absl::InvalidArgumentError(absl::StrCat("chat has ", request.chat().messages_size(),
                                                   " messages, but the model's context is ",
                                                   context, " tokens"));
  }
  size_t bytes = request.text().size();
  for (const v1::ChatMessage& message : request.chat().messages()) {
    bytes += message.content().size();
  }
  return CheckTextBytes(bytes, model);
}
absl::Status ValidateTextBytes(const v1::ScoreRequest& request, const ServedModel& model) {
  return CheckTextBytes(request.text().size(), model);
}

absl::Status ValidateModelName(const std::string& name, const ServedModel& model) {
  if (name.empty() || name == model.name) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(
      "model \"", name, "\" is not served here: this server has \"", model.name, "\""));
}

absl::StatusOr<const Tokenizer*> NeedTokenizer(const ServedModel& model) {
  if (model.tokenizer != nullptr) return model.tokenizer.get();
  return absl::FailedPreconditionError(absl::StrCat("the checkpoint \"", model.name,
                                                    "\" serves no text (", model.no_tokenizer,
                                                    "): send token_ids"));
}

v1::Sampling DefaultsToProto(const SamplingParams& defaults) {
  v1::Sampling sampling;
  sampling.set_temperature(defaults.temperature);
  sampling.set_top_k(static_cast<uint32_t>(defaults.top_k));
  sampling.set_top_p(defaults.top_p);
  sampling.set_min_p(defaults.min_p);
  sampling.set_repetition_penalty(defaults.repetition_penalty);
  return sampling;
}

std::vector<ChatMessage> ChatFromProto(const v1::Chat& chat) {
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages()) {
    messages.push_back({message.role(), message.content()});
  }
  return messages;
}

absl::StatusOr<ValidRequest> ValidateGenerate(const v1::GenerateRequest& request,
                                              const ServedModel& model, const StopFunction& stop) {
  TANDEM_RETURN_IF_ERROR(ValidateModelName(request.model(), model));
  ValidRequest valid;
  Job& job = valid.job;
  TANDEM_ASSIGN_OR_RETURN(job.sampling, ValidateSampling(request.sampling(), model));
  if (request.stop_size() > kMaxStops) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stop has ", request.stop_size(), " strings, but at most ", kMaxStops, " are allowed"));
  }
  for (const std::string& stop : request.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(absl::StrCat("a stop string has ", stop.size(),
                                                     " bytes, but must have 1 to ", kMaxStopBytes));
    }
    valid.stop.push_back(stop);
  }
  if (!valid.stop.empty()) TANDEM_RETURN_IF_ERROR(NeedTokenizer(model).status());
  if (request.stop_token_ids_size() > kMaxStopIds) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop_token_ids has ", request.stop_token_ids_size(), " ids, but at most ",
                     kMaxStopIds, " are allowed"));
  }
  job.stop_ids.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  TANDEM_RETURN_IF_ERROR(CheckIds("stop_token_ids", job.stop_ids, model));
  if (request.priority() < -kMaxPriority || request.priority() > kMaxPriority) {
    return absl::InvalidArgumentError(absl::StrCat(
        "priority is ", request.priority(), ", but must be ", -kMaxPriority, " to ", kMaxPriority));
  }
  job.priority = request.priority();
  if (request.echo() && request.has_chat()) {
    return absl::InvalidArgumentError("echo is set, but it goes with text and token_ids only");
  }
  if (request.echo()) TANDEM_RETURN_IF_ERROR(NeedTokenizer(model).status());
  valid.choices = request.has_n() ? request.n() : 1;
  if (valid.choices < 1 || valid.choices > kMaxChoices) {
    return absl::InvalidArgumentError(
        absl::StrCat("n is ", valid.choices, ", but must be 1 to ", kMaxChoices));
  }
  if (request.top_logprobs() > kMaxTopLogProbs) {
    return absl::InvalidArgumentError(absl::StrCat("top_logprobs is ", request.top_logprobs(),
                                                   ", but must be 0 to ", kMaxTopLogProbs));
  }
  job.top_logprobs = static_cast<int32_t>(request.top_logprobs());
  if (request.has_max_tokens() && request.max_tokens() == 0) {
    return absl::InvalidArgumentError("max_tokens is 0, but must be at least 1");
  }
  std::vector<TokenRange> turns;
  TANDEM_ASSIGN_OR_RETURN(job.prompt, PromptIds(request, model, stop, &turns));
  const int64_t prompt = static_cast<int64_t>(job.prompt.size());
  const int64_t room = model.config.max_position_embeddings - prompt;
  if (room == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt has ", prompt, " tokens and fills the model's context: no token can follow it"));
  }
  job.may_be_shorter = !request.has_max_tokens();
  const int64_t wanted = request.has_max_tokens() ? int64_t{request.max_tokens()}
                                                  : std::min<int64_t>(room, kDefaultMaxTokens);
  if (wanted > room) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt has ", prompt, " tokens and max_tokens is ", wanted,
                     ", but the model's context is ", model.config.max_position_embeddings));
  }
  job.max_new_tokens = static_cast<int32_t>(wanted);
  if (request.min_tokens() > wanted) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_tokens is ", request.min_tokens(), ", but max_tokens is ", wanted,
                     request.has_max_tokens() ? "" : " where it is not set"));
  }
  job.expanded_length = SequenceSpec::ExpandedLength(prompt);
  job.absorbed_pages = PagesOfTurns(turns, job.expanded_length);
  if (!request.ignore_eos()) job.eos_ids = model.eos_ids;
  if (request.min_tokens() > 0) {
    job.sampling.min_tokens = static_cast<int32_t>(request.min_tokens());
    job.sampling.end_ids = job.eos_ids;
    job.sampling.end_ids.insert(job.sampling.end_ids.end(), job.stop_ids.begin(),
                                job.stop_ids.end());
  }
  return valid;
}

absl::StatusOr<ValidRequest> ValidateScore(const v1::ScoreRequest& request,
                                           const ServedModel& model, int64_t max_unread_bytes,
                                           const StopFunction& stop) {
  TANDEM_RETURN_IF_ERROR(ValidateModelName(request.model(), model));
  ValidRequest valid;
  Job& job = valid.job;
  TANDEM_ASSIGN_OR_RETURN(job.prompt, PromptIds(request, model, stop));
  const int32_t length = static_cast<int32_t>(job.prompt.size());
  std::vector<int32_t> positions;
  for (const uint32_t position : request.positions()) {
    if (position >= job.prompt.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("positions names ", position, ", but the last position is ", length - 1));
    }
    if (!positions.empty() && static_cast<int32_t>(position) <= positions.back()) {
      return absl::InvalidArgumentError(absl::StrCat("positions are not ascending at ", position));
    }
    positions.push_back(static_cast<int32_t>(position));
  }
  if (positions.empty()) {
    for (int32_t i = 0; i < length; ++i) positions.push_back(i);
  }
  const int64_t row_bytes =
      kScoreRowBytes + (request.logits() ? int64_t{4} * model.config.vocab_size : 0);
  const int64_t bytes = row_bytes * static_cast<int64_t>(positions.size());
  const int64_t max_bytes = std::min(kMaxScoreBytes, max_unread_bytes);
  if (bytes > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the answer for ", positions.size(), " positions takes up to ", bytes,
                     " bytes, but at most ", max_bytes, " are answered: name fewer positions"));
  }
  for (const int32_t position : positions) {
    const int32_t target = position + 1 < length ? job.prompt[position + 1] : -1;
    if (target >= 0 || request.logits()) job.scored.push_back({position, target, request.logits()});
  }
  job.mask_ids_without_token = false;
  job.expanded_length = SequenceSpec::ExpandedLength(length);
  switch (request.path()) {
    case v1::SCORE_PATH_AS_REQUEST:
      break;
    case v1::SCORE_PATH_PREFILL:
      job.expanded_length = length;
      break;
    case v1::SCORE_PATH_DECODE:
      job.expanded_length = 0;
      job.max_rows_per_batch = 1;
      break;
    case v1::SCORE_PATH_CHUNK:
      if (request.chunk_tokens() == 0) {
        return absl::InvalidArgumentError("chunk_tokens is 0, but must be at least 1");
      }
      job.max_rows_per_batch =
          static_cast<int32_t>(std::min<uint32_t>(request.chunk_tokens(), INT32_MAX));
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("path ", request.path(), " is unknown"));
  }
  return valid;
}

}  // namespace tandem
