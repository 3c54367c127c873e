#include "expert_worker/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "expert_worker/loaded_experts.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

// Routes that are merged into one call; bounds the scratch memory.
constexpr int64_t kMaxMergedRoutes = int64_t{1} << 16;

struct Waiting {
  std::shared_ptr<const ExpertRequest> request;
  ExpertLink::Done done;
  Clock::time_point deadline;
};

int64_t RowBytes(const ExpertRequest& request) {
  return static_cast<int64_t>(request.rows.bytes());
}

}  // namespace

// Rows, scratch and replies are host memory, which is the CPU backend's.
class ExpertEngine::Impl {
 public:
  Impl(kernels::Backend* backend, const Checkpoint* checkpoint, ExpertEngineOptions options)
      : backend_(backend),
        config_(checkpoint->config()),
        options_(options),
        experts_(checkpoint, options.dtype) {
    if (!options_.inline_execution) thread_ = std::thread([this] { Run(); });
  }
  ~Impl();

  LoadedExperts& experts() { return experts_; }
  void Send(std::shared_ptr<const ExpertRequest> request, Done done);
  CounterSnapshot Counters() const;

 private:
  absl::Status Validate(const ExpertRequest& request) const;
  absl::Status Enqueue(std::shared_ptr<const ExpertRequest> request, Done* done,
                       Clock::time_point deadline);
  void Run();
  std::vector<Waiting> TakeOldestLayer();
  void Execute(std::vector<Waiting> batch);
  absl::Status Compute(const std::vector<Waiting>& batch);
  TensorView MergedRows(const std::vector<Waiting>& batch, int64_t num_rows);
  ExpertReply MakeReply(const ExpertRequest& request, int64_t first_route);
  absl::Status EnsureScratch(size_t bytes, std::unique_ptr<kernels::Buffer>* buffer);

  kernels::Backend* const backend_;
  const ModelConfig& config_;
  const ExpertEngineOptions options_;
  LoadedExperts experts_;

  std::atomic<int64_t> requests_total_{0};
  std::atomic<int64_t> merged_requests_total_{0};
  std::atomic<int64_t> rows_total_{0};
  std::atomic<int64_t> routes_total_{0};
  std::atomic<int64_t> dropped_total_{0};
  std::atomic<int64_t> requests_live_{0};

  // Of the thread that computes.
  std::mutex computing_;  // inline_execution only: callers take turns
  std::unique_ptr<kernels::Buffer> rows_scratch_;
  std::unique_ptr<kernels::Buffer> expert_rows_scratch_;
  TensorView expert_rows_;  // [routes, hidden] of the batch that is computed

  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<Waiting> waiting_;  // guarded by mu_, oldest first
  int64_t waiting_bytes_ = 0;    // guarded by mu_
  bool stop_ = false;            // guarded by mu_

  std::thread thread_;
};

// ---- taking requests ----------------------------------------------------------------------------

absl::Status ExpertEngine::Impl::Validate(const ExpertRequest& request) const {
  if (request.rows.dtype != options_.dtype) {
    return absl::InvalidArgumentError(absl::StrCat("rows are ", DtypeName(request.rows.dtype),
                                                   ", but this expert worker runs in ",
                                                   DtypeName(options_.dtype)));
  }
  if (request.rows.rank != 2 || request.rows.width() != config_.hidden_size ||
      request.rows.rows() != request.num_rows()) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.rows.rows(), " rows of ", request.rows.width(), " values came, but ",
                     request.num_rows(), " of ", config_.hidden_size, " were expected"));
  }
  return experts_.Check(request.id.layer, request.route_experts);
}

void ExpertEngine::Impl::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  ++requests_total_;
  absl::Status status = Validate(*request);
  const Clock::time_point deadline =
      Clock::now() + absl::ToChronoNanoseconds(
                         std::clamp(request->time_left, -absl::Hours(1), absl::Hours(24 * 365)));
  if (status.ok() && options_.inline_execution) {
    std::lock_guard<std::mutex> lock(computing_);
    ++requests_live_;
    std::vector<Waiting> batch;
    batch.push_back({std::move(request), std::move(done), deadline});
    Execute(std::move(batch));
    return;
  }
  if (status.ok()) status = Enqueue(std::move(request), &done, deadline);
  if (!status.ok()) done({std::move(status), {}, nullptr});
}

