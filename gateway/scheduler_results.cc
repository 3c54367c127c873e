// The scheduler's half that takes what workers answer.
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/scheduler.h"

namespace tandem {
namespace {

constexpr int kMaxFailures = 5;                // UNAVAILABLE answers to a step without any progress
constexpr int64_t kMaxStepUs = 3'600'000'000;  // that is believed: an hour

}  // namespace

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
  const bool unavailable = absl::IsUnavailable(result.status);
  bool progress = false;
  if (result.status.ok() || unavailable) {
    absl::Status status = TakeProgress(result, &sent.step, &progress);
    if (!status.ok()) result.status = std::move(status);
  }
  if (result.status.ok()) NamePages(&worker, sent.step);
  if (result.status.ok()) Learn(&worker, sent, result.busy_us);
  // Scores first: a token may end the job.
  for (RowResult& row : result.rows) {
    if (row.kind != RowOutputKind::kSample) TakeRow(&worker, std::move(row), &events);
  }
  for (RowResult& row : result.rows) {
    if (row.kind == RowOutputKind::kSample) TakeRow(&worker, std::move(row), &events);
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

void Scheduler::Learn(Worker* worker, const SentStep& sent, int64_t busy_us) {
  const std::optional<Worker::GroupStep> before =
      std::exchange(worker->last_group_step, std::nullopt);
  if (!sent.shape.has_value()) return;
  if (!sent.group.has_value()) return worker->costs.Learn(*sent.shape, busy_us);
  // Steps of two groups overlap, so that each by itself says little: two of them, one after the
  // other, are what all rows take.
  worker->last_group_step = {*sent.group, sent.shape->decode, busy_us};
  if (!before.has_value() || before->group == *sent.group) return;
  StepShape both;
  both.decode.rows = before->shape.rows + sent.shape->decode.rows;
  both.decode.context = before->shape.context + sent.shape->decode.context;
  worker->costs.Learn(both, before->busy_us + busy_us);
}

void Scheduler::NamePages(Worker* worker, const Step& step) {
  if (!policy_.prefix_caching) return;
  for (const Advance& advance : step.advance) {
    const auto batch = worker->batches.find(advance.batch);
    if (advance.end_layer < worker->info.num_layers || batch == worker->batches.end()) continue;
    for (const JobRows& rows : batch->second.rows) {
      if (rows.job == 0) continue;
      JobState& job = jobs_.at(rows.job);
      const int64_t full = rows.end_row / kPageTokens;
      const absl::Span<const PageName> names = PageNames(&job, full);
      for (; job.named < full; ++job.named) {
        worker->book.SetName(job.pages[job.named], names[job.named]);
      }
      ReleaseFollowers(&job);
    }
  }
}

void Scheduler::TakeRow(Worker* worker, RowResult row, std::vector<SchedulerEvent>* events) {
  const auto it = worker->sequences.find(row.sequence);
  if (it == worker->sequences.end()) return;  // ended or moved meanwhile
  JobState& job = jobs_.at(it->second);
  if (absl::Status status = CheckRow(*worker, job, row); !status.ok()) {
    worker->book.Forget(job.pages);
    Fail(&job, std::move(status), events);
    return;
  }
  if (row.kind == RowOutputKind::kSample) {
    ReportScores(&job, row.position + 1, events);
    TakeToken(&job, std::move(row), events);
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
      if (row.top.size() > static_cast<size_t>(job.job.top_logprobs)) {
        return wrong("answered ", row.top.size(), " of the most probable tokens, not ",
                     job.job.top_logprobs);
      }
      for (const TokenLogProb& top : row.top) {
        if (top.token >= 0 && top.token < vocab_size) continue;
        return wrong("named token ", top.token, ", but the vocabulary is 0 to ", vocab_size - 1);
      }
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

void Scheduler::TakeToken(JobState* job, RowResult row, std::vector<SchedulerEvent>* events) {
  const int64_t index = row.position + 1 - job->prompt_size();
  if (index != static_cast<int64_t>(job->generated.size())) return;  // FinishRows sees what lacks
  const auto is_one_of = [&](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), row.token) != ids.end();
  };
  if (const bool eos = is_one_of(job->job.eos_ids); eos || is_one_of(job->job.stop_ids)) {
    const JobEnd end = eos ? JobEnd::kEos : JobEnd::kStop;
    End(job, end, absl::OkStatus(), Leave::kRelease, events);
    return;
  }
  job->generated.push_back(row.token);
  SchedulerEvent& event = events->emplace_back();
  event.job = job->id;
  event.kind = SchedulerEvent::Kind::kToken;
  event.token = {row.token, row.log_prob, std::move(row.top)};
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
  if (std::exchange(sent.after_failure, false) &&
      (absl::IsFailedPrecondition(status) || absl::IsInvalidArgument(status))) {
    // It may have needed what did not happen, and changed nothing.
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

}  // namespace tandem
