#include "attention_worker/engine_core.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention_worker/engine_counts.h"
#include "attention_worker/latent_cache.h"
#include "attention_worker/model.h"
#include "attention_worker/sequence.h"
#include "attention_worker/step_runner.h"
#include "attention_worker/step_validation.h"
#include "common/check.h"
#include "common/log_scope.h"
#include "common/mutex.h"
#include "common/request_tag.h"
#include "common/status.h"
#include "common/time_after.h"
#include "common/work_clock.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr size_t kHistorySteps = 4;
// A gateway may go on to advance a batch that has died whole; so many are remembered for it.
constexpr size_t kMaxDeadBatches = 1024;

// What a caller wants done in order.
struct Message {
  std::shared_ptr<Sequence> open;
  std::optional<Step> step;
  bool one_too_many = false;  // of the step
  SequenceId release = 0;     // if it is neither of the two
};

struct Session {
  // These four are guarded by the engine's mutex.
  std::deque<Message> inbox;
  absl::flat_hash_map<SequenceId, std::shared_ptr<Sequence>> cancellable;
  int outstanding_steps = 0;
  bool closed = false;

  Mutex callback_mutex;
  AttentionLink::Observer* observer ABSL_GUARDED_BY(callback_mutex) = nullptr;  // null once closed

  // Of the engine thread.
  SessionState state;
  std::optional<AttentionEngineCore::Clock::time_point> wait_for_pages_until;  // its next step may
};

}  // namespace

// Callers leave messages and flags; Turn does everything else. Whenever no walk can go on, it takes
// at most one step of each session and walks the layers once with all of them.
class AttentionEngineCore::Impl {
 public:
  Impl(kernels::Backend* backend, const AttentionModel* model, RoutedExperts* experts,
       std::unique_ptr<LatentCache> cache, std::unique_ptr<kernels::Buffer> ids_with_token,
       absl::Duration page_wait, LayerTimes* layer_times, std::function<void()> wake,
       std::function<Clock::time_point()> now)
      : wake_(std::move(wake)),
        now_(std::move(now)),
        cache_(std::move(cache)),
        ids_with_token_(std::move(ids_with_token)),
        page_wait_(page_wait),
        limits_{model->config().num_layers, model->config().vocab_size,
                model->config().max_position_embeddings},
        runner_(
            model, {backend, experts, cache_.get()},
            ids_with_token_ == nullptr ? kernels::DeviceTensor()
                                       : ids_with_token_->Tensor(Dtype::kU8, {limits_.vocab_size}),
            &counts_, [this] { Wake(); }, now_, layer_times) {
    counts_.pages_free = cache_->pool().free_pages();
  }

  ~Impl() {
    EndCancelled();
    MutexLock lock(mutex_);
    for (const auto& session : sessions_) {
      TANDEM_CHECK(session->closed);
      session->state.pages.reset();  // the pool goes before those who may still hold a session
    }
  }

  // ---- any thread ----

  AttentionWorkerInfo info() const {
    return {limits_.num_layers, cache_->pool().total_pages(), limits_.vocab_size};
  }

  std::shared_ptr<Session> Connect(AttentionLink::Observer* observer) {
    auto session = std::make_shared<Session>();
    session->state.pages = std::make_unique<SessionPages>(&cache_->pool());
    {
      MutexLock lock(session->callback_mutex);
      session->observer = observer;
    }
    MutexLock lock(mutex_);
    sessions_.push_back(session);
    ++counts_.sessions_live;
    return session;
  }

  void Open(Session& session, SequenceSpec spec) {
    auto sequence = std::make_shared<Sequence>();
    sequence->usable = ValidateSpec(spec, limits_);
    sequence->spec = std::move(spec);
    {
      MutexLock lock(mutex_);
      const SequenceId id = sequence->spec.sequence;
      if (!session.cancellable.emplace(id, sequence).second) return;
      session.inbox.push_back({std::move(sequence), std::nullopt, false, 0});
      SignalWork();
    }
    wake_();
  }

