// Carries the scheduler's steps to the attention workers and their results back to requests.
#ifndef TANDEM_GATEWAY_STEP_DRIVER_H_
#define TANDEM_GATEWAY_STEP_DRIVER_H_

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/placement.h"
#include "common/transport/attention_link.h"
#include "gateway/job.h"
#include "gateway/scheduler.h"

namespace tandem {

// Makes a session with an attention worker that reports to `observer`. May block for a moment,
// never forever.
using AttentionLinkFactory = std::function<absl::StatusOr<std::unique_ptr<AttentionLink>>(
    AttentionLink::Observer* observer)>;

// A job, and who is to hear of it.
struct SubmittedJob {
  Job job;
  std::shared_ptr<JobSink> sink;  // kept until its OnEnd has returned
};

// When it is worth while to submit a job again that was refused with this status; none if it does
// not say so.
std::optional<absl::Duration> RetryAfter(const absl::Status& refused);

// One thread owns the scheduler; everything else reaches it through a queue. Thread-safe.
class StepDriver {
 public:
  explicit StepDriver(SchedulerPolicy policy);
  // Fails what still runs with UNAVAILABLE.
  ~StepDriver();

  // Takes jobs of one prompt and deadline, the choices of one request: at least one, all or none.
  // The first has the id that is returned, the others those behind it; they share its prompt's
  // pages.
  //   RESOURCE_EXHAUSTED  as many jobs wait as may, their prompts take as much memory as they may, or
  //                       these would still wait when their deadline passes; the sentence names the
  //                       limit, and RetryAfter says when to come again
  //   UNAVAILABLE         draining
  absl::StatusOr<JobId> Submit(std::vector<SubmittedJob> choices);
  absl::StatusOr<JobId> Submit(Job job, std::shared_ptr<JobSink> sink);
  // Ends a job with CANCELLED; unknown and ended ones are ignored.
  void Cancel(JobId job);
  // Ends a job that has all that it wanted, with JobEnd::kStop and OK; likewise.
  void Finish(JobId job);

  // A worker's sequences move to the others, by re-prefill, when its link goes down or it is
  // removed.
  absl::Status AddWorker(WorkerId worker, const AttentionLinkFactory& make_link);
  void RemoveWorker(WorkerId worker);
  // It gets no new sequences; with `move`, those that it has go to others as these have room. May
  // be said again.
  void DrainWorker(WorkerId worker, bool move);
  // Whether a worker that drains has nothing to do any more.
  bool IsDrained(WorkerId worker) const;
  // False as well once its link went down.
  bool HasWorker(WorkerId worker) const;
  int num_workers() const;

  // No new jobs. True once nothing runs any more. After `grace` what still runs fails with
  // UNAVAILABLE, all links are destroyed, and the answer is false: the driver has ended.
  bool Drain(absl::Duration grace);

  // jobs_total, jobs_waiting, jobs_running, tokens_generated_total, prompt_tokens_total,
  // steps_total, steps_outstanding, preemptions_total, moves_total, worker_busy_us_total,
  // worker_wait_us_total (sums over the steps' results), decode_groups (the most of any worker),
  // prefix_cache_queries_total and prefix_cache_hits_total (tokens, Scheduler::prefix_queries),
  // prefill_rows_total, prefill_layers_total (Scheduler::prefill_rows),
  // pages_capacity, pages_held, pages_cached, pages_evicted_total (over all workers,
  // Scheduler::PageCounts)
  CounterSnapshot Counters() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_STEP_DRIVER_H_
