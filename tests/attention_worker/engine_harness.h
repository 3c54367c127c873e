// A whole attention worker with its experts in one process, and a gateway that drives it step by
// step, for tests.
#ifndef TANDEM_TESTS_ATTENTION_WORKER_ENGINE_HARNESS_H_
#define TANDEM_TESTS_ATTENTION_WORKER_ENGINE_HARNESS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attention_worker/dispatched_experts.h"
#include "attention_worker/engine.h"
#include "attention_worker/local_experts.h"
#include "attention_worker/model.h"
#include "common/checkpoint/checkpoint.h"
#include "common/transport/expert_dispatcher.h"
#include "expert_worker/engine.h"
#include "expert_worker/loaded_experts.h"
#include "kernels/backend.h"

namespace tandem {

inline constexpr std::chrono::seconds kTestDeadline{120};

// Passes requests on, unless it is shut: then it keeps them until it is opened.
class GateLink : public ExpertLink {
 public:
  explicit GateLink(std::shared_ptr<ExpertLink> inner) : inner_(std::move(inner)) {}
  ~GateLink() override { Open(); }

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      ++num_requests_;
      if (shut_) {
        kept_.emplace_back(std::move(request), std::move(done));
        changed_.notify_all();
        return;
      }
    }
    inner_->Send(std::move(request), std::move(done));
  }

  void Shut() {
    std::lock_guard<std::mutex> lock(mu_);
    shut_ = true;
  }
  void Open() {
    std::deque<std::pair<std::shared_ptr<const ExpertRequest>, Done>> kept;
    {
      std::lock_guard<std::mutex> lock(mu_);
      shut_ = false;
      kept.swap(kept_);
    }
    for (auto& [request, done] : kept) inner_->Send(std::move(request), std::move(done));
  }
  // Until so many requests are kept; false if they do not come.
  bool WaitForRequests(size_t count) {
    std::unique_lock<std::mutex> lock(mu_);
    return changed_.wait_for(lock, kTestDeadline, [&] { return kept_.size() >= count; });
  }
  int num_requests() const {
    std::lock_guard<std::mutex> lock(mu_);
    return num_requests_;
  }

 private:
  const std::shared_ptr<ExpertLink> inner_;
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::deque<std::pair<std::shared_ptr<const ExpertRequest>, Done>> kept_;
  bool shut_ = false;
  int num_requests_ = 0;
};

struct TestWorkerOptions {
  Dtype dtype = Dtype::kF32;
  int total_pages = 64;
  int num_expert_workers = 1;  // experts are dealt out in turn; 0: on the engine's own device
  std::vector<uint8_t> ids_with_token;
  absl::Duration page_wait = absl::Seconds(15);
  DispatcherOptions dispatcher;
  LayerTimes* layer_times = nullptr;
};

// Everything of one checkpoint.
class TestWorker {
 public:
  TestWorker(const std::string& dir, TestWorkerOptions options = {}) {
    backend_ = Value(kernels::CreateCpuBackend(2));
    checkpoint_ = Value(Checkpoint::Open(dir));
    const ModelConfig& config = checkpoint_->config();
    const WeightFormat format = DefaultWeightFormat(options.dtype);
    model_ = Value(
        AttentionModel::Load(*checkpoint_, backend_.get(), options.dtype, format, [](float) {}));
    const int num_workers = std::max(1, options.num_expert_workers);
    const Placement placement = Deal(config, num_workers);
    for (int w = 1; w <= num_workers; ++w) {
      loaded_.push_back(Value(LoadedExperts::Create(checkpoint_.get(), backend_.get(), format)));
      const absl::Status status = loaded_.back()->Load(placement, w, [](float) {});
      EXPECT_TRUE(status.ok()) << status;
      gates_.push_back(std::make_shared<GateLink>(
          std::make_shared<ExpertEngine>(backend_.get(), &config, loaded_.back().get(),
                                         ExpertEngineOptions{.dtype = options.dtype})));
    }
    dispatcher_ = std::make_unique<ExpertDispatcher>(
        1, options.dispatcher,
        [this](const Placement::Worker& worker) { return gates_[worker.id - 1]; });
    dispatcher_->SetPlacement(placement);
    if (options.num_expert_workers == 0) {
      experts_ = std::make_unique<LocalExperts>(backend_.get(), config.experts_per_token,
                                                loaded_[0]->Layers());
    } else {
      experts_ = std::make_unique<DispatchedExperts>(backend_.get(), config.experts_per_token,
                                                     dispatcher_.get());
    }
    engine_ = Value(AttentionEngine::Create(
        backend_.get(), model_.get(), experts_.get(),
        {options.total_pages, options.ids_with_token, options.page_wait, options.layer_times}));
  }