// Takes `done` over unless it fails.
absl::Status ExpertEngine::Impl::Enqueue(std::shared_ptr<const ExpertRequest> request, Done* done,
                                         Clock::time_point deadline) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (stop_) return absl::UnavailableError("the expert worker is ending");
    const int64_t bytes = RowBytes(*request);
    if (waiting_bytes_ + bytes > options_.max_waiting_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(waiting_bytes_, " bytes of rows wait at the expert worker, and ", bytes,
                       " more would be over the limit of ", options_.max_waiting_bytes));
    }
    waiting_bytes_ += bytes;
    waiting_.push_back({std::move(request), std::move(*done), deadline});
    ++requests_live_;
  }
  changed_.notify_one();
  return absl::OkStatus();
}

// ---- the engine thread --------------------------------------------------------------------------

void ExpertEngine::Impl::Run() {
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
    }
    Execute(TakeOldestLayer());
  }
}

// The oldest request, and of those that wait for the same layer as many as fit into one call.
std::vector<Waiting> ExpertEngine::Impl::TakeOldestLayer() {
  std::lock_guard<std::mutex> lock(mu_);
  std::vector<Waiting> batch;
  std::deque<Waiting> rest;
  const uint32_t layer = waiting_.front().request->id.layer;
  int64_t num_routes = 0;
  for (Waiting& waiting : waiting_) {
    const int64_t routes = waiting.request->num_routes();
    if (waiting.request->id.layer == layer &&
        (batch.empty() || num_routes + routes <= kMaxMergedRoutes)) {
      num_routes += routes;
      waiting_bytes_ -= RowBytes(*waiting.request);
      batch.push_back(std::move(waiting));
    } else {
      rest.push_back(std::move(waiting));
    }
  }
  waiting_ = std::move(rest);
  return batch;
}

// Answers every request of one layer.
void ExpertEngine::Impl::Execute(std::vector<Waiting> batch) {
  const Clock::time_point now = Clock::now();
  std::vector<Waiting> live;
  for (Waiting& waiting : batch) {
    if (waiting.deadline > now) {
      live.push_back(std::move(waiting));
      continue;
    }
    ++dropped_total_;
    --requests_live_;
    waiting.done({absl::DeadlineExceededError("the request's time was up before it was computed"),
                  {},
                  nullptr});
  }
  if (live.empty()) return;
  if (live.size() > 1) merged_requests_total_ += static_cast<int64_t>(live.size());
  const absl::Status status = Compute(live);
  int64_t first_route = 0;
  for (Waiting& waiting : live) {
    ExpertReply reply =
        status.ok() ? MakeReply(*waiting.request, first_route) : ExpertReply{status, {}, nullptr};
    first_route += waiting.request->num_routes();
    --requests_live_;
    waiting.done(std::move(reply));
  }
}

// Runs every route of the batch in one call, into expert_rows_.
absl::Status ExpertEngine::Impl::Compute(const std::vector<Waiting>& batch) {
  std::vector<int32_t> route_experts;
  std::vector<int32_t> route_rows;
  int64_t num_rows = 0;
  for (const Waiting& waiting : batch) {
    const ExpertRequest& request = *waiting.request;
    route_experts.insert(route_experts.end(), request.route_experts.begin(),
                         request.route_experts.end());
    for (int i = 0; i < request.num_rows(); ++i) {
      const int count = request.route_offsets[i + 1] - request.route_offsets[i];
      route_rows.insert(route_rows.end(), count, static_cast<int32_t>(num_rows + i));
    }
    num_rows += request.num_rows();
  }
  const int64_t num_routes = static_cast<int64_t>(route_experts.size());
  rows_total_ += num_rows;
  routes_total_ += num_routes;

  const size_t row_bytes = static_cast<size_t>(config_.hidden_size) * DtypeBytes(options_.dtype);
  TANDEM_RETURN_IF_ERROR(EnsureScratch(num_rows * row_bytes, &rows_scratch_));
  TANDEM_RETURN_IF_ERROR(EnsureScratch(num_routes * row_bytes, &expert_rows_scratch_));
  expert_rows_ =
      TensorView(expert_rows_scratch_->data(), options_.dtype, {num_routes, config_.hidden_size});

  kernels::ExpertMlpArgs args;
  args.x = MergedRows(batch, num_rows);
  args.experts = experts_.Layer(batch[0].request->id.layer);
  args.route_experts = route_experts;
  args.route_rows = route_rows;
  args.out = expert_rows_;
  backend_->ExpertMlp(args);
  backend_->Synchronize();
  return absl::OkStatus();
}

