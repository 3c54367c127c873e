#include "gateway/step_driver.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/types/optional.h"
#include "common/mutex.h"
#include "common/time_after.h"
#include "gateway/queue_pace.h"
#include "spdlog/spdlog.h"

namespace tandem {

namespace {

// A refused job is told to come again when so much of the queue has gone, so that who comes again
// finds room, and the queue does not run empty meanwhile.
constexpr int kPartOfQueue = 4;
constexpr absl::Duration kLeastRetryAfter = absl::Milliseconds(100);
constexpr absl::Duration kMostRetryAfter = absl::Seconds(30);

constexpr absl::string_view kRetryAfterUrl = "tandem/retry-after-ms";

template <typename... Parts>
absl::Status Refused(absl::Duration wait, const Parts&... parts) {
  absl::Status status = absl::ResourceExhaustedError(absl::StrCat(parts...));
  const absl::Duration after = std::clamp(wait / kPartOfQueue, kLeastRetryAfter, kMostRetryAfter);
  status.SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(after))));
  return status;
}

}  // namespace

std::optional<absl::Duration> RetryAfter(const absl::Status& refused) {
  const absl::optional<absl::Cord> payload = refused.GetPayload(kRetryAfterUrl);
  int64_t ms = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &ms)) return std::nullopt;
  return absl::Milliseconds(ms);
}

class StepDriver::Impl {
 public:
  explicit Impl(SchedulerPolicy policy)
      : policy_(policy), scheduler_(policy), thread_([this] { Loop(); }) {}

  ~Impl() {
    {
      MutexLock lock(mutex_);
      draining_ = true;
      stopping_ = true;
    }
    wake_.NotifyAll();
    thread_.join();
  }

  absl::StatusOr<JobId> Submit(std::vector<SubmittedJob> choices);
  void Cancel(JobId job) { Enqueue(CancelJob{job}); }
  void Finish(JobId job) { Enqueue(FinishJob{job}); }
  absl::Status AddWorker(WorkerId worker, const AttentionLinkFactory& make_link);
  void RemoveWorker(WorkerId worker);
  void DrainWorker(WorkerId worker, bool move);
  bool IsDrained(WorkerId worker) const;
  bool HasWorker(WorkerId worker) const;
  int num_workers() const;
  bool Drain(absl::Duration grace);
  CounterSnapshot Counters() const;

 private:
  // One session with a worker; what its callbacks report goes into the queue.
  struct Peer : AttentionLink::Observer, std::enable_shared_from_this<Peer> {
    Peer(Impl* impl_arg, WorkerId id_arg) : impl(impl_arg), id(id_arg) {}
    void OnStepResult(StepResult result) override {
      impl->Enqueue(StepDone{shared_from_this(), std::move(result)});
    }
    void OnSilent(bool silent) override { impl->Enqueue(PeerSilent{shared_from_this(), silent}); }
    void OnDown(absl::Status status) override {
      impl->Enqueue(PeerGone{shared_from_this(), std::move(status)});
    }

    Impl* const impl;
    const WorkerId id;
    // The driver's thread's, once PeerJoined is in the queue.
    std::unique_ptr<AttentionLink> link;
    bool gone = false;
  };

  struct NewJob {
    JobId id;
    Job job;
    std::shared_ptr<JobSink> sink;
    int64_t prompt_tokens;
    JobId leader;
  };
  struct CancelJob {
    JobId id;
  };
  struct FinishJob {
    JobId id;
  };
  struct PeerJoined {
    std::shared_ptr<Peer> peer;
  };
  struct PeerGone {
    std::shared_ptr<Peer> peer;
    absl::Status status;
  };
  struct PeerDrains {
    std::shared_ptr<Peer> peer;
    bool move;
  };
  struct PeerSilent {
    std::shared_ptr<Peer> peer;
    bool silent;
  };
  struct StepDone {
    std::shared_ptr<Peer> peer;
    StepResult result;
  };
  // From AddWorker until the link is destroyed.
  struct Member {
    std::shared_ptr<Peer> peer;
    bool joined = false;
    bool drained = false;
  };
  using Event = std::variant<NewJob, CancelJob, FinishJob, PeerJoined, PeerDrains, PeerSilent,
                             PeerGone, StepDone>;

  void Enqueue(Event event) {
    {
      MutexLock lock(mutex_);
      queue_.push_back(std::move(event));
    }
    wake_.NotifyOne();
  }

