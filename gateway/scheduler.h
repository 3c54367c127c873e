// Decides which rows run next on which attention worker, and how far through the layers each goes.
// A pure state machine: no clock, thread, device or I/O.
#ifndef TANDEM_GATEWAY_SCHEDULER_H_
#define TANDEM_GATEWAY_SCHEDULER_H_

#include <algorithm>
#include <cmath>
#include <compare>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/placement.h"
#include "common/transport/attention_link.h"
#include "gateway/decode_groups.h"
#include "gateway/job.h"
#include "gateway/page_book.h"
#include "gateway/step_costs.h"

namespace tandem {

struct SchedulerPolicy {
  int max_waiting = 1024;
  int64_t max_prompt_tokens = int64_t{1} << 25;  // of all jobs that are here; 128 MiB of ids
  int max_running_per_worker = 64;
  int max_batch_rows = 2048;    // rows of prefill that are put into new batches in one step
  int max_layers_per_step = 0;  // that a prefill batch goes at most; 0: all
  // How long a step that decodes may take with prefill beside it, as a multiple of what its decode
  // rows take alone: prefill gets as many rows and layers as fit. Where more prompts wait than
  // sequences decode, what is above 1 counts once per prompt and sequence. 0: as many as there are.
  double prefill_step_target = 1.5;
  // In how many groups of sequences, whose steps alternate, a worker decodes: 1 or 2; 0: as its
  // steps' times show to be faster (DecodeGroupChooser).
  int decode_groups = 0;
  bool prefix_caching = true;  // pages are kept for other sequences that begin alike
  // Not 0: layer ranges, chunk sizes, decode groups and preemptions are drawn from this seed, for
  // tests. Results must not depend on it.
  uint64_t test_seed = 0;
  absl::Duration max_wait_without_worker = absl::Seconds(60);
};

// What became of a job, in the order in which its JobSink is to hear of it.
struct SchedulerEvent {
  enum class Kind : uint8_t { kAdmitted, kScored, kToken, kDone };
  JobId job = 0;
  Kind kind = Kind::kDone;
  ScoredRow row;              // kScored
  std::vector<float> logits;  // kScored
  float log_prob = 0.0f;      // kScored
  DrawnToken token;           // kToken
  int32_t cached_tokens = 0;  // kAdmitted
  JobEnd end = JobEnd::kFailed;
  absl::Status status;  // kDone
};

// What to tell a worker, in this order: cancels, releases, opens, step.
struct WorkerOrders {
  std::vector<SequenceId> cancels;
  std::vector<SequenceId> releases;
  std::vector<SequenceSpec> opens;
  std::optional<Step> step;
  // Of any job, not only of this worker's.
  std::vector<SchedulerEvent> events;

  // Whether asking again, here or for another worker, could give something new.
  bool changed_something() const { return step.has_value() || !cancels.empty() || !events.empty(); }
};

// INVALID_ARGUMENT unless the worker has a layer, a page and a vocabulary.
absl::Status CheckWorkerInfo(WorkerId worker, const AttentionWorkerInfo& info);

// Not thread-safe. Calls cost O(jobs of the worker) at most, plus the size of what they return.
//
// Jobs have their turn in the order in which they came, but each lower priority counts as having
// come kArrivalsPerPriority jobs earlier: so it goes first, and still nothing waits forever.
//
// A sequence stays on one worker until it ends, is preempted or loses its worker; then it waits
// again, before all whose turn is later, and is prefilled anew with what was generated. Pages are
// dealt out here (PageBook): a page when the first row in it is put into a batch, given back by
// cancel or release. So a worker never runs out of pages; if a decode row needs one and none is
// left, the worker's last sequence in turn is preempted. The first one always advances.
//
// A page that has been through the last layer is named by its tokens, all before them and their
// forms. A sequence whose first pages have the same names shares them instead of computing them; it
// goes to the worker that has most of them, then to the one with most pages left. The row of its
// last token, and rows that are scored, are always computed.
//
// Of jobs that are to share their prompt's pages from the start, the choices of one request, the
// first is the leader: the others wait until it has them, and then compute what is behind them, at
// most one page of rows each.
//
// After UNAVAILABLE nothing is lost at the worker: once it has answered all that was sent, the
// steps that did not come to their end are sent again from where their batches stand, and no new
// rows are planned until they have succeeded. A step that is answered so kMaxFailures times without
// any progress fails its jobs with that status.
//
// A worker that drains or is silent gets no new sequences. Those that it has move, by a new
// prefill, to workers that have room, at once or when they are told to; where there is none they
// stay.
//
// A prefill batch is as many rows as may be, of one prompt or several, since in each layer the
// weights are read once for all of its rows. While others decode, it has as many as can pass one
// layer in the time that is left for them (SchedulerPolicy::prefill_step_target, StepCosts), at
// least kLeastPrefillRows and one per kContextPerLeastRow positions before them, whose keys and
// values are expanded once more for each such slice, and passes as many layers per step as fit, at
// least one. After kMostMixedSteps such steps there is one without prefill, which shows what decode
// rows take alone.
//
// With two decode groups a step takes one group's rows while the other group's step is outstanding,
// so that the worker can run one's attention while the other waits for its experts. While there is
// prefill, all rows go together.
class Scheduler {
 public:
  static constexpr int kLeastPrefillRows = 64;
  static constexpr int kContextPerLeastRow = 8;
  static constexpr int kMostMixedSteps = 16;
  static constexpr int kArrivalsPerPriority = 1000;

