// An attention worker without a model, for tests of those who drive one: it holds its gateway to
// every rule of AttentionLink and "draws" tokens by a hash of all tokens so far.
#ifndef TANDEM_TESTS_GATEWAY_SIMULATED_ATTENTION_LINK_H_
#define TANDEM_TESTS_GATEWAY_SIMULATED_ATTENTION_LINK_H_

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/pages.h"
#include "common/transport/attention_link.h"

namespace tandem {

constexpr int32_t kSimulatedVocab = 50;
constexpr int64_t kSimulatedBusyUs = 70;  // that a step says it took
constexpr int64_t kSimulatedWaitUs = 40;

inline uint64_t SimulatedMix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Of tokens[0, size).
inline uint64_t SimulatedState(const std::vector<int32_t>& tokens, int64_t size) {
  uint64_t state = 1;
  for (int64_t i = 0; i < size; ++i) state = SimulatedMix(state ^ static_cast<uint64_t>(tokens[i]));
  return state;
}
inline int32_t SimulatedToken(uint64_t state, uint64_t key) {
  return static_cast<int32_t>(SimulatedMix(state ^ SimulatedMix(key)) % kSimulatedVocab);
}
// Of the most probable ids beside a token, some.
inline std::vector<TokenLogProb> SimulatedTop(int32_t token, int count) {
  std::vector<TokenLogProb> top;
  for (int i = 0; i < count; ++i) top.push_back({(token + i) % kSimulatedVocab, -0.5f * i});
  return top;
}
inline float SimulatedLogProb(uint64_t state, int32_t target) {
  return -static_cast<float>(SimulatedMix(state + static_cast<uint64_t>(target)) % 1000);
}

// Of all else that a draw depends on, so that what is lost when a sequence is opened again shows.
inline uint64_t SimulatedKey(const SamplingParams& sampling, int32_t expanded_length,
                             const std::vector<PageRange>& absorbed_pages,
                             bool mask_ids_without_token, int32_t num_prompt_tokens) {
  uint64_t key = SimulatedMix(sampling.seed);
  key = SimulatedMix(key ^ sampling.choice);
  key = SimulatedMix(key ^ static_cast<uint64_t>(sampling.top_k));
  key = SimulatedMix(key ^ std::bit_cast<uint32_t>(sampling.temperature));
  for (const float number : {sampling.top_p, sampling.min_p, sampling.repetition_penalty,
                             sampling.frequency_penalty, sampling.presence_penalty}) {
    key = SimulatedMix(key ^ std::bit_cast<uint32_t>(number));
  }
  key = SimulatedMix(key ^ static_cast<uint64_t>(sampling.min_tokens));
  for (const int32_t id : sampling.end_ids) key = SimulatedMix(key ^ static_cast<uint64_t>(id));
  for (const LogitBias& bias : sampling.logit_bias) {
    key = SimulatedMix(key ^ (uint64_t{std::bit_cast<uint32_t>(bias.bias)} << 32 | bias.id));
  }
  key = SimulatedMix(key ^ static_cast<uint64_t>(num_prompt_tokens));
  key = SimulatedMix(key ^ static_cast<uint64_t>(expanded_length));
  for (const PageRange& range : absorbed_pages) {
    key = SimulatedMix(key ^ (static_cast<uint64_t>(range.first) << 32 | range.end));
  }
  return SimulatedMix(key ^ (mask_ids_without_token ? 1 : 0));
}

// What a worker must draw for a prompt, whatever the schedule; a stop id is the last one.
inline std::vector<int32_t> SimulatedAnswer(std::vector<int32_t> tokens, uint64_t key, int count,
                                            int32_t stop_id) {
  std::vector<int32_t> answer;
  while (static_cast<int>(answer.size()) < count) {
    answer.push_back(SimulatedToken(SimulatedState(tokens, tokens.size()), key));
    tokens.push_back(answer.back());
    if (answer.back() == stop_id) break;
  }
  return answer;
}

// The worker's side, without threads: RunOne runs the oldest queued step.
class SimulatedAttentionWorker {
 public:
  SimulatedAttentionWorker(int num_layers, int total_pages)
      : info_{num_layers, total_pages, kSimulatedVocab}, pages_(total_pages) {}