  // All below run on the driver's thread, without the mutex.
  void Loop();
  // False: the driver is to end.
  bool WaitForEvents(std::vector<Event>* events);
  void Handle(NewJob event);
  void Handle(CancelJob event) { Deliver(scheduler_.Cancel(event.id)); }
  void Handle(FinishJob event) { Deliver(scheduler_.Finish(event.id)); }
  void Handle(PeerJoined event);
  void Handle(PeerDrains event) { scheduler_.DrainWorker(event.peer->id, event.move); }
  void Handle(PeerSilent event);
  void Handle(PeerGone event);
  void Handle(StepDone event);
  void CloseLink(Peer* peer);
  void SendOrders();
  bool Send(Peer* peer, WorkerOrders orders);
  void Deliver(std::vector<SchedulerEvent> events);
  void EndJob(JobId id, JobEnd end, absl::Status status);
  void EndEverything();
  void Publish(int new_jobs_handled);

  const SchedulerPolicy policy_;

  mutable Mutex mutex_;
  CondVar wake_;   // the driver's thread
  CondVar ended_;  // those who wait for a job's or a peer's end
  std::vector<Event> queue_ ABSL_GUARDED_BY(mutex_);
  std::map<WorkerId, Member> members_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  JobId next_job_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t live_jobs_ ABSL_GUARDED_BY(mutex_) = 0;  // whose OnEnd has not returned
  int64_t live_prompt_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t jobs_on_way_ ABSL_GUARDED_BY(mutex_) = 0;  // submitted, not yet seen by the scheduler
  int64_t jobs_seen_ ABSL_GUARDED_BY(mutex_) = 0;
  QueuePace queue_pace_ ABSL_GUARDED_BY(mutex_);
  // As of the scheduler's last change.
  int64_t jobs_waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t jobs_queued_ ABSL_GUARDED_BY(mutex_) = 0;  // of them, those who do not wait for a prompt
  int64_t jobs_running_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t steps_outstanding_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t preemptions_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t moves_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t busy_us_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t wait_us_ ABSL_GUARDED_BY(mutex_) = 0;
  int decode_groups_ ABSL_GUARDED_BY(mutex_) = 0;
  Scheduler::PageCounts pages_ ABSL_GUARDED_BY(mutex_);
  int64_t prefix_queries_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t prefix_hits_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t prefill_rows_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t prefill_layers_ ABSL_GUARDED_BY(mutex_) = 0;

  std::atomic<int64_t> tokens_generated_ = 0;
  std::atomic<int64_t> prompt_tokens_ = 0;
  std::atomic<int64_t> steps_ = 0;

  // The driver's thread's.
  Scheduler scheduler_;
  std::map<WorkerId, std::shared_ptr<Peer>> peers_;
  struct LiveJob {
    std::shared_ptr<JobSink> sink;
    int64_t prompt_tokens = 0;
  };
  absl::flat_hash_map<JobId, LiveJob> sinks_;

  std::thread thread_;  // last: starts when all above is there
};

// ---- Callers' threads ---------------------------------------------------------------------------

absl::StatusOr<JobId> StepDriver::Impl::Submit(std::vector<SubmittedJob> choices) {
  const auto count = static_cast<int64_t>(choices.size());
  const Job& job = choices.front().job;
  JobId first = 0;
  {
    MutexLock lock(mutex_);
    if (draining_) {
      return absl::UnavailableError("the gateway is shutting down and takes no new requests");
    }
    if (count > policy_.max_waiting) {
      return absl::InvalidArgumentError(absl::StrCat("n is ", count, ", but at most ",
                                                     policy_.max_waiting, " requests may wait"));
    }
    const int64_t waiting = jobs_on_way_ + jobs_waiting_;
    const int64_t queued = jobs_on_way_ + jobs_queued_;
    const absl::Duration wait = queue_pace_.WaitOf(queued);
    if (waiting >= policy_.max_waiting) {
      return Refused(wait, "the queue is full: ", policy_.max_waiting, " requests wait already");
    }
    if (waiting + count > policy_.max_waiting) {
      return Refused(wait, "the queue is full: ", waiting, " requests wait already, and with the ",
                     count, " choices of this one there would be more than ", policy_.max_waiting);
    }
    const auto prompt_tokens = static_cast<int64_t>(job.prompt.size());
    const int64_t tokens = count * prompt_tokens;
    if (live_prompt_tokens_ + tokens > policy_.max_prompt_tokens) {
      return Refused(wait, "the prompts of all requests that are here have ", live_prompt_tokens_,
                     " tokens, and may have ", policy_.max_prompt_tokens, " together");
    }
    if (absl::Now() + wait > job.deadline) {
      return Refused(wait, queued, " requests wait already, the last for about ",
                     absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(1))),
                     " from now, which is longer than this one's deadline allows");
    }
    first = next_job_;
    next_job_ += static_cast<JobId>(count);
    live_jobs_ += count;
    jobs_on_way_ += count;
    prompt_tokens_ += tokens;
    live_prompt_tokens_ += tokens;
    JobId id = first;
    for (SubmittedJob& choice : choices) {
      const JobId leader = id == first ? 0 : first;
      queue_.push_back(
          NewJob{id++, std::move(choice.job), std::move(choice.sink), prompt_tokens, leader});
    }
  }
  wake_.NotifyOne();
  return first;
}