  AttentionEngine& engine() { return *engine_; }
  ExpertDispatcher& dispatcher() { return *dispatcher_; }
  const ModelConfig& config() const { return checkpoint_->config(); }
  GateLink& gate(int worker = 0) { return *gates_[worker]; }

  int64_t Count(const std::string& name) const {
    for (const auto& [key, value] : engine_->Counters()) {
      if (key == name) return value;
    }
    ADD_FAILURE() << "no counter " << name;
    return -1;
  }
  // Waits until a counter has a value.
  bool WaitForCount(const std::string& name, int64_t value) const {
    const auto deadline = std::chrono::steady_clock::now() + kTestDeadline;
    while (Count(name) != value) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }

 private:
  static Placement Deal(const ModelConfig& config, int num_workers) {
    Placement placement;
    placement.version = {1, 1};
    placement.num_layers = config.num_layers;
    placement.num_experts = config.num_experts;
    placement.holders.resize(static_cast<size_t>(config.num_layers) * config.num_experts);
    for (int w = 1; w <= num_workers; ++w) {
      placement.workers.push_back({static_cast<WorkerId>(w), ""});
    }
    for (int layer = 0; layer < config.num_layers; ++layer) {
      for (int e = 0; config.IsMoeLayer(layer) && e < config.num_experts; ++e) {
        placement.holders[static_cast<size_t>(layer) * config.num_experts + e] = {
            static_cast<WorkerId>(e % num_workers + 1)};
      }
    }
    return placement;
  }

  template <typename T>
  static T Value(absl::StatusOr<T> value) {
    EXPECT_TRUE(value.ok()) << value.status();
    return *std::move(value);
  }

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<AttentionModel> model_;
  std::vector<std::unique_ptr<LoadedExperts>> loaded_;
  std::vector<std::shared_ptr<GateLink>> gates_;
  std::unique_ptr<ExpertDispatcher> dispatcher_;
  std::unique_ptr<RoutedExperts> experts_;
  std::unique_ptr<AttentionEngine> engine_;
};

// Deals out a session's pages as its gateway must, in the order in which sequences come, so that a
// test has to name them only where it is about pages.
class PagingLink : public AttentionLink {
 public:
  explicit PagingLink(std::unique_ptr<AttentionLink> inner) : inner_(std::move(inner)) {
    for (int32_t page = 0; page < inner_->info().total_pages; ++page) free_.insert(page);
  }

  AttentionWorkerInfo info() const override { return inner_->info(); }
  void OpenSequence(SequenceSpec spec) override {
    pages_[spec.sequence] = spec.pages;
    for (const int32_t page : spec.pages) free_.erase(page);
    inner_->OpenSequence(std::move(spec));
  }
  void Run(Step step) override {
    for (NewBatch& batch : step.new_batches) {
      if (batch.pages.empty()) Number(&batch);
    }
    inner_->Run(std::move(step));
  }
  void Cancel(SequenceId sequence) override {
    GiveBack(sequence);
    inner_->Cancel(sequence);
  }
  void Release(SequenceId sequence) override {
    GiveBack(sequence);
    inner_->Release(sequence);
  }

  const std::vector<int32_t>& pages(SequenceId sequence) { return pages_[sequence]; }

 private:
  // A refused run that is sent again gets the same pages.
  void Number(NewBatch* batch) {
    for (const RowRun& run : batch->runs) {
      if (run.count < 1 || run.first_position < 0) continue;
      std::vector<int32_t>& pages = pages_[run.sequence];
      const int64_t end = PagesFor(int64_t{run.first_position} + run.count);
      if (end > 1000) continue;
      for (int64_t page = PagesFor(run.first_position); page < end; ++page) {
        while (static_cast<int64_t>(pages.size()) <= page) {
          pages.push_back(free_.empty() ? info().total_pages : *free_.begin());
          free_.erase(pages.back());
        }
        batch->pages.push_back(pages[page]);
      }
    }
  }
  void GiveBack(SequenceId sequence) {
    free_.insert(pages_[sequence].begin(), pages_[sequence].end());
    free_.erase(info().total_pages);
    pages_.erase(sequence);
  }

  const std::unique_ptr<AttentionLink> inner_;
  std::set<int32_t> free_;
  std::map<SequenceId, std::vector<int32_t>> pages_;
};