  const AttentionWorkerInfo& info() const { return info_; }
  // That no sequence holds.
  int free_pages() const {
    return static_cast<int>(std::count_if(pages_.begin(), pages_.end(),
                                          [](const Page& page) { return page.holders == 0; }));
  }
  size_t queued() const { return queue_.size(); }
  size_t live_sequences() const { return sequences_.size(); }
  size_t live_batches() const { return batches_.size(); }
  int sequences_opened() const { return sequences_opened_; }
  int64_t rows_computed() const { return rows_computed_; }  // through the last layer
  int64_t rows_shared() const { return rows_shared_; }
  // What the gateway did against the contract.
  const std::vector<std::string>& violations() const { return violations_; }
  // How long a step takes in which `rows` rows, of which `decode_rows` decode, pass a layer, by the
  // sum over layers; kSimulatedBusyUs without it.
  using LayerTime = std::function<double(int decode_rows, int rows)>;
  void SetLayerTime(LayerTime time) { layer_time_ = std::move(time); }
  // The next step fails with UNAVAILABLE before this layer.
  void FailNextStepAt(int layer) { fail_at_ = layer; }
  // The next token is drawn from logits that hold a NaN.
  void DrawNaN() { draw_nan_ = true; }
  // The next step is refused.
  void RefuseNextStep(absl::Status status) { refuse_ = std::move(status); }

  void OpenSequence(SequenceSpec spec) {
    if (spec.sequence <= last_sequence_) Violation("sequence ids do not grow");
    if (spec.token_ids.empty()) Violation("a sequence without tokens");
    ++sequences_opened_;
    last_sequence_ = spec.sequence;
    Sequence& sequence = sequences_[spec.sequence];
    sequence.tokens = spec.token_ids;
    sequence.pages = spec.pages;
    const auto shared_rows = static_cast<int32_t>(kPageTokens * spec.pages.size());
    sequence.rows_at_layer.resize(info_.num_layers, shared_rows);
    sequence.spec = std::move(spec);
    rows_shared_ += shared_rows;
    if (shared_rows >= static_cast<int64_t>(sequence.tokens.size())) {
      Violation("a sequence without a row of its own");
    }
    for (size_t i = 0; i < sequence.pages.size(); ++i) {
      Page& page = pages_.at(sequence.pages[i]);
      ++page.holders;
      if (page.content != Content(sequence, i)) Violation("a shared page holds something else");
    }
  }

  void Run(Step step) {
    if (step.step != last_step_ + 1) Violation("step ids do not count up");
    last_step_ = step.step;
    if (queue_.size() >= AttentionLink::kMaxOutstandingSteps) Violation("too many steps");
    if (step.advance.empty()) Violation("a step without work");
    for (const NewBatch& batch : step.new_batches) {
      if (refused_.erase(batch.batch) > 0) continue;  // rows of it may have died since
      if (batch.batch <= last_sent_batch_) Violation("batch ids do not grow");
      last_sent_batch_ = batch.batch;
      for (const RowRun& run : batch.runs) {
        if (!sequences_.contains(run.sequence)) Violation("rows of a sequence that is not open");
      }
    }
    queue_.push_back({std::move(step), {}});
  }

  void Cancel(SequenceId sequence) { Drop(sequence); }
  void Release(SequenceId sequence) {
    if (queue_.empty()) {
      Drop(sequence);
    } else {
      queue_.back().releases.push_back(sequence);
    }
  }

  std::optional<StepResult> RunOne() {
    if (queue_.empty()) return std::nullopt;
    Queued queued = std::move(queue_.front());
    queue_.pop_front();
    // After a failure only the one step that was planned before the gateway heard of it may rest on
    // what did not happen.
    excused_ = std::exchange(failed_, false);
    StepResult result;
    result.step = queued.step.step;
    result.busy_us = layer_time_ ? BusyUs(queued.step) : kSimulatedBusyUs;
    result.wait_us = kSimulatedWaitUs;
    result.status = refuse_.ok() ? Check(queued.step) : std::exchange(refuse_, absl::OkStatus());
    if (result.status.ok()) {
      Walk(queued.step, &result);
    } else {
      failed_ = !excused_;
      for (const NewBatch& batch : queued.step.new_batches) refused_.insert(batch.batch);
    }
    for (const SequenceId sequence : queued.releases) Drop(sequence);
    return result;
  }

 private:
  struct Sequence {
    SequenceSpec spec;
    std::vector<int32_t> tokens;         // of the spec, then drawn
    std::vector<int32_t> rows_at_layer;  // rows [0, n) have been through the layer
    std::vector<int32_t> pages;
  };
  struct Page {
    int holders = 0;
    uint64_t content = 0;  // 0: not full
  };
  struct LiveBatch {
    NewBatch batch;
    int32_t next_layer = 0;
  };
  struct Queued {
    Step step;
    std::vector<SequenceId> releases;
  };

  void Violation(std::string what) { violations_.push_back(std::move(what)); }