absl::Status StepDriver::Impl::AddWorker(WorkerId worker, const AttentionLinkFactory& make_link) {
  const auto peer = std::make_shared<Peer>(this, worker);
  {
    MutexLock lock(mutex_);
    if (stopping_) return absl::UnavailableError("the gateway is shutting down");
    if (!members_.emplace(worker, Member{peer}).second) {
      return absl::AlreadyExistsError(
          absl::StrCat("attention worker ", worker, " is here already"));
    }
  }
  absl::StatusOr<std::unique_ptr<AttentionLink>> link = make_link(peer.get());
  absl::Status status = link.status();
  if (status.ok()) status = CheckWorkerInfo(worker, (*link)->info());
  {
    MutexLock lock(mutex_);
    if (status.ok() && stopping_) status = absl::UnavailableError("the gateway is shutting down");
    if (status.ok()) {
      peer->link = *std::move(link);
      members_[worker].joined = true;
      queue_.push_back(PeerJoined{peer});
      wake_.NotifyOne();
      return status;
    }
  }
  if (link.ok()) link->reset();
  {
    MutexLock lock(mutex_);
    members_.erase(worker);
  }
  ended_.NotifyAll();
  return status;
}

void StepDriver::Impl::RemoveWorker(WorkerId worker) {
  MutexLock lock(mutex_);
  const auto it = members_.find(worker);
  if (it == members_.end()) return;
  const std::shared_ptr<Peer> peer = it->second.peer;
  queue_.push_back(PeerGone{peer, absl::OkStatus()});
  wake_.NotifyOne();
  ended_.Wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto now = members_.find(worker);
    return now == members_.end() || now->second.peer != peer;
  });
}

void StepDriver::Impl::DrainWorker(WorkerId worker, bool move) {
  {
    MutexLock lock(mutex_);
    const auto it = members_.find(worker);
    if (it == members_.end()) return;
    queue_.push_back(PeerDrains{it->second.peer, move});
  }
  wake_.NotifyOne();
}

bool StepDriver::Impl::IsDrained(WorkerId worker) const {
  MutexLock lock(mutex_);
  const auto it = members_.find(worker);
  return it == members_.end() || it->second.drained;
}

bool StepDriver::Impl::HasWorker(WorkerId worker) const {
  MutexLock lock(mutex_);
  return members_.contains(worker);
}

int StepDriver::Impl::num_workers() const {
  MutexLock lock(mutex_);
  int workers = 0;
  for (const auto& [id, member] : members_) workers += member.joined ? 1 : 0;
  return workers;
}

bool StepDriver::Impl::Drain(absl::Duration grace) {
  const auto deadline = After(std::chrono::steady_clock::now(), grace);
  MutexLock lock(mutex_);
  draining_ = true;
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_jobs_ == 0; };
  if (ended_.WaitUntil(lock, deadline, idle)) return true;
  stopping_ = true;
  wake_.NotifyAll();
  ended_.Wait(lock, idle);
  return false;
}

CounterSnapshot StepDriver::Impl::Counters() const {
  MutexLock lock(mutex_);
  return {{"jobs_total", static_cast<int64_t>(next_job_ - 1)},
          {"jobs_waiting", jobs_on_way_ + jobs_waiting_},
          {"jobs_running", jobs_running_},
          {"tokens_generated_total", tokens_generated_.load()},
          {"prompt_tokens_total", prompt_tokens_.load()},
          {"steps_total", steps_.load()},
          {"steps_outstanding", steps_outstanding_},
          {"preemptions_total", preemptions_},
          {"moves_total", moves_},
          {"worker_busy_us_total", busy_us_},
          {"worker_wait_us_total", wait_us_},
          {"decode_groups", decode_groups_},
          {"prefix_cache_queries_total", prefix_queries_},
          {"prefix_cache_hits_total", prefix_hits_},
          {"prefill_rows_total", prefill_rows_},
          {"prefill_layers_total", prefill_layers_},
          {"pages_capacity", pages_.capacity},
          {"pages_held", pages_.held},
          {"pages_cached", pages_.cached},
          {"pages_evicted_total", pages_.evicted}};
}

