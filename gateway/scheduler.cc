#include "gateway/scheduler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/pages.h"

namespace tandem {
namespace {

constexpr int kMaxFailures = 5;                // UNAVAILABLE answers to a step without any progress
constexpr int kMaxLostWorkers = 5;             // per job
constexpr int64_t kMaxStepUs = 3'600'000'000;  // that is believed: an hour
constexpr int kMaxTestPreemptions = 3;         // per job, so that every test ends

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
    const int64_t tokens = job.prompt_size() + job.job.max_new_tokens;
    if (PagesFor(tokens) > most_pages) {
      Fail(&job,
           absl::ResourceExhaustedError(absl::StrCat(
               "the prompt and max_new_tokens come to ", tokens, " tokens, which take ",
               PagesFor(tokens), " pages of the cache, but no attention worker has more than ",
               most_pages)),
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

// ---- Planning -----------------------------------------------------------------------------------

WorkerOrders Scheduler::NextStep(WorkerId worker_id) {
  WorkerOrders orders;
  const auto it = workers_.find(worker_id);
  if (it != workers_.end()) DropDeadRepeats(&it->second);
  Admit(&orders.events);
  if (it == workers_.end()) return orders;
  Worker& worker = it->second;
  if (worker.outstanding.size() < AttentionLink::kMaxOutstandingSteps) {
    if (policy_.test_seed != 0) MaybeTestPreempt(&worker);
    if (worker.recovering) {
      RepeatStep(&worker, &orders);
    } else {
      PlanStep(&worker, &orders);
    }
  }
  orders.cancels = std::exchange(worker.cancels, {});
  orders.releases = std::exchange(worker.releases, {});
  return orders;
}

void Scheduler::SendStep(Worker* worker, SentStep sent, WorkerOrders* orders) {
  sent.step.step = worker->next_step++;
  orders->step = sent.step;
  worker->outstanding.push_back(std::move(sent));
}

void Scheduler::DropDeadRepeats(Worker* worker) {
  const auto is_dead = [worker](const auto& of) { return !worker->batches.contains(of.batch); };
  for (SentStep& sent : worker->repeats) {
    std::erase_if(sent.step.new_batches, is_dead);
    std::erase_if(sent.step.advance, is_dead);
  }
  std::erase_if(worker->repeats, [](const SentStep& sent) { return sent.step.advance.empty(); });
  if (worker->repeats.empty() && worker->outstanding.empty()) worker->recovering = false;
}

void Scheduler::RepeatStep(Worker* worker, WorkerOrders* orders) {
  DropDeadRepeats(worker);
  if (worker->repeats.empty()) return;
  for (const SentStep& sent : worker->outstanding) {
    if (sent.after_failure) return;  // it may have to be repeated as well
  }
  SentStep sent = std::move(worker->repeats.front());
  worker->repeats.pop_front();
  sent.decode_rows = 0;  // what is left of it says nothing of how long a whole step takes
  SendStep(worker, std::move(sent), orders);
}

void Scheduler::MaybeTestPreempt(Worker* worker) {
  if (worker->running.empty() || Draw(1, 20) > 1) return;
  std::vector<JobState*> candidates;
  for (const JobId id : worker->running) {
    JobState& job = jobs_.at(id);
    if (job.batch == 0 || job.test_preemptions >= kMaxTestPreemptions) continue;
    if (worker->batches.at(job.batch).next_layer > 0) candidates.push_back(&job);
  }
  if (candidates.empty()) return;
  JobState* const job = candidates[Draw(0, static_cast<int64_t>(candidates.size()) - 1)];
  ++job->test_preemptions;
  Preempt(job);
}

void Scheduler::PlanStep(Worker* worker, WorkerOrders* orders) {
  // Decode rows come first, since they may preempt; what exists advances last, when it is known
  // what is still alive.
  SentStep sent;
  sent.group = ChooseGroup(worker);
  PlanDecode(worker, sent.group, orders, &sent.step.new_batches);
  if (!sent.group.has_value()) PlanPrefill(worker, orders, &sent.step.new_batches);
  PlanAdvances(worker, &sent.step);
  if (sent.step.advance.empty()) return;
  for (const Advance& advance : sent.step.advance) {
    const Batch& batch = worker->batches.at(advance.batch);
    if (!batch.decode) {
      sent.decode_rows = 0;
      break;
    }
    sent.decode_rows += static_cast<int>(batch.rows.size());
  }
  worker->last_group = sent.group.value_or(worker->last_group);
  SendStep(worker, std::move(sent), orders);
}

std::optional<int> Scheduler::ChooseGroup(Worker* worker) {
  const int groups = policy_.test_seed != 0 ? static_cast<int>(Draw(1, 2)) : DecodeGroups(*worker);
  if (groups < 2) return std::nullopt;
  for (const auto& [id, batch] : worker->batches) {
    if (!batch.decode || batch.next_layer < worker->info.num_layers) return std::nullopt;
  }
  std::array<std::vector<JobState*>, 2> members;  // oldest first
  for (const JobId id : worker->running) {
    JobState& job = jobs_.at(id);
    if (job.PrefillReady()) return std::nullopt;
    if (!job.DecodeReady()) continue;
    if (!job.group.has_value()) job.group = members[0].size() <= members[1].size() ? 0 : 1;
    members[*job.group].push_back(&job);
  }
  if (members[0].size() + members[1].size() < 2) return std::nullopt;

  // A job of the group that is outstanding stays: its next row would wait for that step.
  std::optional<int> busy;
  if (!worker->outstanding.empty()) busy = worker->outstanding.front().group;
  const int larger = members[0].size() >= members[1].size() ? 0 : 1;
  while (busy != larger && members[larger].size() > members[1 - larger].size() + 1) {
    JobState* const job = members[larger].back();
    members[larger].pop_back();
    job->group = 1 - larger;
    members[1 - larger].push_back(job);
  }
  return 1 - busy.value_or(worker->last_group);
}

void Scheduler::PlanDecode(Worker* worker, std::optional<int> group, WorkerOrders* orders,
                           std::vector<NewBatch>* batches) {
  NewBatch batch;
  const std::vector<JobId> oldest_first(worker->running.begin(), worker->running.end());
  for (const JobId id : oldest_first) {
    if (!worker->running.contains(id)) break;  // preempted, as are all younger ones
    JobState& job = jobs_.at(id);
    if (!job.DecodeReady() || (group.has_value() && job.group != group)) continue;
    const int64_t missing = PagesFor(job.planned + 1) - job.pages;
    while (job.worker.has_value() && worker->free_pages - worker->reserved_pages < missing) {
      Preempt(&jobs_.at(*worker->running.rbegin()));
    }
    if (!job.worker.has_value()) break;
    if (batch.batch == 0) batch.batch = next_batch_++;
    PutRows(worker, &job, 1, &batch, orders);
  }
  if (batch.batch == 0) return;
  worker->batches.at(batch.batch).decode = true;
  batches->push_back(std::move(batch));
}

void Scheduler::PlanPrefill(Worker* worker, WorkerOrders* orders, std::vector<NewBatch>* batches) {
  int64_t budget = std::max(policy_.max_batch_rows, 1);
  NewBatch batch;
  for (const JobId id : worker->running) {
    if (budget == 0) break;
    JobState& job = jobs_.at(id);
    if (!job.PrefillReady()) continue;
    int64_t count = std::min(job.known - job.planned, budget);
    if (job.job.max_rows_per_batch > 0) {
      count = std::min<int64_t>(count, job.job.max_rows_per_batch);
    }
    if (policy_.test_seed != 0) {
      count = Draw(1, count);
      if (batch.batch != 0 && Draw(0, 1) == 1) batches->push_back(std::exchange(batch, {}));
    }
    if (batch.batch == 0) batch.batch = next_batch_++;
    PutRows(worker, &job, count, &batch, orders);
    budget -= count;
  }
  if (batch.batch != 0) batches->push_back(std::move(batch));
}

void Scheduler::PutRows(Worker* worker, JobState* job, int64_t count, NewBatch* batch,
                        WorkerOrders* orders) {
  if (job->sequence == 0) {
    job->sequence = next_sequence_++;
    worker->sequences[job->sequence] = job->id;
    orders->opens.push_back(MakeSpec(*job));
    if (!job->admitted) {
      job->admitted = true;
      SchedulerEvent& event = orders->events.emplace_back();
      event.job = job->id;
      event.kind = SchedulerEvent::Kind::kAdmitted;
    }
  }
  const int64_t end = job->planned + count;
  int32_t row = 0;  // within the batch
  for (const RowRun& run : batch->runs) row += run.count;
  batch->runs.push_back({.sequence = job->sequence,
                         .first_position = static_cast<int32_t>(job->planned),
                         .count = static_cast<int32_t>(count),
                         .last_sampled = job->planned >= job->known});
  size_t scored = job->next_scored;
  for (int64_t position = job->planned; position < end; ++position, ++row) {
    for (; scored < job->job.scored.size() && job->job.scored[scored].position <= position;
         ++scored) {
      const ScoredRow& wanted = job->job.scored[scored];
      if (wanted.position < position) continue;
      if (wanted.target >= 0) {
        batch->outputs.push_back({row, RowOutputKind::kLogProb, wanted.target});
      }
      if (wanted.logits) batch->outputs.push_back({row, RowOutputKind::kLogits, 0});
    }
    const bool draws = position + 1 >= job->known && job->job.max_new_tokens > 0;
    if (draws) batch->outputs.push_back({row, RowOutputKind::kSample, 0});
  }

  worker->reserved_pages -= job->Reserved();
  worker->free_pages -= PagesFor(end) - job->pages;
  job->pages = PagesFor(end);
  worker->reserved_pages += job->Reserved();
  TANDEM_CHECK(worker->free_pages >= worker->reserved_pages);
  job->planned = end;
  job->batch = batch->batch;
  Batch& known_batch = worker->batches[batch->batch];
  known_batch.rows.push_back({job->id, end});
  ++known_batch.num_live;
}

SequenceSpec Scheduler::MakeSpec(const JobState& job) const {
  SequenceSpec spec;
  spec.sequence = job.sequence;
  spec.token_ids = job.job.prompt;
  spec.token_ids.insert(spec.token_ids.end(), job.generated.begin(), job.generated.end());
  spec.expanded_length = job.job.expanded_length;
  spec.sampling = job.job.sampling;
  spec.mask_ids_without_token = job.job.mask_ids_without_token;
  return spec;
}

void Scheduler::PlanAdvances(Worker* worker, Step* step) {
  const int32_t num_layers = worker->info.num_layers;
  for (auto& [id, batch] : worker->batches) {
    if (batch.next_layer == num_layers) continue;  // in a step that is outstanding
    int32_t end = num_layers;
    if (policy_.test_seed != 0) {
      end = static_cast<int32_t>(Draw(batch.next_layer + 1, num_layers));
    } else if (!batch.decode && policy_.max_layers_per_step > 0) {
      end = std::min(num_layers, batch.next_layer + policy_.max_layers_per_step);
    }
    step->advance.push_back({id, batch.next_layer, end});
    batch.next_layer = end;
    if (end < num_layers) continue;
    for (const JobRows& rows : batch.rows) {
      if (rows.job != 0) jobs_.at(rows.job).batch = 0;
    }
  }
}

// ---- Results ------------------------------------------------------------------------------------

std::vector<SchedulerEvent> Scheduler::OnStepDone(WorkerId worker_id, StepResult result) {
  std::vector<SchedulerEvent> events;
  const auto it = workers_.find(worker_id);
  if (it == workers_.end() || it->second.outstanding.empty()) return events;
  Worker& worker = it->second;
  SentStep sent = std::move(worker.outstanding.front());
  worker.outstanding.pop_front();
  if (result.step != sent.step.step) {
    result.status = absl::InternalError(
        absl::StrCat("step ", result.step, " was answered, not step ", sent.step.step));
    result.rows.clear();
  }
  result.busy_us = std::clamp<int64_t>(result.busy_us, 0, kMaxStepUs);
  result.wait_us = std::clamp<int64_t>(result.wait_us, 0, result.busy_us);
  busy_us_ += result.busy_us;
  wait_us_ += result.wait_us;
  if (result.status.ok() && sent.decode_rows > 0) {
    worker.decode_groups.OnStep(sent.group.has_value() ? 2 : 1, sent.decode_rows, result.busy_us,
                                result.wait_us);
  }
  // Scores first: a token may end the job.
  for (RowResult& row : result.rows) {
    if (row.kind != RowOutputKind::kSample) TakeRow(&worker, std::move(row), &events);
  }
  for (RowResult& row : result.rows) {
    if (row.kind == RowOutputKind::kSample) TakeRow(&worker, std::move(row), &events);
  }
  const bool unavailable = absl::IsUnavailable(result.status);
  bool progress = false;
  if (result.status.ok() || unavailable) {
    absl::Status status = TakeProgress(result, &sent.step, &progress);
    if (!status.ok()) result.status = std::move(status);
  }
  if (!result.status.ok() && !absl::IsUnavailable(result.status)) {
    TakeRefusal(worker_id, std::move(sent), result.status, &events);
    return events;
  }
  for (const Advance& advance : sent.step.advance) {
    if (advance.first_layer == worker.info.num_layers) FinishBatch(&worker, advance.batch, &events);
  }
  if (unavailable) {
    sent.failures = progress ? 1 : sent.failures + 1;
    TakeUnavailable(&worker, std::move(sent), result.status, &events);
  }
  return events;
}

absl::Status Scheduler::TakeProgress(const StepResult& result, Step* step, bool* progress) {
  std::vector<Advance> advances = step->advance;
  for (const BatchProgress& batch : result.batches) {
    const auto it = std::find_if(advances.begin(), advances.end(),
                                 [&](const Advance& a) { return a.batch == batch.batch; });
    if (it == advances.end()) {
      return absl::InternalError(absl::StrCat("it says where batch ", batch.batch,
                                              " stands, which the step does not advance"));
    }
    if (batch.next_layer < it->first_layer || batch.next_layer > it->end_layer) {
      return absl::InternalError(absl::StrCat(
          "it says that batch ", batch.batch, " stands before layer ", batch.next_layer,
          ", but the step takes it from layer ", it->first_layer, " to ", it->end_layer));
    }
    *progress = *progress || batch.next_layer > it->first_layer;
    it->first_layer = batch.next_layer;
  }
  step->advance = std::move(advances);
  if (!result.status.ok()) return absl::OkStatus();
  for (Advance& advance : step->advance) advance.first_layer = advance.end_layer;
  return absl::OkStatus();
}

void Scheduler::TakeRow(Worker* worker, RowResult row, std::vector<SchedulerEvent>* events) {
  const auto it = worker->sequences.find(row.sequence);
  if (it == worker->sequences.end()) return;  // ended or moved meanwhile
  JobState& job = jobs_.at(it->second);
  if (absl::Status status = CheckRow(*worker, job, row); !status.ok()) {
    Fail(&job, std::move(status), events);
    return;
  }
  if (row.kind == RowOutputKind::kSample) {
    ReportScores(&job, row.position + 1, events);
    TakeToken(&job, row, events);
  } else {
    TakeScore(&job, std::move(row));
  }
}

absl::Status Scheduler::CheckRow(const Worker& worker, const JobState& job, const RowResult& row) {
  const auto wrong = [&](const auto&... what) {
    return absl::InternalError(absl::StrCat("attention worker ", *job.worker, " ", what...));
  };
  if (row.position < 0 || row.position >= job.planned) {
    return wrong("answered position ", row.position, " of a sequence that has rows 0 to ",
                 job.planned - 1);
  }
  const int32_t vocab_size = worker.info.vocab_size;
  switch (row.kind) {
    case RowOutputKind::kSample:
      if (row.token >= vocab_size) {
        return wrong("drew token ", row.token, ", but the vocabulary is 0 to ", vocab_size - 1);
      }
      if (row.token < 0) return absl::InternalError("the logits held a NaN");
      break;
    case RowOutputKind::kLogProb:
      if (std::isnan(row.log_prob)) return absl::InternalError("the logits held a NaN");
      break;
    case RowOutputKind::kLogits:
      if (row.logits.size() != static_cast<size_t>(vocab_size)) {
        return wrong("answered ", row.logits.size(), " logits, but the vocabulary has ", vocab_size,
                     " ids");
      }
      break;
  }
  return absl::OkStatus();
}

void Scheduler::TakeScore(JobState* job, RowResult row) {
  for (size_t i = job->next_scored; i < job->scores.size(); ++i) {
    const ScoredRow& wanted = job->job.scored[i];
    PartialScore& score = job->scores[i];
    if (wanted.position != row.position) continue;
    if (row.kind == RowOutputKind::kLogits && wanted.logits && !score.logits.has_value()) {
      score.logits = std::move(row.logits);
      return;
    }
    if (row.kind == RowOutputKind::kLogProb && wanted.target == row.token &&
        !score.log_prob.has_value()) {
      score.log_prob = row.log_prob;
      return;
    }
  }
}

void Scheduler::ReportScores(JobState* job, int64_t end_row, std::vector<SchedulerEvent>* events) {
  for (; job->next_scored < job->scores.size(); ++job->next_scored) {
    const ScoredRow& wanted = job->job.scored[job->next_scored];
    PartialScore& score = job->scores[job->next_scored];
    if (wanted.position >= end_row) return;
    if (wanted.target >= 0 && !score.log_prob.has_value()) return;
    if (wanted.logits && !score.logits.has_value()) return;
    SchedulerEvent& event = events->emplace_back();
    event.job = job->id;
    event.kind = SchedulerEvent::Kind::kScored;
    event.row = wanted;
    event.log_prob = score.log_prob.value_or(0.0f);
    if (score.logits.has_value()) event.logits = *std::move(score.logits);
    score = {};
  }
}

void Scheduler::TakeToken(JobState* job, const RowResult& row,
                          std::vector<SchedulerEvent>* events) {
  const int64_t index = row.position + 1 - job->prompt_size();
  if (index != static_cast<int64_t>(job->generated.size())) return;  // FinishRows sees what lacks
  const std::vector<int32_t>& stops = job->job.stop_ids;
  if (std::find(stops.begin(), stops.end(), row.token) != stops.end()) {
    End(job, JobEnd::kEos, absl::OkStatus(), Leave::kRelease, events);
    return;
  }
  job->generated.push_back(row.token);
  SchedulerEvent& event = events->emplace_back();
  event.job = job->id;
  event.kind = SchedulerEvent::Kind::kToken;
  event.token = row.token;
  event.log_prob = row.log_prob;
  if (static_cast<int64_t>(job->generated.size()) >= job->job.max_new_tokens) {
    End(job, JobEnd::kLength, absl::OkStatus(), Leave::kRelease, events);
  }
}

void Scheduler::FinishBatch(Worker* worker, BatchId id, std::vector<SchedulerEvent>* events) {
  const auto it = worker->batches.find(id);
  if (it == worker->batches.end()) return;  // all of its rows are dead
  const Batch batch = std::move(it->second);
  worker->batches.erase(it);
  for (const JobRows& rows : batch.rows) {
    if (rows.job != 0) FinishRows(&jobs_.at(rows.job), rows.end_row, events);
  }
}

void Scheduler::FinishRows(JobState* job, int64_t end_row, std::vector<SchedulerEvent>* events) {
  ReportScores(job, end_row, events);
  const bool lacks_score =
      job->next_scored < job->scores.size() && job->job.scored[job->next_scored].position < end_row;
  const bool lacks_token =
      job->job.max_new_tokens > 0 && end_row >= job->known && job->KnownTokens() <= end_row;
  if (lacks_score || lacks_token) {
    Fail(
        job,
        absl::InternalError(absl::StrCat("attention worker ", *job->worker,
                                         " left out a result at or before position ", end_row - 1)),
        events);
  } else if (job->job.max_new_tokens == 0 && end_row == job->prompt_size()) {
    End(job, JobEnd::kScored, absl::OkStatus(), Leave::kRelease, events);
  }
}

void Scheduler::TakeUnavailable(Worker* worker, SentStep sent, const absl::Status& status,
                                std::vector<SchedulerEvent>* events) {
  BeginRecovery(worker);
  if (sent.failures >= kMaxFailures) return FailJobsOf(worker, sent.step, status, events);
  // The worker knows the new batches by now.
  sent.step.new_batches.clear();
  std::erase_if(sent.step.advance, [](const Advance& a) { return a.first_layer == a.end_layer; });
  if (std::exchange(sent.after_failure, false)) {
    worker->repeats.push_back(std::move(sent));
  } else {
    worker->repeats.push_front(std::move(sent));  // what is there already was sent after it
  }
}

void Scheduler::TakeRefusal(WorkerId worker_id, SentStep sent, const absl::Status& status,
                            std::vector<SchedulerEvent>* events) {
  Worker& worker = workers_.at(worker_id);
  BeginRecovery(&worker);
  if (absl::IsFailedPrecondition(status) && std::exchange(sent.after_failure, false)) {
    // It needed what did not happen, and changed nothing.
    worker.repeats.push_back(std::move(sent));
    return;
  }
  FailJobsOf(&worker, sent.step,
             absl::InternalError(absl::StrCat("attention worker ", worker_id, ", step ",
                                              sent.step.step, ": ", status.message())),
             events);
}

void Scheduler::FailJobsOf(Worker* worker, const Step& step, const absl::Status& status,
                           std::vector<SchedulerEvent>* events) {
  std::set<JobId> hit;
  for (const Advance& advance : step.advance) {
    const auto it = worker->batches.find(advance.batch);
    if (it == worker->batches.end()) continue;
    for (const JobRows& rows : it->second.rows) {
      if (rows.job != 0) hit.insert(rows.job);
    }
  }
  for (const JobId id : hit) Fail(&jobs_.at(id), status, events);
}

void Scheduler::BeginRecovery(Worker* worker) {
  worker->recovering = true;
  for (SentStep& sent : worker->outstanding) sent.after_failure = true;
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