  absl::Status Refuse(absl::Status status) {
    if (!excused_) Violation(std::string(status.message()));
    return status;
  }

  void Drop(SequenceId id) {
    const auto it = sequences_.find(id);
    if (it == sequences_.end()) return;
    for (const int32_t page : it->second.pages) --pages_[page].holders;
    sequences_.erase(it);
    for (auto batch = batches_.begin(); batch != batches_.end();) {
      if (AllDead(batch->second.batch)) {
        died_.insert(batch->first);
        batch = batches_.erase(batch);
      } else {
        ++batch;
      }
    }
  }

  bool AllDead(const NewBatch& batch) const {
    return std::none_of(batch.runs.begin(), batch.runs.end(),
                        [this](const RowRun& run) { return sequences_.contains(run.sequence); });
  }

  absl::Status CheckRun(const RowRun& run) {
    const auto it = sequences_.find(run.sequence);
    if (it == sequences_.end()) return absl::OkStatus();  // dead
    const Sequence& sequence = it->second;
    const int64_t known = static_cast<int64_t>(sequence.spec.token_ids.size());
    if (run.count < 1 || run.first_position < 0) return absl::InvalidArgumentError("empty run");
    if (run.first_position != sequence.rows_at_layer[0]) {
      return absl::InvalidArgumentError("rows out of order");
    }
    if (!run.last_sampled && run.first_position + run.count > known) {
      return absl::InvalidArgumentError("rows beyond the known tokens");
    }
    if (run.last_sampled && (run.count != 1 || run.first_position < known)) {
      return absl::InvalidArgumentError("last_sampled for a known token");
    }
    if (run.last_sampled &&
        run.first_position + 1 != static_cast<int64_t>(sequence.tokens.size())) {
      return absl::FailedPreconditionError("last_sampled, but the token was not drawn");
    }
    return absl::OkStatus();
  }

  int64_t BusyUs(const Step& step) const {
    double us = 0;
    for (int layer = 0; layer < info_.num_layers; ++layer) {
      int decode_rows = 0, rows = 0;
      for (const Advance& advance : step.advance) {
        if (layer < advance.first_layer || layer >= advance.end_layer) continue;
        const NewBatch* batch = nullptr;
        for (const NewBatch& fresh : step.new_batches) {
          if (fresh.batch == advance.batch) batch = &fresh;
        }
        const auto live = batches_.find(advance.batch);
        if (live != batches_.end()) batch = &live->second.batch;
        if (batch == nullptr) continue;
        for (const RowRun& run : batch->runs) {
          rows += run.count;
          decode_rows += run.last_sampled ? 1 : 0;
        }
      }
      if (rows > 0) us += layer_time_(decode_rows, rows);
    }
    return static_cast<int64_t>(us);
  }

  // Applies nothing.
  absl::Status Check(const Step& step) {
    std::set<int32_t> pages;
    std::set<BatchId> fresh;
    std::set<SequenceId> sequences_with_rows;
    for (const NewBatch& batch : step.new_batches) {
      fresh.insert(batch.batch);
      if (batch.batch <= last_batch_) return Refuse(absl::InvalidArgumentError("an old batch"));
      int64_t pages_of_batch = 0;
      for (const RowRun& run : batch.runs) pages_of_batch += NewPages(run);
      if (pages_of_batch != static_cast<int64_t>(batch.pages.size())) {
        return Refuse(absl::InvalidArgumentError("another number of pages than rows need"));
      }
      int64_t next_page = 0;
      for (const RowRun& run : batch.runs) {
        const int64_t first_page = std::exchange(next_page, next_page + NewPages(run));
        if (absl::Status status = CheckRun(run); !status.ok()) return Refuse(std::move(status));
        const auto it = sequences_.find(run.sequence);
        if (it == sequences_.end()) continue;
        if (!sequences_with_rows.insert(run.sequence).second) {
          return Refuse(absl::InvalidArgumentError("two runs of a sequence in one step"));
        }
        for (const auto& [id, live] : batches_) {
          for (const RowRun& other : live.batch.runs) {
            if (other.sequence == run.sequence) {
              return Refuse(
                  absl::FailedPreconditionError("the sequence's last batch is unfinished"));
            }
          }
        }
        for (int64_t i = first_page; i < next_page; ++i) {
          const int32_t page = batch.pages[i];
          if (page < 0 || page >= info_.total_pages || !pages.insert(page).second ||
              pages_[page].holders > 0) {
            return Refuse(absl::FailedPreconditionError("a page that cannot be taken"));
          }
        }
      }
    }
    for (const Advance& advance : step.advance) {
      if (advance.first_layer >= advance.end_layer || advance.end_layer > info_.num_layers) {
        return Refuse(absl::InvalidArgumentError("layers out of range"));
      }
      const auto it = batches_.find(advance.batch);
      if (it == batches_.end() && !fresh.contains(advance.batch)) {
        // Fine only if its rows died while the step was on its way.
        if (!died_.contains(advance.batch)) {
          return Refuse(absl::FailedPreconditionError("no such batch"));
        }
        continue;
      }
      if (advance.first_layer != (it == batches_.end() ? 0 : it->second.next_layer)) {
        return Refuse(absl::FailedPreconditionError("the batch does not stand there"));
      }
    }
    return absl::OkStatus();
  }