// A single request's rows where they lie, several requests' rows one after the other.
TensorView ExpertEngine::Impl::MergedRows(const std::vector<Waiting>& batch, int64_t num_rows) {
  const TensorView& first = batch[0].request->rows;
  if (batch.size() == 1 && first.row_stride == first.width()) return first;
  const TensorView merged(rows_scratch_->data(), options_.dtype, {num_rows, config_.hidden_size});
  const size_t row_bytes = static_cast<size_t>(config_.hidden_size) * DtypeBytes(options_.dtype);
  int64_t next = 0;
  for (const Waiting& waiting : batch) {
    for (int64_t i = 0; i < waiting.request->rows.rows(); ++i) {
      std::memcpy(merged.row(next++), waiting.request->rows.row(i), row_bytes);
    }
  }
  return merged;
}

// A request's answer from expert_rows_, where its routes begin at `first_route`. Each run of
// combined rows is one call.
ExpertReply ExpertEngine::Impl::MakeReply(const ExpertRequest& request, int64_t first_route) {
  const size_t row_bytes = static_cast<size_t>(config_.hidden_size) * DtypeBytes(options_.dtype);
  const int64_t num_output_rows = request.num_output_rows();
  std::shared_ptr<std::byte[]> memory(new std::byte[num_output_rows * row_bytes]);
  ExpertReply reply;
  reply.rows = TensorView(memory.get(), options_.dtype, {num_output_rows, config_.hidden_size});
  reply.owner = std::move(memory);
  int64_t next = 0;
  for (int begin = 0; begin < request.num_rows();) {
    int end = begin + 1;
    while (end < request.num_rows() && request.combined[end] == request.combined[begin]) ++end;
    const int32_t route_begin = request.route_offsets[begin];
    const int32_t num_routes = request.route_offsets[end] - route_begin;
    const TensorView expert_rows = expert_rows_.slice_rows(first_route + route_begin, num_routes);
    if (request.combined[begin]) {
      std::vector<int32_t> offsets(request.route_offsets.begin() + begin,
                                   request.route_offsets.begin() + end + 1);
      for (int32_t& offset : offsets) offset -= route_begin;
      kernels::CombineArgs args;
      args.expert_rows = expert_rows;
      args.offsets = offsets;
      args.weights = absl::MakeConstSpan(request.route_weights).subspan(route_begin, num_routes);
      args.out = reply.rows.slice_rows(next, end - begin);
      backend_->Combine(args);
      next += end - begin;
    } else {
      std::memcpy(reply.rows.row(next), expert_rows.data, num_routes * row_bytes);
      next += num_routes;
    }
    begin = end;
  }
  backend_->Synchronize();
  return reply;
}

absl::Status ExpertEngine::Impl::EnsureScratch(size_t bytes,
                                               std::unique_ptr<kernels::Buffer>* buffer) {
  if (*buffer != nullptr && (*buffer)->bytes() >= bytes) return absl::OkStatus();
  buffer->reset();
  TANDEM_ASSIGN_OR_RETURN(*buffer, backend_->Allocate(bytes));
  return absl::OkStatus();
}

// ---- life ---------------------------------------------------------------------------------------

ExpertEngine::Impl::~Impl() {
  std::deque<Waiting> left;
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  {
    std::lock_guard<std::mutex> lock(mu_);
    left.swap(waiting_);
  }
  for (Waiting& waiting : left) {
    waiting.done({absl::UnavailableError("the expert worker has ended"), {}, nullptr});
  }
}

CounterSnapshot ExpertEngine::Impl::Counters() const {
  return {{"requests_total", requests_total_.load()},
          {"merged_requests_total", merged_requests_total_.load()},
          {"rows_total", rows_total_.load()},
          {"routes_total", routes_total_.load()},
          {"dropped_total", dropped_total_.load()},
          {"requests_live", requests_live_.load()},
          {"experts_loaded", experts_.num_loaded()}};
}

ExpertEngine::ExpertEngine(kernels::Backend* backend, const Checkpoint* checkpoint,
                           ExpertEngineOptions options)
    : impl_(std::make_unique<Impl>(backend, checkpoint, options)) {}
ExpertEngine::~ExpertEngine() = default;

absl::Status ExpertEngine::Load(const Placement& placement, WorkerId self,
                                const std::function<void(float)>& progress) {
  return impl_->experts().Load(placement, self, progress);
}

void ExpertEngine::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  impl_->Send(std::move(request), std::move(done));
}

CounterSnapshot ExpertEngine::Counters() const { return impl_->Counters(); }

}  // namespace tandem