// One session with a worker.
class TestGateway : private AttentionLink::Observer {
 public:
  explicit TestGateway(TestWorker* worker)
      : num_layers_(worker->config().num_layers),
        link_(std::make_unique<PagingLink>(worker->engine().Connect(this))) {}
  ~TestGateway() override { link_.reset(); }

  PagingLink& link() { return *link_; }
  int num_layers() const { return num_layers_; }

  // Opens a sequence of greedy draws; expanded_length -1: as for a request.
  SequenceId Open(std::vector<int32_t> ids, int32_t expanded_length = -1,
                  SamplingParams sampling = {}, std::vector<int32_t> pages = {},
                  std::vector<PageRange> absorbed_pages = {}) {
    SequenceSpec spec;
    spec.pages = std::move(pages);
    spec.absorbed_pages = std::move(absorbed_pages);
    spec.sequence = ++last_sequence_;
    spec.expanded_length = expanded_length >= 0
                               ? expanded_length
                               : SequenceSpec::ExpandedLength(static_cast<int64_t>(ids.size()));
    spec.num_prompt_tokens = static_cast<int32_t>(ids.size());
    spec.token_ids = std::move(ids);
    spec.sampling = std::move(sampling);
    link_->OpenSequence(std::move(spec));
    return last_sequence_;
  }

  BatchId NextBatch() { return ++last_batch_; }
  StepId NextStep() { return ++last_step_; }

  // A step that takes new batches through all layers.
  Step WholeStep(std::vector<NewBatch> batches) {
    Step step;
    step.step = NextStep();
    for (NewBatch& batch : batches) {
      batch.batch = NextBatch();
      step.advance.push_back({batch.batch, 0, num_layers_});
    }
    step.new_batches = std::move(batches);
    return step;
  }
  Step AdvanceStep(std::vector<Advance> advance) {
    Step step;
    step.step = NextStep();
    step.advance = std::move(advance);
    return step;
  }

  StepResult Run(Step step) {
    link_->Run(std::move(step));
    return WaitForResult();
  }
  // As Run, and expects success.
  StepResult RunOk(Step step) {
    StepResult result = Run(std::move(step));
    EXPECT_TRUE(result.status.ok()) << result.status;
    return result;
  }
  StepResult WaitForResult() {
    std::unique_lock<std::mutex> lock(mu_);
    if (!arrived_.wait_for(lock, kTestDeadline, [this] { return !results_.empty(); })) {
      ADD_FAILURE() << "no result came";
      StepResult none;
      none.status = absl::DeadlineExceededError("no result came");
      return none;
    }
    StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  // One decode row per sequence; the drawn ids.
  std::vector<int32_t> Decode(const std::vector<std::pair<SequenceId, int32_t>>& rows) {
    NewBatch batch;
    for (const auto& [sequence, position] : rows) {
      batch.outputs.push_back({static_cast<int32_t>(batch.runs.size()), RowOutputKind::kSample, 0});
      batch.runs.push_back({sequence, position, 1, true});
    }
    std::vector<int32_t> ids;
    for (const RowResult& row : RunOk(WholeStep({batch})).rows) ids.push_back(row.token);
    return ids;
  }

 private:
  void OnStepResult(StepResult result) override {
    std::lock_guard<std::mutex> lock(mu_);
    results_.push_back(std::move(result));
    arrived_.notify_all();
  }
  void OnDown(absl::Status status) override { ADD_FAILURE() << status; }

  const int num_layers_;
  std::mutex mu_;
  std::condition_variable arrived_;
  std::deque<StepResult> results_;  // guarded by mu_
  SequenceId last_sequence_ = 0;
  BatchId last_batch_ = 0;
  StepId last_step_ = 0;
  std::unique_ptr<PagingLink> link_;
};

// A run's outputs: logits of every row, or a draw of its last one.
inline NewBatch Rows(SequenceId sequence, int32_t first, int32_t count, bool logits = false,
                     bool sample = false) {
  NewBatch batch;
  batch.runs.push_back({sequence, first, count, false});
  for (int32_t i = 0; logits && i < count; ++i) {
    batch.outputs.push_back({i, RowOutputKind::kLogits, 0});
  }
  if (sample) batch.outputs.push_back({count - 1, RowOutputKind::kSample, 0});
  return batch;
}

}  // namespace tandem

#endif  // TANDEM_TESTS_ATTENTION_WORKER_ENGINE_HARNESS_H_