  static int64_t NewPages(const RowRun& run) {
    return PagesFor(run.first_position + run.count) - PagesFor(run.first_position);
  }

  // What rows of the sequence leave in its page of this index: never 0.
  static uint64_t Content(const Sequence& sequence, size_t index) {
    uint64_t content =
        SimulatedState(sequence.tokens, static_cast<int64_t>(index + 1) * kPageTokens);
    for (size_t i = 0; i <= index; ++i) {
      const bool expanded = sequence.spec.IsExpanded(static_cast<int32_t>(i) * kPageTokens);
      content = SimulatedMix(content ^ (expanded ? 1 : 2));
    }
    return content | 1;
  }

  void TakePages(const NewBatch& batch) {
    size_t next_page = 0;
    for (const RowRun& run : batch.runs) {
      const auto it = sequences_.find(run.sequence);
      for (int64_t i = 0; i < NewPages(run); ++i) {
        const int32_t page = batch.pages[next_page++];
        if (it == sequences_.end()) continue;
        pages_[page] = {.holders = 1, .content = 0};
        it->second.pages.push_back(page);
      }
    }
  }

  void FillPages(const NewBatch& batch) {
    for (const RowRun& run : batch.runs) {
      const auto it = sequences_.find(run.sequence);
      if (it == sequences_.end()) continue;
      rows_computed_ += run.count;
      const size_t end = (run.first_position + run.count) / kPageTokens;
      for (size_t i = run.first_position / kPageTokens; i < end; ++i) {
        pages_[it->second.pages[i]].content = Content(it->second, i);
      }
    }
  }

  void Walk(const Step& step, StepResult* result) {
    for (const NewBatch& batch : step.new_batches) {
      last_batch_ = batch.batch;
      TakePages(batch);
      if (AllDead(batch)) {
        died_.insert(batch.batch);
      } else {
        batches_[batch.batch] = {batch, 0};
      }
    }
    const int limit = fail_at_.value_or(info_.num_layers);
    if (fail_at_.has_value()) {
      result->status = absl::UnavailableError("no expert worker answered");
      failed_ = true;
      fail_at_.reset();
    }
    for (const Advance& advance : step.advance) {
      const auto it = batches_.find(advance.batch);
      if (it == batches_.end()) continue;
      LiveBatch& live = it->second;
      const int end = std::max(live.next_layer, std::min(advance.end_layer, limit));
      for (int layer = live.next_layer; layer < end; ++layer) PassLayer(live.batch, layer);
      live.next_layer = end;
      result->batches.push_back({advance.batch, end});
      if (end < info_.num_layers) continue;
      FillPages(live.batch);
      Output(live.batch, result);
      batches_.erase(it);
    }
  }

  void PassLayer(const NewBatch& batch, int layer) {
    for (const RowRun& run : batch.runs) {
      const auto it = sequences_.find(run.sequence);
      if (it == sequences_.end()) continue;
      int32_t& rows = it->second.rows_at_layer[layer];
      if (rows != run.first_position) Violation("a layer sees rows out of order");
      rows = run.first_position + run.count;
    }
  }

  void Output(const NewBatch& batch, StepResult* result) {
    int32_t last_row = 0;
    for (const RowOutput& output : batch.outputs) {
      if (output.row < last_row) Violation("outputs do not ascend");
      last_row = output.row;
      int32_t row = output.row;
      const auto run = std::find_if(batch.runs.begin(), batch.runs.end(), [&](const RowRun& r) {
        if (row < r.count) return true;
        row -= r.count;
        return false;
      });
      if (run == batch.runs.end()) {
        Violation("an output of a row that is not there");
        continue;
      }
      const auto it = sequences_.find(run->sequence);
      if (it == sequences_.end()) continue;
      result->rows.push_back(OutputRow(&it->second, run->first_position + row, output));
    }
  }