  explicit Scheduler(SchedulerPolicy policy);

  // ALREADY_EXISTS, or as CheckWorkerInfo.
  absl::Status AddWorker(WorkerId worker, const AttentionWorkerInfo& info);
  // Its sequences wait for another worker; one that has lost its worker time and again fails with
  // UNAVAILABLE, since it may be what they die of. The link must be destroyed; results that were
  // under way are ignored.
  std::vector<SchedulerEvent> RemoveWorker(WorkerId worker, absl::Time now);

  // `worker` is to end: it gets no sequence that it did not have before, unless it is the only one
  // left. `move`: those that it has go to others as these have room. Again is allowed; unknown
  // workers are ignored.
  void DrainWorker(WorkerId worker, bool move);
  // Whether a worker that drains has no sequence any more, and gets none.
  bool IsDrained(WorkerId worker) const;
  // `worker` says nothing, or does so again: as long as it is silent, its sequences go to others.
  void SetSilent(WorkerId worker, bool silent);

  // Requires ids that grow. RESOURCE_EXHAUSTED: as many jobs wait as may.
  // `leader`: a job with the same prompt, if it is still here: this one waits until that has
  // computed the pages that both can share, or has ended; other jobs pass it meanwhile.
  absl::Status Add(JobId id, Job job, absl::Time now, JobId leader = 0);
  // Ends a job with CANCELLED. Unknown and ended jobs are ignored.
  std::vector<SchedulerEvent> Cancel(JobId id);
  // Ends a job that has all that it wanted, with kStop and OK. Likewise.
  std::vector<SchedulerEvent> Finish(JobId id);

  // What to tell `worker` now; may be asked at any time, and is to be asked for every worker after
  // each change, until no worker's orders changed anything. Gives no step while
  // AttentionLink::kMaxOutstandingSteps are outstanding. A second step is planned on the assumption
  // that the first one succeeds.
  WorkerOrders NextStep(WorkerId worker);
  // Results of one worker come in the order of its steps. What a worker answers is not trusted: a
  // position beyond the rows that it was sent, or a token that is none, fails the job with
  // INTERNAL; a batch where it cannot be, all jobs of the step.
  std::vector<SchedulerEvent> OnStepDone(WorkerId worker, StepResult result);

  // Ends jobs whose time is up: their own deadline, or the wait while there is no worker at all.
  std::vector<SchedulerEvent> Expire(absl::Time now);
  // When Expire has something to do at the earliest; InfiniteFuture: never.
  absl::Time NextDeadline() const;