// ---- The driver's thread ------------------------------------------------------------------------

void StepDriver::Impl::Loop() {
  std::vector<Event> events;
  while (WaitForEvents(&events)) {
    int new_jobs = 0;
    for (Event& event : events) {
      new_jobs += std::holds_alternative<NewJob>(event) ? 1 : 0;
      std::visit([this](auto& e) { Handle(std::move(e)); }, event);
    }
    Deliver(scheduler_.Expire(absl::Now()));
    SendOrders();
    Publish(new_jobs);
  }
  EndEverything();
}

bool StepDriver::Impl::WaitForEvents(std::vector<Event>* events) {
  events->clear();
  const absl::Time deadline = scheduler_.NextDeadline();
  MutexLock lock(mutex_);
  const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  };
  if (deadline == absl::InfiniteFuture()) {
    wake_.Wait(lock, ready);
  } else {
    wake_.WaitUntil(lock, absl::ToChronoTime(deadline), ready);
  }
  if (stopping_) return false;
  events->swap(queue_);
  return true;
}

void StepDriver::Impl::Handle(NewJob event) {
  sinks_[event.id] = {std::move(event.sink), event.prompt_tokens};
  absl::Status status = scheduler_.Add(event.id, std::move(event.job), absl::Now(), event.leader);
  if (!status.ok()) EndJob(event.id, JobEnd::kFailed, std::move(status));
}

void StepDriver::Impl::Handle(PeerJoined event) {
  Peer& peer = *event.peer;
  absl::Status status = absl::OkStatus();
  if (!peer.gone) status = scheduler_.AddWorker(peer.id, peer.link->info());
  if (!status.ok()) spdlog::error("{}", std::string(status.message()));
  if (peer.gone || !status.ok()) {
    CloseLink(&peer);
  } else {
    peers_[peer.id] = event.peer;
  }
}

void StepDriver::Impl::Handle(PeerSilent event) {
  if (event.peer->gone) return;
  if (event.silent) {
    spdlog::warn("attention worker {} is silent: what it has goes to others", event.peer->id);
  }
  scheduler_.SetSilent(event.peer->id, event.silent);
}

void StepDriver::Impl::Handle(PeerGone event) {
  Peer& peer = *event.peer;
  if (peer.gone) return;
  peer.gone = true;
  if (!event.status.ok()) {
    spdlog::warn("attention worker {} is gone: {}", peer.id, std::string(event.status.message()));
  }
  const auto it = peers_.find(peer.id);
  if (it == peers_.end() || it->second != event.peer) return;  // PeerJoined will see `gone`
  peers_.erase(it);
  std::vector<SchedulerEvent> events = scheduler_.RemoveWorker(peer.id, absl::Now());
  CloseLink(&peer);
  Deliver(std::move(events));
}

void StepDriver::Impl::Handle(StepDone event) {
  if (event.peer->gone) return;
  if (!event.result.status.ok()) {
    spdlog::warn("attention worker {}, step {}: {}", event.peer->id, event.result.step,
                 event.result.status.ToString());
  }
  Deliver(scheduler_.OnStepDone(event.peer->id, std::move(event.result)));
}

void StepDriver::Impl::CloseLink(Peer* peer) {
  peer->link.reset();
  {
    MutexLock lock(mutex_);
    members_.erase(peer->id);
  }
  ended_.NotifyAll();
}

void StepDriver::Impl::SendOrders() {
  bool again = true;
  while (again) {
    again = false;
    for (const auto& [id, peer] : peers_) {
      again = Send(peer.get(), scheduler_.NextStep(id)) || again;
    }
  }
}

bool StepDriver::Impl::Send(Peer* peer, WorkerOrders orders) {
  const bool changed = orders.changed_something();
  for (const SequenceId sequence : orders.cancels) peer->link->Cancel(sequence);
  for (const SequenceId sequence : orders.releases) peer->link->Release(sequence);
  for (SequenceSpec& spec : orders.opens) peer->link->OpenSequence(std::move(spec));
  if (orders.step.has_value()) {
    ++steps_;
    peer->link->Run(*std::move(orders.step));
  }
  Deliver(std::move(orders.events));
  return changed;
}

void StepDriver::Impl::Deliver(std::vector<SchedulerEvent> events) {
  for (SchedulerEvent& event : events) {
    const auto it = sinks_.find(event.job);
    if (it == sinks_.end()) continue;
    switch (event.kind) {
      case SchedulerEvent::Kind::kAdmitted:
        it->second.sink->OnAdmitted(event.cached_tokens);
        break;
      case SchedulerEvent::Kind::kScored:
        it->second.sink->OnScored(event.row, event.log_prob, std::move(event.logits));
        break;
      case SchedulerEvent::Kind::kToken:
        ++tokens_generated_;
        it->second.sink->OnToken(event.token);
        break;
      case SchedulerEvent::Kind::kDone:
        EndJob(event.job, event.end, std::move(event.status));
        break;
    }
  }
}

