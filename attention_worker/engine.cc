#include "attention_worker/engine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention_worker/engine_counts.h"
#include "attention_worker/latent_cache.h"
#include "attention_worker/model.h"
#include "attention_worker/sequence.h"
#include "attention_worker/step_runner.h"
#include "attention_worker/step_validation.h"
#include "common/check.h"
#include "common/status.h"

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
  // Guarded by the engine's mutex.
  std::deque<Message> inbox;
  absl::flat_hash_map<SequenceId, std::shared_ptr<Sequence>> cancellable;
  int outstanding_steps = 0;
  bool closed = false;

  std::mutex callback_mutex;
  AttentionLink::Observer* observer = nullptr;  // guarded by callback_mutex; null once closed

  SessionState state;  // of the engine thread
};

}  // namespace

// Callers leave messages and flags; the engine's thread does everything else. In one turn it takes
// at most one step of each session and walks the layers once with all of them.
class AttentionEngine::Impl {
 public:
  Impl(kernels::Backend* backend, const AttentionModel* model, ExpertDispatcher* dispatcher,
       AttentionEngineOptions options, std::unique_ptr<LatentCache> cache)
      : cache_(std::move(cache)),
        limits_{model->config().num_layers, model->config().vocab_size,
                model->config().max_position_embeddings},
        runner_(backend, model, dispatcher, cache_.get(), std::move(options.ids_with_token),
                &counts_) {
    counts_.pages_free = cache_->pool().free_pages();
    thread_ = std::thread([this] { RunThread(); });
  }

  ~Impl() {
    {
      std::lock_guard<std::mutex> lock(mu_);
      for (const auto& session : sessions_) TANDEM_CHECK(session->closed);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  // ---- any thread ----

  AttentionWorkerInfo info() const {
    return {limits_.num_layers, cache_->pool().total_pages(), limits_.vocab_size};
  }

  std::shared_ptr<Session> Connect(AttentionLink::Observer* observer) {
    auto session = std::make_shared<Session>();
    session->observer = observer;
    std::lock_guard<std::mutex> lock(mu_);
    sessions_.push_back(session);
    ++counts_.sessions_live;
    return session;
  }

  void Open(Session& session, SequenceSpec spec) {
    auto sequence = std::make_shared<Sequence>();
    sequence->usable = ValidateSpec(spec, limits_);
    sequence->spec = std::move(spec);
    {
      std::lock_guard<std::mutex> lock(mu_);
      const SequenceId id = sequence->spec.sequence;
      if (!session.cancellable.emplace(id, sequence).second) return;
      session.inbox.push_back({std::move(sequence), std::nullopt, false, 0});
      work_ = true;
    }
    wake_.notify_one();
  }

  void Run(Session& session, Step step) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      const bool one_too_many = session.outstanding_steps >= AttentionLink::kMaxOutstandingSteps;
      if (!one_too_many) ++session.outstanding_steps;
      session.inbox.push_back({nullptr, std::move(step), one_too_many, 0});
      work_ = true;
    }
    wake_.notify_one();
  }

