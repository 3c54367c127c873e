#include "gateway/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/pages.h"

namespace tandem {
namespace {

constexpr int kMaxLostWorkers = 5;  // per job

}  // namespace

int64_t Scheduler::JobState::Reserved() const {
  return worker.has_value() ? std::max<int64_t>(PagesFor(known) - pages, 0) : 0;
}

Scheduler::Scheduler(SchedulerPolicy policy) : policy_(policy), random_(policy.test_seed) {}

int64_t Scheduler::Draw(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
}

absl::Status CheckWorkerInfo(WorkerId worker, const AttentionWorkerInfo& info) {
  if (info.num_layers >= 1 && info.total_pages >= 1 && info.vocab_size >= 1) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "attention worker ", worker, " says that it has ", info.num_layers, " layers, ",
      info.total_pages, " pages and ", info.vocab_size, " token ids; each must be at least 1"));
}

absl::Status Scheduler::AddWorker(WorkerId worker, const AttentionWorkerInfo& info) {
  if (absl::Status status = CheckWorkerInfo(worker, info); !status.ok()) return status;
  const auto [it, is_new] = workers_.try_emplace(worker);
  if (!is_new) {
    return absl::AlreadyExistsError(absl::StrCat("attention worker ", worker, " is here already"));
  }
  it->second.info = info;
  it->second.free_pages = info.total_pages;
  return absl::OkStatus();
}

std::vector<SchedulerEvent> Scheduler::RemoveWorker(WorkerId worker, absl::Time now) {
  std::vector<SchedulerEvent> events;
  const auto it = workers_.find(worker);
  if (it == workers_.end()) return events;
  const std::set<JobId> running = it->second.running;
  for (const JobId id : running) {
    JobState& job = jobs_.at(id);
    if (job.sequence != 0) ++job.lost_workers;
    Detach(&job, Leave::kWorkerGone);
    if (job.lost_workers < kMaxLostWorkers) continue;
    Fail(&job,
         absl::UnavailableError(
             absl::StrCat("the request lost its attention worker ", job.lost_workers, " times")),
         &events);
  }
  workers_.erase(it);
  if (workers_.empty()) no_worker_since_ = now;
  return events;
}

absl::Status Scheduler::Add(JobId id, Job job, absl::Time now) {
  if (num_waiting() >= policy_.max_waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", policy_.max_waiting, " requests wait already"));
  }
  TANDEM_CHECK(jobs_.empty() || jobs_.rbegin()->first < id);
  JobState& state = jobs_[id];
  state.id = id;
  state.job = std::move(job);
  state.added = now;
  state.scores.resize(state.job.scored.size());
  waiting_.insert(id);
  if (state.job.deadline != absl::InfiniteFuture()) deadlines_.emplace(state.job.deadline, id);
  return absl::OkStatus();
}

std::vector<SchedulerEvent> Scheduler::Cancel(JobId id) {
  std::vector<SchedulerEvent> events;
  const auto it = jobs_.find(id);
  if (it != jobs_.end())
    Fail(&it->second, absl::CancelledError("the request was cancelled"), &events);
  return events;
}

std::vector<SchedulerEvent> Scheduler::Finish(JobId id) {
  std::vector<SchedulerEvent> events;
  const auto it = jobs_.find(id);
  if (it != jobs_.end()) {
    End(&it->second, JobEnd::kStop, absl::OkStatus(), Leave::kCancel, &events);
  }
  return events;
}

int Scheduler::num_outstanding_steps() const {
  size_t steps = 0;
  for (const auto& [id, worker] : workers_) steps += worker.outstanding.size();
  return static_cast<int>(steps);
}

int Scheduler::DecodeGroups(const Worker& worker) const {
  return policy_.decode_groups != 0 ? policy_.decode_groups : worker.decode_groups.groups();
}

int Scheduler::decode_groups() const {
  int groups = 0;
  for (const auto& [id, worker] : workers_) groups = std::max(groups, DecodeGroups(worker));
  return groups;
}

// ---- Where jobs are -----------------------------------------------------------------------------

Scheduler::Worker* Scheduler::ChooseWorker(int64_t pages, WorkerId* id) {
  Worker* best = nullptr;
  const auto available = [](const Worker& w) { return w.free_pages - w.reserved_pages; };
  for (auto& [worker_id, worker] : workers_) {
    if (worker.recovering || available(worker) < pages) continue;
    if (static_cast<int>(worker.running.size()) >= policy_.max_running_per_worker) continue;
    if (best != nullptr && available(worker) <= available(*best)) continue;
    best = &worker;
    *id = worker_id;
  }
  return best;
}