  void Run(Session& session, Step step) {
    {
      MutexLock lock(mutex_);
      const bool one_too_many = session.outstanding_steps >= AttentionLink::kMaxOutstandingSteps;
      if (!one_too_many) ++session.outstanding_steps;
      session.inbox.push_back({nullptr, std::move(step), one_too_many, 0});
      SignalWork();
    }
    wake_();
  }

  void Release(Session& session, SequenceId sequence) {
    {
      MutexLock lock(mutex_);
      session.inbox.push_back({nullptr, std::nullopt, false, sequence});
      SignalWork();
    }
    wake_();
  }

  void Cancel(const std::shared_ptr<Session>& session, SequenceId sequence) {
    {
      MutexLock lock(mutex_);
      const auto it = session->cancellable.find(sequence);
      if (it == session->cancellable.end()) return;
      CancelLocked(session, it->second);
      session->cancellable.erase(it);
    }
    wake_();
  }

  void Close(const std::shared_ptr<Session>& session) {
    {
      MutexLock lock(session->callback_mutex);
      session->observer = nullptr;
    }
    {
      MutexLock lock(mutex_);
      session->closed = true;
      session->inbox.clear();
      for (const auto& [id, sequence] : session->cancellable) CancelLocked(session, sequence);
      session->cancellable.clear();
      SignalWork();
    }
    wake_();
  }

  CounterSnapshot Counters() const {
    const EngineCounts& c = counts_;
    return {{"sequences_live", c.sequences_live},
            {"batches_live", c.batches_live},
            {"rows_live", c.rows_live},
            {"pages_total", cache_->pool().total_pages()},
            {"pages_free", c.pages_free},
            {"sessions_live", c.sessions_live},
            {"steps_total", c.steps_total},
            {"layers_total", c.layers_total},
            {"expanded_row_layers_total", c.expanded_row_layers_total},
            {"absorbed_row_layers_total", c.absorbed_row_layers_total},
            {"sampled_total", c.sampled_total},
            {"scored_total", c.scored_total},
            {"cancels_total", c.cancels_total},
            {"cancel_layers_max", c.cancel_layers_max},
            {"busy_ms", absl::ToInt64Milliseconds(busy_for())}};
  }

  absl::Duration busy_for() const { return work_clock_.elapsed(); }

  // ---- the engine thread ----

  bool Turn() {
    EndRest();
    work_clock_.Begin();
    {
      MutexLock lock(mutex_);
      work_ = false;
    }
    if (EndCancelled()) PublishGauges();
    std::vector<StepJob> finished;
    const StepRunner::Progress progress = runner_.Proceed(&finished);
    for (StepJob& job : finished) SetDone(job);
    if (!finished.empty()) AnswerDone();
    if (progress == StepRunner::Progress::kMoved || StartSteps()) return true;
    PublishGauges();
    DropClosedSessions();  // last: who sees a session gone sees its pages free
    return !Rest();
  }

  std::optional<Clock::time_point> wake_time() const {
    std::optional<Clock::time_point> earliest = runner_.wake_time();
    MutexLock lock(mutex_);
    for (const auto& session : sessions_) {
      const auto& until = session->wait_for_pages_until;
      if (until.has_value() && (!earliest.has_value() || *until < *earliest)) earliest = until;
    }
    return earliest;
  }

