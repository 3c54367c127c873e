#include "common/transport/attention_proto.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/transport/expert_frame.h"

namespace tandem {
namespace {

static_assert(std::endian::native == std::endian::little, "logits travel as little-endian f32");

v1::RowOutputKind KindToProto(RowOutputKind kind) { return static_cast<v1::RowOutputKind>(kind); }
static_assert(static_cast<int>(RowOutputKind::kSample) == v1::ROW_OUTPUT_KIND_SAMPLE);
static_assert(static_cast<int>(RowOutputKind::kLogProb) == v1::ROW_OUTPUT_KIND_LOG_PROB);
static_assert(static_cast<int>(RowOutputKind::kLogits) == v1::ROW_OUTPUT_KIND_LOGITS);

std::optional<RowOutputKind> KindFromProto(v1::RowOutputKind kind) {
  switch (kind) {
    case v1::ROW_OUTPUT_KIND_SAMPLE:
    case v1::ROW_OUTPUT_KIND_LOG_PROB:
    case v1::ROW_OUTPUT_KIND_LOGITS:
      return static_cast<RowOutputKind>(kind);
    default:
      return std::nullopt;
  }
}

void ToProto(const SamplingParams& sampling, v1::OpenSequence* out) {
  out->set_min_tokens(sampling.min_tokens);
  out->mutable_end_ids()->Add(sampling.end_ids.begin(), sampling.end_ids.end());
  for (const LogitBias& bias : sampling.logit_bias) {
    out->add_bias_ids(bias.id);
    out->add_biases(bias.bias);
  }
  out->set_repetition_penalty(sampling.repetition_penalty);
  out->set_frequency_penalty(sampling.frequency_penalty);
  out->set_presence_penalty(sampling.presence_penalty);
  out->set_temperature(sampling.temperature);
  out->set_min_p(sampling.min_p);
  out->set_top_k(sampling.top_k);
  out->set_top_p(sampling.top_p);
  out->set_seed(sampling.seed);
  out->set_choice(sampling.choice);
}

SamplingParams SamplingFromProto(const v1::OpenSequence& spec) {
  SamplingParams out;
  out.min_tokens = spec.min_tokens();
  out.end_ids.assign(spec.end_ids().begin(), spec.end_ids().end());
  for (int i = 0; i < std::min(spec.bias_ids_size(), spec.biases_size()); ++i) {
    out.logit_bias.push_back({spec.bias_ids(i), spec.biases(i)});
  }
  if (spec.has_repetition_penalty()) out.repetition_penalty = spec.repetition_penalty();
  out.frequency_penalty = spec.frequency_penalty();
  out.presence_penalty = spec.presence_penalty();
  out.temperature = spec.temperature();
  out.min_p = spec.min_p();
  out.top_k = spec.top_k();
  out.top_p = spec.top_p();
  out.seed = spec.seed();
  out.choice = spec.choice();
  return out;
}

}  // namespace

void ToProto(const SequenceSpec& spec, v1::OpenSequence* out) {
  out->set_sequence(spec.sequence);
  out->mutable_token_ids()->Add(spec.token_ids.begin(), spec.token_ids.end());
  out->set_expanded_length(spec.expanded_length);
  out->set_num_prompt_tokens(spec.num_prompt_tokens);
  ToProto(spec.sampling, out);
  out->set_mask_ids_without_token(spec.mask_ids_without_token);
  out->set_top_logprobs(spec.top_logprobs);
  for (const PageRange& range : spec.absorbed_pages) {
    v1::PageRange* r = out->add_absorbed_pages();
    r->set_first(range.first);
    r->set_end(range.end);
  }
  out->mutable_pages()->Add(spec.pages.begin(), spec.pages.end());
  out->set_request_id(spec.tag.request_id);
  out->set_traceparent(spec.tag.traceparent);
  out->set_tracestate(spec.tag.tracestate);
}

SequenceSpec FromProto(const v1::OpenSequence& spec) {
  SequenceSpec out;
  out.sequence = spec.sequence();
  out.token_ids.assign(spec.token_ids().begin(), spec.token_ids().end());
  out.expanded_length = spec.expanded_length();
  out.num_prompt_tokens = spec.num_prompt_tokens();
  out.sampling = SamplingFromProto(spec);
  out.mask_ids_without_token = spec.mask_ids_without_token();
  out.top_logprobs = spec.top_logprobs();
  for (const v1::PageRange& range : spec.absorbed_pages()) {
    out.absorbed_pages.push_back({range.first(), range.end()});
  }
  out.pages.assign(spec.pages().begin(), spec.pages().end());
  out.tag = Sanitized({spec.request_id(), spec.traceparent(), spec.tracestate()});
  return out;
}

void ToProto(const Step& step, v1::Step* out) {
  out->set_step(step.step);
  for (const NewBatch& batch : step.new_batches) {
    v1::NewBatch* b = out->add_new_batches();
    b->set_batch(batch.batch);
    for (const RowRun& run : batch.runs) {
      v1::RowRun* r = b->add_runs();
      r->set_sequence(run.sequence);
      r->set_first_position(run.first_position);
      r->set_count(run.count);
      r->set_last_sampled(run.last_sampled);
    }
    for (const RowOutput& output : batch.outputs) {
      v1::RowOutput* o = b->add_outputs();
      o->set_row(output.row);
      o->set_kind(KindToProto(output.kind));
      o->set_target(output.target);
    }
    b->mutable_pages()->Add(batch.pages.begin(), batch.pages.end());
  }
  for (const Advance& advance : step.advance) {
    v1::Advance* a = out->add_advance();
    a->set_batch(advance.batch);
    a->set_first_layer(advance.first_layer);
    a->set_end_layer(advance.end_layer);
  }
}

absl::StatusOr<Step> FromProto(const v1::Step& step) {
  Step out;
  out.step = step.step();
  for (const v1::NewBatch& batch : step.new_batches()) {
    NewBatch& b = out.new_batches.emplace_back();
    b.batch = batch.batch();
    for (const v1::RowRun& run : batch.runs()) {
      b.runs.push_back({run.sequence(), run.first_position(), run.count(), run.last_sampled()});
    }
    for (const v1::RowOutput& output : batch.outputs()) {
      const std::optional<RowOutputKind> kind = KindFromProto(output.kind());
      if (!kind.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("row ", output.row(), " of batch ", batch.batch(),
                         " wants an output of the unknown kind ", static_cast<int>(output.kind())));
      }
      b.outputs.push_back({output.row(), *kind, output.target()});
    }
    b.pages.assign(batch.pages().begin(), batch.pages().end());
  }
  for (const v1::Advance& advance : step.advance()) {
    out.advance.push_back({advance.batch(), advance.first_layer(), advance.end_layer()});
  }
  return out;
}