void StepDriver::Impl::EndJob(JobId id, JobEnd end, absl::Status status) {
  const auto it = sinks_.find(id);
  const LiveJob job = std::move(it->second);
  sinks_.erase(it);
  job.sink->OnEnd(end, std::move(status));
  {
    MutexLock lock(mutex_);
    --live_jobs_;
    live_prompt_tokens_ -= job.prompt_tokens;
  }
  ended_.NotifyAll();
}

void StepDriver::Impl::Publish(int new_jobs_handled) {
  MutexLock lock(mutex_);
  jobs_on_way_ -= new_jobs_handled;
  jobs_seen_ += new_jobs_handled;
  jobs_waiting_ = scheduler_.num_waiting();
  jobs_queued_ = jobs_waiting_ - scheduler_.num_following();
  queue_pace_.Observe(jobs_queued_, jobs_seen_ - jobs_queued_, absl::Now());
  jobs_running_ = scheduler_.num_running();
  steps_outstanding_ = scheduler_.num_outstanding_steps();
  preemptions_ = scheduler_.preemptions();
  moves_ = scheduler_.moves();
  for (auto& [id, member] : members_) member.drained = scheduler_.IsDrained(id);
  busy_us_ = scheduler_.busy_us();
  wait_us_ = scheduler_.wait_us();
  decode_groups_ = scheduler_.decode_groups();
  pages_ = scheduler_.CountPages();
  prefix_queries_ = scheduler_.prefix_queries();
  prefix_hits_ = scheduler_.prefix_hits();
  prefill_rows_ = scheduler_.prefill_rows();
  prefill_layers_ = scheduler_.prefill_layers();
}

void StepDriver::Impl::EndEverything() {
  std::vector<Event> events;
  {
    MutexLock lock(mutex_);
    events.swap(queue_);
  }
  for (Event& event : events) {
    if (auto* job = std::get_if<NewJob>(&event)) {
      sinks_[job->id] = {std::move(job->sink), job->prompt_tokens};
    }
    if (auto* joined = std::get_if<PeerJoined>(&event)) {
      peers_.emplace(joined->peer->id, joined->peer);
    }
  }
  // The links first: their destructors end the work, so that no sink hears of it afterwards.
  for (const auto& [id, peer] : peers_) CloseLink(peer.get());
  peers_.clear();
  std::vector<JobId> jobs;
  for (const auto& [id, job] : sinks_) jobs.push_back(id);
  std::sort(jobs.begin(), jobs.end());
  for (const JobId id : jobs) {
    EndJob(id, JobEnd::kFailed, absl::UnavailableError("the gateway is shutting down"));
  }
}

// ---- StepDriver ---------------------------------------------------------------------------------

StepDriver::StepDriver(SchedulerPolicy policy) : impl_(std::make_unique<Impl>(policy)) {}
StepDriver::~StepDriver() = default;

absl::StatusOr<JobId> StepDriver::Submit(std::vector<SubmittedJob> choices) {
  return impl_->Submit(std::move(choices));
}
absl::StatusOr<JobId> StepDriver::Submit(Job job, std::shared_ptr<JobSink> sink) {
  std::vector<SubmittedJob> one;
  one.push_back({std::move(job), std::move(sink)});
  return impl_->Submit(std::move(one));
}
void StepDriver::Cancel(JobId job) { impl_->Cancel(job); }
void StepDriver::Finish(JobId job) { impl_->Finish(job); }
absl::Status StepDriver::AddWorker(WorkerId worker, const AttentionLinkFactory& make_link) {
  return impl_->AddWorker(worker, make_link);
}
void StepDriver::RemoveWorker(WorkerId worker) { impl_->RemoveWorker(worker); }
void StepDriver::DrainWorker(WorkerId worker, bool move) { impl_->DrainWorker(worker, move); }
bool StepDriver::IsDrained(WorkerId worker) const { return impl_->IsDrained(worker); }
bool StepDriver::HasWorker(WorkerId worker) const { return impl_->HasWorker(worker); }
int StepDriver::num_workers() const { return impl_->num_workers(); }
bool StepDriver::Drain(absl::Duration grace) { return impl_->Drain(grace); }
CounterSnapshot StepDriver::Counters() const { return impl_->Counters(); }

}  // namespace tandem