 private:
  void CancelLocked(const std::shared_ptr<Session>& session,
                    const std::shared_ptr<Sequence>& sequence)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    sequence->layers_at_cancel = counts_.layers_total.load();
    sequence->cancelled = true;
    cancelled_.emplace_back(session, sequence);
    ++counts_.cancels_total;
    SignalWork();
  }

  void SignalWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    work_ = true;
    work_clock_.Given();
  }

  void Wake() {
    {
      MutexLock lock(mutex_);
      SignalWork();
    }
    wake_();
  }

  // ---- the engine thread ----

  // What the thread did until now was to wait, if it had nothing else to do.
  void EndRest() {
    if (resting_since_.has_value() && !runner_.idle()) runner_.AddWait(now_() - *resting_since_);
    resting_since_.reset();
  }

  // False: something has come meanwhile.
  bool Rest() {
    MutexLock lock(mutex_);
    if (work_) return false;
    work_clock_.Rest();
    resting_since_ = now_();
    return true;
  }

  // Handles messages up to a step of each session that can be run now, and starts those; false if
  // there is none.
  bool StartSteps() {
    std::vector<std::shared_ptr<Session>> sessions;
    {
      MutexLock lock(mutex_);
      sessions = sessions_;
    }
    std::vector<StepJob> jobs;
    for (const auto& session : sessions) {
      if (std::optional<StepJob> job = TakeStep(*session)) jobs.push_back(*std::move(job));
    }
    if (jobs.empty()) return false;
    runner_.Start(std::move(jobs));
    return true;
  }

  // Handles a session's messages up to and including the next step that has to be run; those that
  // must wait for a walk to end stay.
  std::optional<StepJob> TakeStep(Session& session) {
    while (std::optional<Message> message = NextMessage(session)) {
      if (message->open != nullptr) {
        HandleOpen(&session.state, std::move(message->open));
      } else if (!message->step.has_value()) {
        HandleRelease(session, message->release);
      } else if (std::optional<StepJob> job = HandleStep(session, *message)) {
        return job;
      }
    }
    return std::nullopt;
  }

  std::optional<Message> NextMessage(Session& session) {
    MutexLock lock(mutex_);
    if (session.inbox.empty()) return std::nullopt;
    Message& message = session.inbox.front();
    if (message.step.has_value()) {
      if (!message.one_too_many && (!runner_.CanBegin(session.state, *message.step) ||
                                    MustWaitForPages(session, *message.step))) {
        return std::nullopt;
      }
    } else if (message.open == nullptr) {
      const Sequence* sequence = session.state.FindSequence(message.release);
      if (sequence != nullptr && sequence->in_walk) return std::nullopt;
    }
    Message taken = std::move(message);
    session.inbox.pop_front();
    return taken;
  }

  // A gateway counts on every page. What another session holds is on its way back: its gateway is
  // gone, which this side may not have heard of yet.
  bool MustWaitForPages(Session& session, const Step& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const bool others_hold_pages =
        std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& other) {
          return other.get() != &session && !other->state.sequences.empty();
        });
    std::optional<Clock::time_point>& until = session.wait_for_pages_until;
    if (!others_hold_pages ||
        !absl::IsResourceExhausted(ValidateStep(step, session.state, limits_))) {
      until.reset();
      return false;
    }
    if (!until.has_value()) until = After(now_(), page_wait_);
    if (now_() < *until) return true;
    until.reset();
    return false;
  }

  static void HandleOpen(SessionState* state, std::shared_ptr<Sequence> sequence) {
    const SequenceId id = sequence->spec.sequence;
    state->last_opened = std::max(state->last_opened, id);
    if (sequence->ended) return;
    const std::vector<int32_t>& shared = sequence->spec.pages;
    if (sequence->usable.ok()) sequence->usable = state->pages->CheckShare(shared);
    if (sequence->usable.ok()) {
      sequence->pages = state->pages->Share(shared);
      sequence->num_scheduled = kPageTokens * sequence->pages.num_pages();
    }
    if (spdlog::should_log(spdlog::level::debug)) {
      const LogScope scope(FieldsOf(sequence->spec.tag));
      spdlog::debug("sequence {} of {} tokens is opened", id, sequence->spec.token_ids.size());
    }
    state->sequences.emplace(id, std::move(sequence));
  }

  void HandleRelease(Session& session, SequenceId id) {
    {
      MutexLock lock(mutex_);
      session.cancellable.erase(id);
    }
    if (Sequence* sequence = session.state.FindSequence(id)) {
      runner_.End(&session.state, *sequence);
    }
  }

  // The step's job, or nothing if its answer is there already.
  std::optional<StepJob> HandleStep(Session& session, Message& message) {
    SessionState& state = session.state;
    EndCancelled();  // what was cancelled before the step was sent
    ForgetDeadBatches(&state);
    StepResult answer;
    answer.step = message.step->step;
    state.in_flight.push_back({answer.step, !message.one_too_many, std::nullopt});
    if (message.one_too_many) {
      answer.status = absl::FailedPreconditionError(
          absl::StrCat("step ", answer.step, ": ", AttentionLink::kMaxOutstandingSteps,
                       " steps are outstanding already"));
    } else if (const StepResult* before = state.FindResult(answer.step)) {
      answer = *before;
    } else {
      answer.status = ValidateStep(*message.step, state, limits_);
      if (answer.status.ok()) return runner_.Begin(&state, *std::move(message.step));
    }
    state.in_flight.back().result = std::move(answer);
    AnswerDone();
    return std::nullopt;
  }

  static void ForgetDeadBatches(SessionState* state) {
    while (state->dead_batches.size() > kMaxDeadBatches) {
      const Batch* batch = state->FindBatch(state->dead_batches.front());
      if (batch != nullptr && batch->in_walk) return;
      state->batches.erase(state->dead_batches.front());
      state->dead_batches.pop_front();
    }
  }

  static void SetDone(StepJob& job) {
    for (SessionState::StepInFlight& step : job.state->in_flight) {
      if (step.step != job.result.step || step.result.has_value()) continue;
      job.state->history.push_back(job.result);
      if (job.state->history.size() > kHistorySteps) job.state->history.pop_front();
      step.result = std::move(job.result);
      return;
    }
  }

  // Answers the steps that are done, in the order in which they came. Observers may look at the
  // counters: all of a walk is done before any of it is told.
  void AnswerDone() {
    std::vector<std::shared_ptr<Session>> sessions;
    {
      MutexLock lock(mutex_);
      sessions = sessions_;
    }
    for (const auto& session : sessions) {
      auto& in_flight = session->state.in_flight;
      while (!in_flight.empty() && in_flight.front().result.has_value()) {
        const SessionState::StepInFlight step = std::move(in_flight.front());
        in_flight.pop_front();
        Answer(*session, *step.result, step.counted);
      }
    }
  }

  // Ends the sequences that were cancelled; false if there were none.
  bool EndCancelled() {
    std::vector<std::pair<std::shared_ptr<Session>, std::shared_ptr<Sequence>>> cancelled;
    {
      MutexLock lock(mutex_);
      cancelled.swap(cancelled_);
    }
    for (const auto& [session, sequence] : cancelled) {
      if (sequence->ended) continue;
      if (!sequence->batches.empty()) {
        const int64_t layers = counts_.layers_total - sequence->layers_at_cancel;
        counts_.cancel_layers_max = std::max(counts_.cancel_layers_max.load(), layers);
      }
      runner_.End(&session->state, *sequence);
    }
    return !cancelled.empty();
  }

  void Answer(Session& session, StepResult result, bool counted) {
    PublishGauges();
    if (counted) {
      MutexLock lock(mutex_);
      --session.outstanding_steps;
    }
    MutexLock lock(session.callback_mutex);
    if (session.observer != nullptr) session.observer->OnStepResult(std::move(result));
  }

  void DropClosedSessions() {
    MutexLock lock(mutex_);
    const auto closed = [](const auto& session) { return session->closed; };
    // Those with sequences that were not ended yet stay for the next turn.
    const auto done = [&](const auto& session) {
      return closed(session) && session->state.sequences.empty() &&
             session->state.in_flight.empty();
    };
    for (const auto& session : sessions_) {
      if (!done(session)) continue;
      session->state.pages.reset();  // now, whoever holds the session
      --counts_.sessions_live;
    }
    sessions_.erase(std::remove_if(sessions_.begin(), sessions_.end(), done), sessions_.end());
  }

  void PublishGauges() {
    int64_t sequences = 0, batches = 0, rows = 0;
    std::vector<std::shared_ptr<Session>> sessions;
    {
      MutexLock lock(mutex_);
      sessions = sessions_;
    }
    for (const auto& session : sessions) {
      sequences += static_cast<int64_t>(session->state.sequences.size());
      for (const auto& [id, batch] : session->state.batches) {
        const int64_t live = batch->live_rows();
        batches += live > 0 ? 1 : 0;
        rows += live;
      }
    }
    counts_.sequences_live = sequences;
    counts_.batches_live = batches;
    counts_.rows_live = rows;
    counts_.pages_free = cache_->pool().free_pages();
  }

  const std::function<void()> wake_;
  const std::function<Clock::time_point()> now_;
  EngineCounts counts_;
  WorkClock work_clock_;
  const std::unique_ptr<LatentCache> cache_;

  const std::unique_ptr<kernels::Buffer> ids_with_token_;  // [vocab] u8; null: all have one
  const absl::Duration page_wait_;

  mutable Mutex mutex_;
  bool work_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::shared_ptr<Session>> sessions_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<std::shared_ptr<Session>, std::shared_ptr<Sequence>>> cancelled_
      ABSL_GUARDED_BY(mutex_);

  const StepLimits limits_;
  // Of the engine thread.
  StepRunner runner_;
  std::optional<Clock::time_point> resting_since_;
};