void Scheduler::Admit(std::vector<SchedulerEvent>* events) {
  if (workers_.empty()) return;
  int64_t most_pages = 0;
  for (const auto& [id, worker] : workers_) {
    most_pages = std::max<int64_t>(most_pages, worker.info.total_pages);
  }
  while (!waiting_.empty()) {
    JobState& job = jobs_.at(*waiting_.begin());
    if (job.job.may_be_shorter) {
      const int64_t room =
          most_pages * kPageTokens - job.prompt_size() + 1;  // the last is not kept
      job.job.max_new_tokens = static_cast<int32_t>(std::clamp<int64_t>(
          room, static_cast<int64_t>(job.generated.size()) + 1, job.job.max_new_tokens));
    }
    const int64_t tokens = job.EndRow();
    if (PagesFor(tokens) > most_pages) {
      Fail(&job,
           absl::ResourceExhaustedError(absl::StrCat(
               job.job.max_new_tokens > 1 ? "the prompt and max_tokens keep " : "the prompt keeps ",
               tokens, " tokens in the cache, which take ", PagesFor(tokens),
               " pages of it, but no attention worker has more than ", most_pages)),
           events);
      continue;
    }
    // One page of slack, so that a sequence is not preempted as soon as it begins to decode.
    const int64_t pages = std::min(PagesFor(job.KnownTokens()) + 1, PagesFor(tokens));
    WorkerId id = 0;
    Worker* const worker = ChooseWorker(pages, &id);
    if (worker == nullptr) return;
    waiting_.erase(waiting_.begin());
    job.worker = id;
    job.known = job.KnownTokens();
    worker->running.insert(job.id);
    worker->reserved_pages += job.Reserved();
  }
}

void Scheduler::Detach(JobState* job, Leave how) {
  if (!job->worker.has_value()) return;
  Worker& worker = workers_.at(*job->worker);
  worker.reserved_pages -= job->Reserved();
  worker.free_pages += job->pages;
  worker.running.erase(job->id);
  if (job->sequence != 0) {
    worker.sequences.erase(job->sequence);
    if (how == Leave::kCancel) worker.cancels.push_back(job->sequence);
    if (how == Leave::kRelease) worker.releases.push_back(job->sequence);
  }
  for (auto it = worker.batches.begin(); it != worker.batches.end();) {
    Batch& batch = it->second;
    for (JobRows& rows : batch.rows) {
      if (rows.job != job->id) continue;
      rows.job = 0;
      --batch.num_live;
    }
    it = batch.num_live == 0 ? worker.batches.erase(it) : std::next(it);
  }
  for (size_t i = job->next_scored; i < job->scores.size(); ++i) job->scores[i] = {};
  job->worker.reset();
  job->sequence = 0;
  job->known = job->planned = job->pages = 0;
  job->batch = 0;
  job->group.reset();
  waiting_.insert(job->id);
}

void Scheduler::Preempt(JobState* job) {
  Detach(job, Leave::kCancel);
  ++preemptions_;
}

void Scheduler::End(JobState* job, JobEnd end, absl::Status status, Leave how,
                    std::vector<SchedulerEvent>* events) {
  Detach(job, how);
  SchedulerEvent& event = events->emplace_back();
  event.job = job->id;
  event.end = end;
  event.status = std::move(status);
  deadlines_.erase({job->job.deadline, job->id});
  waiting_.erase(job->id);
  jobs_.erase(job->id);
}

// ---- Time ---------------------------------------------------------------------------------------

absl::Time Scheduler::EndOfWait(const JobState& job) const {
  return std::max(job.added, no_worker_since_) + policy_.max_wait_without_worker;
}

std::vector<SchedulerEvent> Scheduler::Expire(absl::Time now) {
  std::vector<SchedulerEvent> events;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Fail(&jobs_.at(deadlines_.begin()->second),
         absl::DeadlineExceededError("the request's deadline has passed"), &events);
  }
  if (!workers_.empty()) return events;
  const std::vector<JobId> waiting(waiting_.begin(), waiting_.end());
  for (const JobId id : waiting) {
    JobState& job = jobs_.at(id);
    if (EndOfWait(job) > now) continue;
    Fail(
        &job,
        absl::UnavailableError(absl::StrCat("no attention worker was there for ",
                                            absl::FormatDuration(policy_.max_wait_without_worker))),
        &events);
  }
  return events;
}

absl::Time Scheduler::NextDeadline() const {
  absl::Time next = deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
  if (!workers_.empty()) return next;
  for (const JobId id : waiting_) next = std::min(next, EndOfWait(jobs_.at(id)));
  return next;
}

}  // namespace tandem