  int num_waiting() const { return static_cast<int>(waiting_.size()) + num_following_; }
  // Of those who wait, the choices that wait for their request's prompt and stand in no queue.
  int num_following() const { return num_following_; }
  int num_running() const { return static_cast<int>(jobs_.size()) - num_waiting(); }
  int num_outstanding_steps() const;
  int64_t preemptions() const { return preemptions_; }
  int64_t moves() const { return moves_; }  // of sequences, away from workers that were there
  // Sums of what the steps' results said.
  int64_t busy_us() const { return busy_us_; }
  int64_t wait_us() const { return wait_us_; }
  // The most that a worker is to decode in; 0: there is no worker.
  int decode_groups() const;
  // Pages of `worker` that no sequence holds, cached ones included.
  int free_pages(WorkerId worker) const { return workers_.at(worker).book.num_available(); }
  // Over all workers that are here, and all that were.
  struct PageCounts {
    int64_t held = 0;    // by sequences
    int64_t cached = 0;  // by none, but kept
    int64_t evicted = 0;
    int64_t capacity = 0;  // held, cached or free, of the workers that are here
  };
  PageCounts CountPages() const;
  // Tokens of sequences that were given to a worker (again, after a preemption), and how many of
  // them it had in the cache.
  int64_t prefix_queries() const { return prefix_queries_; }
  int64_t prefix_hits() const { return prefix_hits_; }
  // Rows of prefill batches so far, and layers that these batches were to pass: in each the
  // experts' weights are read at most once for all rows of the batch.
  int64_t prefill_rows() const { return prefill_rows_; }
  int64_t prefill_layers() const { return prefill_layers_; }

 private:
  // What arrived for one entry of Job::scored.
  struct PartialScore {
    std::optional<float> log_prob;
    std::optional<std::vector<float>> logits;
  };

  // Whose turn it is first.
  struct Turn {
    int64_t place = 0;
    JobId job = 0;
    auto operator<=>(const Turn&) const = default;
  };

  struct JobState {
    JobId id = 0;
    Job job;
    Turn turn;
    absl::Time added;
    std::vector<int32_t> generated;
    size_t next_scored = 0;            // job.scored[0, next_scored) are reported
    std::vector<PartialScore> scores;  // parallel to job.scored
    std::vector<PageName> page_names;  // of the first pages, as far as anybody asked
    std::vector<JobId> followers;      // that wait for its prompt; some may have ended
    bool follows = false;              // it waits so, and is in no queue
    bool admitted = false;
    int test_preemptions = 0;
    int lost_workers = 0;  // while it had rows there

    // While it is on a worker.
    std::optional<WorkerId> worker;
    SequenceId sequence = 0;     // 0: not opened yet
    int64_t known = 0;           // tokens in the spec; rows from there on are last_sampled
    int64_t shared = 0;          // rows that were in the cache
    int64_t planned = 0;         // rows that are there or were put into batches
    std::vector<int32_t> pages;  // that these rows hold
    int64_t named = 0;         // of these pages, as far as they are full and through the last layer
    BatchId batch = 0;         // that does not reach the last layer in the steps planned so far
    std::optional<int> group;  // 0 or 1, once it decoded in one

    int64_t prompt_size() const { return static_cast<int64_t>(job.prompt.size()); }
    int64_t KnownTokens() const { return prompt_size() + static_cast<int64_t>(generated.size()); }
    // One past the last row that is ever computed: the last token is drawn, not fed back.
    int32_t Token(int64_t position) const {
      return position < prompt_size() ? job.prompt[position] : generated[position - prompt_size()];
    }
    int64_t EndRow() const { return prompt_size() + std::max(job.max_new_tokens - 1, 0); }
    bool PrefillReady() const { return batch == 0 && planned < known; }
    bool DecodeReady() const { return batch == 0 && planned >= known && planned < EndRow(); }
    // Pages that it was promised at admission and has not taken yet.
    int64_t Reserved() const;
  };

  // A batch's rows of one job.
  struct JobRows {
    JobId job = 0;  // 0: dead
    int64_t first_row = 0;
    int64_t end_row = 0;
  };
  struct Batch {
    bool decode = false;
    std::vector<JobRows> rows;
    int num_live = 0;
    int32_t next_layer = 0;  // after all steps planned so far