// A session as its gateway holds it.
class AttentionEngineCore::Link final : public AttentionLink {
 public:
  Link(Impl* engine, Observer* observer) : engine_(engine), session_(engine->Connect(observer)) {}
  ~Link() override { engine_->Close(session_); }

  AttentionWorkerInfo info() const override { return engine_->info(); }
  void OpenSequence(SequenceSpec spec) override { engine_->Open(*session_, std::move(spec)); }
  void Run(Step step) override { engine_->Run(*session_, std::move(step)); }
  void Cancel(SequenceId sequence) override { engine_->Cancel(session_, sequence); }
  void Release(SequenceId sequence) override { engine_->Release(*session_, sequence); }

 private:
  Impl* const engine_;
  const std::shared_ptr<Session> session_;
};

absl::StatusOr<std::unique_ptr<AttentionEngineCore>> AttentionEngineCore::Create(
    kernels::Backend* backend, const AttentionModel* model, RoutedExperts* experts,
    AttentionEngineOptions options, std::function<void()> wake,
    std::function<Clock::time_point()> now) {
  const ModelConfig& config = model->config();
  TANDEM_CHECK(options.total_pages > 0);
  TANDEM_CHECK(options.ids_with_token.empty() ||
               options.ids_with_token.size() == static_cast<size_t>(config.vocab_size));
  TANDEM_ASSIGN_OR_RETURN(auto cache,
                          LatentCache::Create(backend, config.num_layers, options.total_pages,
                                              config.cache_row_width(), model->dtype()));
  std::unique_ptr<kernels::Buffer> ids_with_token;
  if (!options.ids_with_token.empty()) {
    TANDEM_ASSIGN_OR_RETURN(ids_with_token, backend->Allocate(options.ids_with_token.size()));
    backend->Write(options.ids_with_token.data(),
                   ids_with_token->Tensor(Dtype::kU8, {config.vocab_size}));
  }
  return std::unique_ptr<AttentionEngineCore>(new AttentionEngineCore(std::make_unique<Impl>(
      backend, model, experts, std::move(cache), std::move(ids_with_token), options.page_wait,
      options.layer_times, std::move(wake), std::move(now))));
}

AttentionEngineCore::AttentionEngineCore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionEngineCore::~AttentionEngineCore() = default;

std::unique_ptr<AttentionLink> AttentionEngineCore::Connect(AttentionLink::Observer* observer) {
  return std::make_unique<Link>(impl_.get(), observer);
}

bool AttentionEngineCore::Turn() { return impl_->Turn(); }
std::optional<AttentionEngineCore::Clock::time_point> AttentionEngineCore::wake_time() const {
  return impl_->wake_time();
}
CounterSnapshot AttentionEngineCore::Counters() const { return impl_->Counters(); }
absl::Duration AttentionEngineCore::busy_for() const { return impl_->busy_for(); }

}  // namespace tandem
