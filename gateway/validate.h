// Turns what a client sent into jobs, or says in one sentence what is wrong with it.
#ifndef TANDEM_GATEWAY_VALIDATE_H_
#define TANDEM_GATEWAY_VALIDATE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gateway/job.h"
#include "gateway/served_model.h"
#include "proto/inference.pb.h"

namespace tandem {

inline constexpr uint32_t kMaxChoices = 16;

struct ValidRequest {
  Job job;  // of choice 0
  uint32_t choices = 1;
  std::vector<std::string> stop;  // none empty
};

// Of the texts in a request, with roles and framing of a chat: what its tokenizing costs goes by
// them. Of ids whose text is asked for, their own.
size_t TextBytes(const v1::GenerateRequest& request);
size_t TextBytes(const v1::ScoreRequest& request);
size_t TextBytes(const v1::TokenizeRequest& request);
size_t TextBytes(const v1::DetokenizeRequest& request);

// Whether the text may fit the context at all, before it is tokenized: no token has more bytes than
// the longest.
//   INVALID_ARGUMENT  it cannot
absl::Status ValidateTextBytes(const v1::GenerateRequest& request, const ServedModel& model);
absl::Status ValidateTextBytes(const v1::ScoreRequest& request, const ServedModel& model);

// All return
//   INVALID_ARGUMENT     the field and its limit
//   NOT_FOUND            another model than the one that is served
//   FAILED_PRECONDITION  text or chat, but the checkpoint has no tokenizer or no known chat
//                        template
//   CANCELLED            `stop` was true while a long text was tokenized
absl::StatusOr<ValidRequest> ValidateGenerate(const v1::GenerateRequest& request,
                                              const ServedModel& model,
                                              const StopFunction& stop = nullptr);
// `max_unread_bytes`: LiveCallLimits', which an answer must keep even if nobody reads it.
absl::StatusOr<ValidRequest> ValidateScore(const v1::ScoreRequest& request,
                                           const ServedModel& model, int64_t max_unread_bytes,
                                           const StopFunction& stop = nullptr);
absl::Status ValidateModelName(const std::string& name, const ServedModel& model);

// The tokenizer, or the sentence that there is none.
absl::StatusOr<const Tokenizer*> NeedTokenizer(const ServedModel& model);

// The defaults as clients see them.
v1::Sampling DefaultsToProto(const SamplingParams& defaults);

std::vector<ChatMessage> ChatFromProto(const v1::Chat& chat);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_VALIDATE_H_
