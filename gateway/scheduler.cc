#include "gateway/scheduler.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/pages.h"

namespace tandem {
namespace {

constexpr int kMaxLostWorkers = 5;  // per job

}  // namespace

int64_t Scheduler::JobState::Reserved() const {
  return worker.has_value()
             ? std::max<int64_t>(PagesFor(known) - static_cast<int64_t>(pages.size()), 0)
             : 0;
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
  if (!workers_.try_emplace(worker, info).second) {
    return absl::AlreadyExistsError(absl::StrCat("attention worker ", worker, " is here already"));
  }
  return absl::OkStatus();
}

std::vector<SchedulerEvent> Scheduler::RemoveWorker(WorkerId worker, absl::Time now) {
  std::vector<SchedulerEvent> events;
  const auto it = workers_.find(worker);
  if (it == workers_.end()) return events;
  const std::set<Turn> running = it->second.running;
  for (const auto& [place, id] : running) {
    JobState& job = jobs_.at(id);
    if (job.sequence != 0) ++job.lost_workers;
    Detach(&job, Leave::kWorkerGone);
    if (job.lost_workers < kMaxLostWorkers) continue;
    Fail(&job,
         absl::UnavailableError(
             absl::StrCat("the request lost its attention worker ", job.lost_workers, " times")),
         &events);
  }
  evicted_before_ += it->second.book.num_evicted();
  workers_.erase(it);
  to_vacate_.erase(worker);
  if (workers_.empty()) no_worker_since_ = now;
  return events;
}

void Scheduler::DrainWorker(WorkerId worker, bool move) {
  const auto it = workers_.find(worker);
  if (it == workers_.end()) return;
  it->second.draining = true;
  it->second.moving = it->second.moving || move;
  NoteToVacate(worker, it->second);
}

bool Scheduler::IsDrained(WorkerId worker) const {
  const auto it = workers_.find(worker);
  return it != workers_.end() && it->second.draining && it->second.running.empty();
}

void Scheduler::SetSilent(WorkerId worker, bool silent) {
  const auto it = workers_.find(worker);
  if (it == workers_.end()) return;
  it->second.silent = silent;
  NoteToVacate(worker, it->second);
}

void Scheduler::NoteToVacate(WorkerId id, const Worker& worker) {
  if (worker.moving || worker.silent) {
    to_vacate_.insert(id);
  } else {
    to_vacate_.erase(id);
  }
}

absl::Status Scheduler::Add(JobId id, Job job, absl::Time now, JobId leader) {
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
  state.turn = {static_cast<int64_t>(id) + int64_t{kArrivalsPerPriority} * state.job.priority, id};
  const auto lead = jobs_.find(leader);
  if (lead != jobs_.end() && policy_.prefix_caching && lead->second.named < MostShared(state)) {
    lead->second.followers.push_back(id);
    state.follows = true;
    ++num_following_;
  } else {
    waiting_.insert(state.turn);
  }
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

Scheduler::PageCounts Scheduler::CountPages() const {
  PageCounts counts;
  counts.evicted = evicted_before_;
  for (const auto& [id, worker] : workers_) {
    counts.held += worker.book.num_held();
    counts.cached += worker.book.num_cached();
    counts.evicted += worker.book.num_evicted();
    counts.capacity += worker.book.total_pages();
  }
  return counts;
}

// ---- Where jobs are -----------------------------------------------------------------------------

int64_t Scheduler::MostShared(const JobState& job) {
  int64_t rows = job.KnownTokens() - 1;
  if (job.next_scored < job.job.scored.size()) {
    rows = std::min<int64_t>(rows, job.job.scored[job.next_scored].position);
  }
  return rows / kPageTokens;
}

absl::Span<const PageName> Scheduler::PageNames(JobState* job, int64_t count) {
  std::vector<PageName>& names = job->page_names;
  std::array<int32_t, kPageTokens> tokens;
  while (static_cast<int64_t>(names.size()) < count) {
    const auto page = static_cast<int32_t>(names.size());
    const int32_t first = page * kPageTokens;
    int expanded_rows = 0;
    for (int32_t i = 0; i < kPageTokens; ++i) {
      tokens[i] = job->Token(first + i);
      expanded_rows +=
          IsInExpandedForm(first + i, job->job.expanded_length, job->job.absorbed_pages) ? 1 : 0;
    }
    const auto before = names.empty() ? std::nullopt : std::make_optional(names.back());
    names.push_back(NameOfPage(before, tokens, expanded_rows));
  }
  return absl::MakeConstSpan(names).subspan(0, static_cast<size_t>(count));
}

Scheduler::Seat Scheduler::ChooseSeat(JobState* job) {
  // One page of slack, so that a sequence is not preempted as soon as it begins to decode.
  const int64_t pages = std::min(PagesFor(job->KnownTokens()) + 1, PagesFor(job->EndRow()));
  absl::Span<const PageName> names;
  if (policy_.prefix_caching) names = PageNames(job, MostShared(*job));
  const bool all_drain = std::all_of(workers_.begin(), workers_.end(),
                                     [](const auto& w) { return w.second.draining; });
  Seat best;
  for (auto& [id, worker] : workers_) {
    if (worker.silent || worker.recovering) continue;
    // What was preempted where all are to end goes on as long as it can.
    if (worker.draining && !(all_drain && job->admitted)) continue;
    if (static_cast<int>(worker.running.size()) >= policy_.max_running_per_worker) continue;
    const int found = worker.book.CountLeading(names);
    // What others hold as well takes no room.
    const int64_t needed = pages - found + worker.book.CountAvailable(names.subspan(0, found));
    if (worker.available_pages() < needed) continue;
    if (best.worker != nullptr &&
        std::make_pair(int64_t{found}, worker.available_pages()) <=
            std::make_pair(int64_t{best.shared}, best.worker->available_pages())) {
      continue;
    }
    best = {&worker, id, found};
  }
  return best;
}

void Scheduler::Place(JobState* job, const Seat& seat) {
  Worker& worker = *seat.worker;
  waiting_.erase(job->turn);
  job->worker = seat.id;
  job->known = job->KnownTokens();
  for (int page = 0; page < seat.shared; ++page) {
    job->pages.push_back(worker.book.Share(job->page_names[page]));
  }
  job->named = seat.shared;
  job->shared = job->planned = kPageTokens * int64_t{seat.shared};
  prefix_queries_ += job->known;
  prefix_hits_ += job->shared;
  worker.running.insert(job->turn);
  worker.reserved_pages += job->Reserved();
  ReleaseFollowers(job);
}

void Scheduler::ReleaseFollowers(JobState* job) {
  // Where they score nothing they can share what this job could, if it did not either.
  if (!job->followers.empty() && job->named >= (job->prompt_size() - 1) / kPageTokens) {
    EndLead(job);
  }
}

void Scheduler::EndLead(JobState* job) {
  for (const JobId id : std::exchange(job->followers, {})) {
    const auto it = jobs_.find(id);
    if (it == jobs_.end() || !std::exchange(it->second.follows, false)) continue;
    --num_following_;
    waiting_.insert(it->second.turn);
  }
}

// Oldest first, as far as others have room.
void Scheduler::MoveAway() {
  for (const WorkerId from : to_vacate_) {
    const std::set<Turn> running = workers_.at(from).running;
    for (const auto& [place, id] : running) {
      JobState& job = jobs_.at(id);
      const Seat seat = ChooseSeat(&job);
      if (seat.worker == nullptr || seat.worker->draining) break;
      Detach(&job, Leave::kCancel);
      Place(&job, seat);
      ++moves_;
    }
  }
}

void Scheduler::Admit(std::vector<SchedulerEvent>* events) {
  if (workers_.empty()) return;
  MoveAway();
  if (waiting_.empty()) return;  // it is asked for every worker after each change
  int64_t most_pages = 0;
  for (const auto& [id, worker] : workers_) {
    most_pages = std::max<int64_t>(most_pages, worker.info.total_pages);
  }
  while (!waiting_.empty()) {
    JobState& job = jobs_.at(waiting_.begin()->job);
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
    const Seat seat = ChooseSeat(&job);
    if (seat.worker == nullptr) return;
    Place(&job, seat);
  }
}

void Scheduler::Detach(JobState* job, Leave how) {
  if (!job->worker.has_value()) return;
  Worker& worker = workers_.at(*job->worker);
  worker.reserved_pages -= job->Reserved();
  worker.book.GiveBack(job->pages);
  worker.running.erase(job->turn);
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
  job->known = job->shared = job->planned = job->named = 0;
  job->pages.clear();
  job->batch = 0;
  job->group.reset();
  waiting_.insert(job->turn);
}

void Scheduler::Preempt(JobState* job) {
  Detach(job, Leave::kCancel);
  ++preemptions_;
}

void Scheduler::End(JobState* job, JobEnd end, absl::Status status, Leave how,
                    std::vector<SchedulerEvent>* events) {
  Detach(job, how);
  EndLead(job);
  if (job->follows) --num_following_;
  SchedulerEvent& event = events->emplace_back();
  event.job = job->id;
  event.end = end;
  event.status = std::move(status);
  deadlines_.erase({job->job.deadline, job->id});
  waiting_.erase(job->turn);
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
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    JobState& job = it++->second;
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
  for (const auto& [id, job] : jobs_) next = std::min(next, EndOfWait(job));
  return next;
}

}  // namespace tandem