    PrefillShape LiveShape() const {
      PrefillShape shape;
      for (const JobRows& r : rows) {
        if (r.job != 0) shape.Add(r.first_row, r.end_row - r.first_row);
      }
      return shape;
    }
  };
  // What prefill may take of a step that is being planned.
  struct PrefillBudget {
    double left_us = std::numeric_limits<double>::infinity();
    bool used = false;
    bool limited() const { return !std::isinf(left_us); }
  };
  struct SentStep {
    Step step;
    std::optional<int> group;        // whose decode rows alone it has
    int decode_rows = 0;             // 0 if it has others as well
    int failures = 0;                // UNAVAILABLE answers since it last made progress
    bool after_failure = false;      // sent before it was heard that the one before it failed
    std::optional<StepShape> shape;  // none if it is the rest of a step that failed
  };

  struct Worker {
    explicit Worker(const AttentionWorkerInfo& info_arg)
        : info(info_arg), book(info_arg.total_pages) {}
    int64_t available_pages() const { return book.num_available() - reserved_pages; }

    AttentionWorkerInfo info;
    PageBook book;
    int64_t reserved_pages = 0;  // sum of JobState::Reserved
    std::set<Turn> running;
    absl::flat_hash_map<SequenceId, JobId> sequences;
    std::map<BatchId, Batch> batches;  // until confirmed to be finished, or all dead
    StepId next_step = 1;
    DecodeGroupChooser decode_groups;
    StepCosts costs;
    // Steps with prefill beside decode rows since the last one without.
    int mixed_steps = kMostMixedSteps;
    // The last step that was measured, if it had nothing but decode rows of one group.
    struct GroupStep {
      int group = 0;
      DecodeShape shape;
      int64_t busy_us = 0;
    };
    std::optional<GroupStep> last_group_step;
    int last_group = 0;  // that a step was planned for
    std::deque<SentStep> outstanding;
    std::deque<SentStep> repeats;  // failed steps, to be sent again in this order
    bool draining = false;         // it is to end
    bool moving = false;           // its sequences are to go to others
    bool silent = false;
    bool recovering = false;  // from a failed step until nothing is outstanding or repeated
    std::vector<SequenceId> cancels;
    std::vector<SequenceId> releases;
  };

  enum class Leave : uint8_t { kCancel, kRelease, kWorkerGone };

  void Admit(std::vector<SchedulerEvent>* events);
  // Where a job may run now: null if nowhere. `shared`: how many of its first pages are there
  // already.
  struct Seat {
    Worker* worker = nullptr;
    WorkerId id = 0;
    int shared = 0;
  };
  Seat ChooseSeat(JobState* job);
  void Place(JobState* job, const Seat& seat);
  void NoteToVacate(WorkerId id, const Worker& worker);
  // Sequences of workers that drain or are silent, to others.
  void MoveAway();
  // The names of the job's first `count` pages, whose tokens must be known.
  static absl::Span<const PageName> PageNames(JobState* job, int64_t count);
  // How many of its first pages the job may share: what it wants of a row must be computed.
  static int64_t MostShared(const JobState& job);
  // Lets those that wait for the job's prompt into the queue, once its pages are there.
  void ReleaseFollowers(JobState* job);
  // Lets them in whatever is there.
  void EndLead(JobState* job);
  // Names the pages of the rows that the step has taken through the last layer.
  void NamePages(Worker* worker, const Step& step);
  // Takes a job off its worker and puts it back to waiting; the caller may end it from there.
  void Detach(JobState* job, Leave how);
  void Preempt(JobState* job);
  void End(JobState* job, JobEnd end, absl::Status status, Leave how,
           std::vector<SchedulerEvent>* events);
  void Fail(JobState* job, absl::Status status, std::vector<SchedulerEvent>* events) {
    End(job, JobEnd::kFailed, std::move(status), Leave::kCancel, events);
  }