void ToProto(const StepResult& result, v1::StepResult* out) {
  out->set_step(result.step);
  out->set_status_code(static_cast<int32_t>(result.status.code()));
  out->set_status_message(PrintableMessage(result.status.message()));
  for (const RowResult& row : result.rows) {
    v1::RowResult* r = out->add_rows();
    r->set_sequence(row.sequence);
    r->set_position(row.position);
    r->set_kind(KindToProto(row.kind));
    r->set_token(row.token);
    r->set_log_prob(row.log_prob);
    r->set_logits(row.logits.data(), row.logits.size() * sizeof(float));
    for (const TokenLogProb& top : row.top) {
      r->add_top_tokens(top.token);
      r->add_top_log_probs(top.log_prob);
    }
  }
  for (const BatchProgress& batch : result.batches) {
    v1::BatchProgress* b = out->add_batches();
    b->set_batch(batch.batch);
    b->set_next_layer(batch.next_layer);
  }
  out->set_busy_us(result.busy_us);
  out->set_wait_us(result.wait_us);
}

absl::StatusOr<StepResult> FromProto(const v1::StepResult& result) {
  StepResult out;
  out.step = result.step();
  if (result.status_code() < 0 ||
      result.status_code() > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
    return absl::DataLossError(absl::StrCat("step ", result.step(),
                                            " was answered with the unknown status code ",
                                            result.status_code()));
  }
  out.status =
      absl::Status(static_cast<absl::StatusCode>(result.status_code()), result.status_message());
  for (const v1::RowResult& row : result.rows()) {
    const std::optional<RowOutputKind> kind = KindFromProto(row.kind());
    if (!kind.has_value() || row.logits().size() % sizeof(float) != 0 ||
        row.top_tokens_size() != row.top_log_probs_size()) {
      return absl::DataLossError(absl::StrCat("a row of step ", result.step(), " is malformed"));
    }
    RowResult& r = out.rows.emplace_back();
    r.sequence = row.sequence();
    r.position = row.position();
    r.kind = *kind;
    r.token = row.token();
    r.log_prob = row.log_prob();
    r.logits.resize(row.logits().size() / sizeof(float));
    if (!r.logits.empty()) {
      std::memcpy(r.logits.data(), row.logits().data(), row.logits().size());
    }
    for (int i = 0; i < row.top_tokens_size(); ++i) {
      r.top.push_back({row.top_tokens(i), row.top_log_probs(i)});
    }
  }
  for (const v1::BatchProgress& batch : result.batches()) {
    out.batches.push_back({batch.batch(), batch.next_layer()});
  }
  out.busy_us = result.busy_us();
  out.wait_us = result.wait_us();
  return out;
}

void ToProto(const AttentionWorkerInfo& info, v1::AttentionWelcome* out) {
  out->set_num_layers(info.num_layers);
  out->set_total_pages(info.total_pages);
  out->set_vocab_size(info.vocab_size);
}

AttentionWorkerInfo FromProto(const v1::AttentionWelcome& info) {
  return {info.num_layers(), info.total_pages(), info.vocab_size()};
}

}  // namespace tandem