  void Release(Session& session, SequenceId sequence) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      session.inbox.push_back({nullptr, std::nullopt, false, sequence});
      work_ = true;
    }
    wake_.notify_one();
  }

  void Cancel(const std::shared_ptr<Session>& session, SequenceId sequence) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      const auto it = session->cancellable.find(sequence);
      if (it == session->cancellable.end()) return;
      CancelLocked(session, it->second);
      session->cancellable.erase(it);
    }
    wake_.notify_one();
  }

  void Close(const std::shared_ptr<Session>& session) {
    {
      std::lock_guard<std::mutex> lock(session->callback_mutex);
      session->observer = nullptr;
    }
    {
      std::lock_guard<std::mutex> lock(mu_);
      session->closed = true;
      session->inbox.clear();
      for (const auto& [id, sequence] : session->cancellable) CancelLocked(session, sequence);
      session->cancellable.clear();
      work_ = true;
    }
    wake_.notify_one();
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
            {"cancel_layers_max", c.cancel_layers_max}};
  }

 private:
  void CancelLocked(const std::shared_ptr<Session>& session,
                    const std::shared_ptr<Sequence>& sequence) {
    sequence->layers_at_cancel = counts_.layers_total.load();
    sequence->cancelled = true;
    cancelled_.emplace_back(session, sequence);
    ++counts_.cancels_total;
    work_ = true;
  }

  // ---- the engine thread ----

  void RunThread() {
    while (true) {
      std::vector<std::shared_ptr<Session>> sessions;
      {
        std::unique_lock<std::mutex> lock(mu_);
        wake_.wait(lock, [this] { return work_ || stopping_; });
        if (stopping_) return;
        work_ = false;
        sessions = sessions_;
      }
      EndCancelled();  // with no step to come, too
      std::vector<Job> jobs;
      std::vector<std::shared_ptr<Session>> running;
      for (const auto& session : sessions) {
        if (std::optional<Job> job = TakeStep(*session)) {
          jobs.push_back(*std::move(job));
          running.push_back(session);
        }
      }
      if (!jobs.empty()) RunSteps(running, &jobs);
      PublishGauges();
      DropClosedSessions();  // last: who sees a session gone sees its pages free
    }
  }

  // Handles a session's messages up to and including the next step that has to be run.
  std::optional<Job> TakeStep(Session& session) {
    Message message;
    while (NextMessage(session, &message)) {
      if (message.open != nullptr) {
        HandleOpen(&session.state, std::move(message.open));
      } else if (!message.step.has_value()) {
        HandleRelease(session, message.release);
      } else if (std::optional<Job> job = HandleStep(session, message)) {
        return job;
      }
    }
    return std::nullopt;
  }

  bool NextMessage(Session& session, Message* message) {
    std::lock_guard<std::mutex> lock(mu_);
    if (session.inbox.empty()) return false;
    *message = std::move(session.inbox.front());
    session.inbox.pop_front();
    if (!session.inbox.empty()) work_ = true;
    return true;
  }

  static void HandleOpen(SessionState* state, std::shared_ptr<Sequence> sequence) {
    const SequenceId id = sequence->spec.sequence;
    state->last_opened = std::max(state->last_opened, id);
    if (!sequence->ended) state->sequences.emplace(id, std::move(sequence));
  }

  void HandleRelease(Session& session, SequenceId id) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      session.cancellable.erase(id);
    }
    if (Sequence* sequence = session.state.FindSequence(id)) {
      runner_.End(&session.state, *sequence);
    }
  }

  // The step's job, or nothing if it is answered already.
  std::optional<Job> HandleStep(Session& session, Message& message) {
    SessionState& state = session.state;
    EndCancelled();  // what was cancelled before the step was sent
    ForgetDeadBatches(&state);
    StepResult answer;
    answer.step = message.step->step;
    if (message.one_too_many) {
      answer.status = absl::FailedPreconditionError(
          absl::StrCat("step ", answer.step, ": ", AttentionLink::kMaxOutstandingSteps,
                       " steps are outstanding already"));
    } else if (const StepResult* before = state.FindResult(answer.step)) {
      answer = *before;
    } else {
      answer.status = ValidateStep(*message.step, state, limits_, cache_->pool().free_pages());
      if (answer.status.ok()) return runner_.Begin(&state, *std::move(message.step));
    }
    answer.free_pages = cache_->pool().free_pages();
    Answer(session, std::move(answer), !message.one_too_many);
    return std::nullopt;
  }

  static void ForgetDeadBatches(SessionState* state) {
    while (state->dead_batches.size() > kMaxDeadBatches) {
      state->batches.erase(state->dead_batches.front());
      state->dead_batches.pop_front();
    }
  }

  void RunSteps(const std::vector<std::shared_ptr<Session>>& sessions, std::vector<Job>* jobs) {
    runner_.Run(jobs, [this] { return EndCancelled(); });
    // Observers may look at the counters: all of the walk is done before any of it is told.
    for (size_t i = 0; i < jobs->size(); ++i) {
      StepResult& result = (*jobs)[i].result;
      result.free_pages = cache_->pool().free_pages();
      std::deque<StepResult>& history = sessions[i]->state.history;
      history.push_back(result);
      if (history.size() > kHistorySteps) history.pop_front();
      Answer(*sessions[i], std::move(result), true);
    }
  }

  // Ends the sequences that were cancelled; false if there were none.
  bool EndCancelled() {
    std::vector<std::pair<std::shared_ptr<Session>, std::shared_ptr<Sequence>>> cancelled;
    {
      std::lock_guard<std::mutex> lock(mu_);
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
      std::lock_guard<std::mutex> lock(mu_);
      --session.outstanding_steps;
    }
    std::lock_guard<std::mutex> lock(session.callback_mutex);
    if (session.observer != nullptr) session.observer->OnStepResult(std::move(result));
  }

  void DropClosedSessions() {
    std::lock_guard<std::mutex> lock(mu_);
    const auto closed = [](const auto& session) { return session->closed; };
    // Those with sequences that were not ended yet stay for the next turn.
    const auto done = [&](const auto& session) {
      return closed(session) && session->state.sequences.empty();
    };
    counts_.sessions_live -= std::count_if(sessions_.begin(), sessions_.end(), done);
    sessions_.erase(std::remove_if(sessions_.begin(), sessions_.end(), done), sessions_.end());
  }

  void PublishGauges() {
    int64_t sequences = 0, batches = 0, rows = 0;
    std::vector<std::shared_ptr<Session>> sessions;
    {
      std::lock_guard<std::mutex> lock(mu_);
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

  EngineCounts counts_;
  const std::unique_ptr<LatentCache> cache_;

  mutable std::mutex mu_;
  std::condition_variable wake_;
  bool work_ = false;  // guarded by mu_, as are the next three
  bool stopping_ = false;
  std::vector<std::shared_ptr<Session>> sessions_;
  std::vector<std::pair<std::shared_ptr<Session>, std::shared_ptr<Sequence>>> cancelled_;

  const StepLimits limits_;
  StepRunner runner_;  // of the engine thread

  std::thread thread_;
};

// A session as its gateway holds it.
class AttentionEngine::Link final : public AttentionLink {
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

absl::StatusOr<std::unique_ptr<AttentionEngine>> AttentionEngine::Create(
    kernels::Backend* backend, const AttentionModel* model, ExpertDispatcher* dispatcher,
    AttentionEngineOptions options) {
  const ModelConfig& config = model->config();
  TANDEM_CHECK(options.total_pages > 0);
  TANDEM_CHECK(options.ids_with_token.empty() ||
               options.ids_with_token.size() == static_cast<size_t>(config.vocab_size));
  TANDEM_ASSIGN_OR_RETURN(auto cache,
                          LatentCache::Create(backend, config.num_layers, options.total_pages,
                                              config.cache_row_width(), model->dtype()));
  return std::unique_ptr<AttentionEngine>(new AttentionEngine(
      std::make_unique<Impl>(backend, model, dispatcher, std::move(options), std::move(cache))));
}

AttentionEngine::AttentionEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionEngine::~AttentionEngine() = default;

std::unique_ptr<AttentionLink> AttentionEngine::Connect(AttentionLink::Observer* observer) {
  return std::make_unique<Link>(impl_.get(), observer);
}

CounterSnapshot AttentionEngine::Counters() const { return impl_->Counters(); }

}  // namespace tandem