  void SendStep(Worker* worker, SentStep sent, WorkerOrders* orders);
  void PlanStep(Worker* worker, WorkerOrders* orders);
  int DecodeGroups(const Worker& worker) const;
  // The group whose rows alone the next step is to have, if it is to have one's alone. Gives the
  // jobs that decode their groups.
  std::optional<int> ChooseGroup(Worker* worker);
  void PlanDecode(Worker* worker, std::optional<int> group, WorkerOrders* orders,
                  std::vector<NewBatch>* batches);
  PrefillBudget BudgetFor(const Worker& worker, const DecodeShape& decode) const;
  static void Learn(Worker* worker, const SentStep& sent, int64_t busy_us);
  // Takes batches that exist as far through the layers as they may go, decode batches to the end.
  void PlanAdvances(Worker* worker, bool decode_only, PrefillBudget* budget, SentStep* sent);
  // Makes new batches of prefill and takes them as far as they may go.
  void PlanPrefill(Worker* worker, const std::vector<JobId>& ready, PrefillBudget* budget,
                   WorkerOrders* orders, SentStep* sent);
  // How many rows of a job that is ready for prefill a batch of this shape may get more; 0: none.
  int64_t PrefillRows(const Worker& worker, const JobState& job, const PrefillShape& batch,
                      const PrefillBudget& budget) const;
  void AdvanceBatch(Worker* worker, BatchId id, PrefillBudget* budget, SentStep* sent);
  // Puts rows [planned, planned + count) of `job` into `batch`, opening the sequence if need be.
  void PutRows(Worker* worker, JobState* job, int64_t count, NewBatch* batch, WorkerOrders* orders);
  void MaybeTestPreempt(Worker* worker);
  SequenceSpec MakeSpec(const JobState& job) const;
  // Takes what died meanwhile out of the steps to be repeated.
  void DropDeadRepeats(Worker* worker);
  void RepeatStep(Worker* worker, WorkerOrders* orders);

  void TakeRow(Worker* worker, RowResult row, std::vector<SchedulerEvent>* events);
  // INTERNAL unless `row` can be an answer to what was asked of `job`'s worker.
  static absl::Status CheckRow(const Worker& worker, const JobState& job, const RowResult& row);
  void TakeScore(JobState* job, RowResult row);
  void ReportScores(JobState* job, int64_t end_row, std::vector<SchedulerEvent>* events);
  void TakeToken(JobState* job, RowResult row, std::vector<SchedulerEvent>* events);
  void FinishBatch(Worker* worker, BatchId id, std::vector<SchedulerEvent>* events);
  void FinishRows(JobState* job, int64_t end_row, std::vector<SchedulerEvent>* events);
  // Sets first_layer of each of the step's advances to where its batch stands now, and `progress`
  // if one moved. INTERNAL, and no layer is set, if a batch cannot stand where `result` says.
  static absl::Status TakeProgress(const StepResult& result, Step* step, bool* progress);
  void TakeUnavailable(Worker* worker, SentStep sent, const absl::Status& status,
                       std::vector<SchedulerEvent>* events);
  void TakeRefusal(WorkerId worker, SentStep sent, const absl::Status& status,
                   std::vector<SchedulerEvent>* events);
  void FailJobsOf(Worker* worker, const Step& step, const absl::Status& status,
                  std::vector<SchedulerEvent>* events);
  // After a failed step: what was sent after it may be refused because of it.
  static void BeginRecovery(Worker* worker);

  absl::Time EndOfWait(const JobState& job) const;
  // In [low, high].
  int64_t Draw(int64_t low, int64_t high);

  const SchedulerPolicy policy_;
  std::mt19937_64 random_;
  std::map<JobId, JobState> jobs_;
  std::set<Turn> waiting_;
  int num_following_ = 0;  // jobs that wait for another's prompt, not in waiting_
  std::set<std::pair<absl::Time, JobId>> deadlines_;
  std::map<WorkerId, Worker> workers_;
  std::set<WorkerId> to_vacate_;  // those that are moving or silent
  absl::Time no_worker_since_ = absl::InfinitePast();
  SequenceId next_sequence_ = 1;
  BatchId next_batch_ = 1;
  int64_t preemptions_ = 0;
  int64_t moves_ = 0;
  int64_t busy_us_ = 0;
  int64_t wait_us_ = 0;
  int64_t prefix_queries_ = 0;
  int64_t prefix_hits_ = 0;
  int64_t prefill_rows_ = 0;
  int64_t prefill_layers_ = 0;
  int64_t evicted_before_ = 0;  // by workers that are gone
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_SCHEDULER_H_