  RowResult OutputRow(Sequence* sequence, int32_t position, const RowOutput& output) {
    RowResult row;
    row.sequence = sequence->spec.sequence;
    row.position = position;
    row.kind = output.kind;
    const uint64_t state = SimulatedState(sequence->tokens, position + 1);
    switch (output.kind) {
      case RowOutputKind::kSample:
        if (position + 1 != static_cast<int64_t>(sequence->tokens.size())) {
          Violation("a draw for a token that is known");
        }
        row.token = SimulatedToken(
            state,
            SimulatedKey(sequence->spec.sampling, sequence->spec.expanded_length,
                         sequence->spec.absorbed_pages, sequence->spec.mask_ids_without_token,
                         sequence->spec.num_prompt_tokens));
        row.log_prob = SimulatedLogProb(state, row.token);
        row.top = SimulatedTop(row.token, sequence->spec.top_logprobs);
        if (std::exchange(draw_nan_, false)) {
          row.token = -1;
          for (const int32_t page : sequence->pages) pages_[page].content = 0;  // not to be shared
        }
        sequence->tokens.push_back(row.token);
        break;
      case RowOutputKind::kLogProb:
        row.token = output.target;
        row.log_prob = SimulatedLogProb(state, output.target);
        break;
      case RowOutputKind::kLogits:
        row.logits.assign(kSimulatedVocab, SimulatedLogProb(state, -1));
        break;
    }
    return row;
  }

  const AttentionWorkerInfo info_;
  std::vector<Page> pages_;
  int64_t rows_computed_ = 0;
  int64_t rows_shared_ = 0;
  std::map<SequenceId, Sequence> sequences_;
  std::map<BatchId, LiveBatch> batches_;
  std::set<BatchId> died_;  // all of their rows are dead: a step on its way may name them
  std::deque<Queued> queue_;
  std::set<BatchId> refused_;  // new batches of refused steps: they may be sent again
  SequenceId last_sequence_ = 0;
  int sequences_opened_ = 0;
  BatchId last_sent_batch_ = 0;
  BatchId last_batch_ = 0;  // of a step that was not refused
  StepId last_step_ = 0;
  bool failed_ = false;   // the step before
  bool excused_ = false;  // the step that runs now
  bool draw_nan_ = false;
  std::optional<int> fail_at_;
  LayerTime layer_time_;
  absl::Status refuse_;
  std::vector<std::string> violations_;
};

// The same behind the seam, with a thread.
class SimulatedAttentionLink : public AttentionLink {
 public:
  // What outlives the link, for the test to look at.
  struct Outcome {
    std::mutex mutex;
    std::vector<std::string> violations;
    int links_destroyed = 0;
    int64_t steps = 0;
  };

  // After `steps_until_down` steps the worker is gone; -1: never.
  SimulatedAttentionLink(int num_layers, int total_pages, Observer* observer,
                         std::shared_ptr<Outcome> outcome, int steps_until_down = -1)
      : worker_(num_layers, total_pages),
        observer_(observer),
        outcome_(std::move(outcome)),
        steps_until_down_(steps_until_down),
        thread_([this] { Loop(); }) {}

  ~SimulatedAttentionLink() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
    std::lock_guard lock(outcome_->mutex);
    for (const std::string& violation : worker_.violations()) {
      outcome_->violations.push_back(violation);
    }
    ++outcome_->links_destroyed;
  }

  AttentionWorkerInfo info() const override { return worker_.info(); }
  void OpenSequence(SequenceSpec spec) override {
    std::lock_guard lock(mutex_);
    worker_.OpenSequence(std::move(spec));
  }
  void Run(Step step) override {
    {
      std::lock_guard lock(mutex_);
      worker_.Run(std::move(step));
    }
    wake_.notify_all();
  }
  void Cancel(SequenceId sequence) override {
    std::lock_guard lock(mutex_);
    worker_.Cancel(sequence);
  }
  void Release(SequenceId sequence) override {
    std::lock_guard lock(mutex_);
    worker_.Release(sequence);
  }

 private:
  void Loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stopping_ || worker_.queued() > 0; });
      if (stopping_) return;
      if (steps_until_down_-- == 0) {
        lock.unlock();
        observer_->OnDown(absl::UnavailableError("the simulated worker died"));
        return;
      }
      StepResult result = *worker_.RunOne();
      lock.unlock();
      {
        std::lock_guard outcome_lock(outcome_->mutex);
        ++outcome_->steps;
      }
      observer_->OnStepResult(std::move(result));
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  SimulatedAttentionWorker worker_;
  Observer* const observer_;
  const std::shared_ptr<Outcome> outcome_;
  int steps_until_down_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_GATEWAY_SIMULATED_ATTENTION_LINK_H_
