// A request once it is nothing but token ids: what the scheduler and the step driver know of it.
#ifndef TANDEM_GATEWAY_JOB_H_
#define TANDEM_GATEWAY_JOB_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/pages.h"
#include "common/request_tag.h"
#include "common/sampling_params.h"
#include "common/transport/attention_link.h"

namespace tandem {

using JobId = uint64_t;  // never reused within a gateway's life

inline constexpr int32_t kMaxPriority = 1000;

// A row whose log-probability or logits a Score request wants.
struct ScoredRow {
  int32_t position = 0;
  int32_t target = -1;  // the next id, whose log-probability is wanted; -1: none
  bool logits = false;
};

// Validated: ids in the vocabulary, 1 <= prompt + max_new_tokens <= context.
struct Job {
  std::vector<int32_t> prompt;
  int32_t expanded_length = 0;  // this and the next as in SequenceSpec
  std::vector<PageRange> absorbed_pages;
  int32_t max_new_tokens = 0;     // 0: only score
  bool may_be_shorter = false;    // if no cache can hold so many: nobody asked for them
  std::vector<int32_t> eos_ids;   // end-of-sequence ids; empty: ignore them
  std::vector<int32_t> stop_ids;  // other ids that end the job
  SamplingParams sampling;
  bool mask_ids_without_token = true;
  int32_t top_logprobs = 0;        // of each token; at most kMaxTopLogProbs
  std::vector<ScoredRow> scored;   // ascending by position; all below prompt.size()
  int32_t max_rows_per_batch = 0;  // of the prompt; 0: the scheduler's policy
  int32_t priority = 0;            // lower goes first; in [-kMaxPriority, kMaxPriority]
  absl::Time deadline = absl::InfiniteFuture();
  RequestTag tag;
};

enum class JobEnd : uint8_t {
  kEos,
  kLength,
  kStop,  // one of stop_ids, or StepDriver::Finish
  kScored,
  kFailed,
};

struct DrawnToken {
  int32_t id = 0;
  float log_prob = 0.0f;
  std::vector<TokenLogProb> top;  // as many as the job wants, or as there are candidates
};

// Receives what becomes of a job. Calls come one at a time from the driver's thread and must not
// block; they may call StepDriver::Cancel and StepDriver::Finish.
class JobSink {
 public:
  virtual ~JobSink() = default;
  // The job left the queue and its first rows were sent to an attention worker, which had the
  // first `cached_tokens` of its prompt in the cache; once.
  virtual void OnAdmitted(int32_t cached_tokens) = 0;
  // In the order of positions. `logits` is empty unless wanted.
  virtual void OnScored(const ScoredRow& row, float log_prob, std::vector<float> logits) = 0;
  // An id that ends the job is not reported.
  virtual void OnToken(const DrawnToken& token) = 0;
  // Last, exactly once per submitted job, also after Cancel and Finish. `status` is OK unless `end`
  // is kFailed:
  //   CANCELLED, DEADLINE_EXCEEDED
  //   UNAVAILABLE         no worker within the limit, or draining
  //   RESOURCE_EXHAUSTED  longer than any worker's cache
  //   INTERNAL            a NaN in the logits, or a worker's answer is not one to what was asked
  virtual void OnEnd(JobEnd end, absl::Status status) = 0;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_JOB_H_
