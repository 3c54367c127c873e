#include "expert_worker/engine_core.h"

#include <atomic>
#include <chrono>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log_rate.h"
#include "common/log_scope.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/time_after.h"
#include "common/transport/host_rows.h"
#include "common/work_clock.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

using Clock = ExpertEngineCore::Clock;

// Of the time that a part had when it came: one that takes more is in danger of being late.
constexpr double kSlowShare = 0.5;
// Routes that are merged into one call; bounds the scratch memory.
constexpr int64_t kMaxMergedRoutes = int64_t{1} << 16;

struct Waiting {
  std::shared_ptr<const ExpertRequest> request;
  ExpertLink::Done done;
  Clock::time_point arrival;
  Clock::time_point deadline;
};

LogFields PartFields(const ExpertRequest& request) {
  LogFields fields = FieldsOf(request.traces);
  fields.emplace_back("step", static_cast<int64_t>(request.id.step));
  fields.emplace_back("layer", request.id.layer);
  fields.emplace_back("rows", request.num_rows());
  return fields;
}

int64_t RowBytes(const ExpertRequest& request) {
  return static_cast<int64_t>(request.rows.bytes());
}

}  // namespace

class ExpertEngineCore::Impl {
 public:
  Impl(kernels::Backend* backend, const ModelConfig* config, const LoadedExperts* experts,
       ExpertEngineOptions options, std::function<void()> wake,
       std::function<Clock::time_point()> now)
      : backend_(*backend),
        config_(*config),
        experts_(*experts),
        options_(options),
        wake_(std::move(wake)),
        now_(std::move(now)),
        expert_tokens_(static_cast<size_t>(config->num_layers) * config->num_experts) {}
  ~Impl();

  void Send(std::shared_ptr<const ExpertRequest> request, Done done);
  bool Turn();
  CounterSnapshot Counters() const;
  std::vector<int64_t> TakeExpertTokens();
  absl::Duration busy_for() const { return work_clock_.elapsed(); }
  absl::Duration busy_total() const { return absl::Microseconds(busy_us_total_.load()); }

 private:
  absl::Status Validate(const ExpertRequest& request) const;
  absl::Status Enqueue(std::shared_ptr<const ExpertRequest> request, Done* done,
                       Clock::time_point arrival);
  std::vector<Waiting> TakeOldestLayer();
  void Execute(std::vector<Waiting> batch);
  void Answer(Waiting& waiting, ExpertReply reply);
  void WarnOf(const ExpertRequest& request, Clock::time_point now, const std::string& what);
  absl::Status Compute(const std::vector<Waiting>& batch);
  void WriteRows(const std::vector<Waiting>& batch, const kernels::DeviceTensor& rows);
  ExpertReply MakeReply(const ExpertRequest& request, int64_t first_route, int64_t first_row);
  absl::Status EnsureScratch(size_t bytes, std::unique_ptr<kernels::Buffer>* buffer);

  kernels::Backend& backend_;
  const ModelConfig& config_;
  const LoadedExperts& experts_;
  const ExpertEngineOptions options_;
  const std::function<void()> wake_;
  const std::function<Clock::time_point()> now_;

  WorkClock work_clock_;
  std::atomic<int64_t> requests_total_{0};
  std::atomic<int64_t> merged_requests_total_{0};
  std::atomic<int64_t> rows_total_{0};
  std::atomic<int64_t> routes_total_{0};
  std::vector<std::atomic<int64_t>> expert_tokens_;  // [num_layers * num_experts]
  std::atomic<int64_t> dropped_total_{0};
  std::atomic<int64_t> requests_live_{0};
  std::atomic<int64_t> requests_waiting_{0};
  std::atomic<int64_t> busy_us_total_{0};

  // Of the engine's thread; device memory that is kept from batch to batch.
  std::unique_ptr<kernels::Buffer> rows_buffer_;
  std::unique_ptr<kernels::Buffer> expert_rows_buffer_;
  std::unique_ptr<kernels::Buffer> combined_buffer_;
  std::unique_ptr<kernels::Buffer> routes_buffer_;
  kernels::DeviceTensor expert_rows_;    // [routes, hidden] of the batch that is computed
  kernels::DeviceTensor combined_rows_;  // [rows, hidden]
  HostRowsPool rows_pool_;               // of replies
  LogRate log_rate_;                     // of what is said of single parts

  Mutex mutex_;
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);  // oldest first
  int64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// ---- taking requests ----------------------------------------------------------------------------

absl::Status ExpertEngineCore::Impl::Validate(const ExpertRequest& request) const {
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

void ExpertEngineCore::Impl::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  ++requests_total_;
  absl::Status status = Validate(*request);
  if (status.ok()) status = Enqueue(std::move(request), &done, now_());
  if (!status.ok()) done({std::move(status), {}, nullptr});
}

// Takes `done` over unless it fails.
absl::Status ExpertEngineCore::Impl::Enqueue(std::shared_ptr<const ExpertRequest> request,
                                             Done* done, Clock::time_point arrival) {
  {
    MutexLock lock(mutex_);
    const int64_t bytes = RowBytes(*request);
    if (waiting_bytes_ + bytes > options_.max_waiting_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(waiting_bytes_, " bytes of rows wait at the expert worker, and ", bytes,
                       " more would be over the limit of ", options_.max_waiting_bytes));
    }
    waiting_bytes_ += bytes;
    const Clock::time_point deadline = After(arrival, request->time_left);
    waiting_.push_back({std::move(request), std::move(*done), arrival, deadline});
    ++requests_live_;
    ++requests_waiting_;
    work_clock_.Given();
  }
  wake_();
  return absl::OkStatus();
}

// ---- the engine thread --------------------------------------------------------------------------

bool ExpertEngineCore::Impl::Turn() {
  {
    MutexLock lock(mutex_);
    if (waiting_.empty()) {
      work_clock_.Rest();
      return false;
    }
  }
  work_clock_.Begin();
  const Clock::time_point begin = now_();
  Execute(TakeOldestLayer());
  busy_us_total_ += std::chrono::duration_cast<std::chrono::microseconds>(now_() - begin).count();
  return true;
}

// The oldest request, and of those that wait for the same layer as many as fit into one call.
std::vector<Waiting> ExpertEngineCore::Impl::TakeOldestLayer() {
  MutexLock lock(mutex_);
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
  requests_waiting_ -= static_cast<int64_t>(batch.size());
  return batch;
}

void ExpertEngineCore::Impl::Answer(Waiting& waiting, ExpertReply reply) {
  --requests_live_;
  const Clock::time_point now = now_();
  const absl::Duration took = absl::FromChrono(now - waiting.arrival);
  const absl::Duration time_left = waiting.request->time_left;
  if (absl::IsDeadlineExceeded(reply.status)) {
    WarnOf(*waiting.request, now,
           absl::StrCat("was dropped: its ", absl::FormatDuration(time_left),
                        " were over before it was computed"));
  } else if (took > time_left * kSlowShare) {
    WarnOf(*waiting.request, now,
           absl::StrCat("took ", absl::FormatDuration(took), " of the ",
                        absl::FormatDuration(time_left), " that it had"));
  } else if (spdlog::should_log(spdlog::level::debug)) {
    const LogScope scope(PartFields(*waiting.request));
    spdlog::debug("a part took {}", absl::FormatDuration(took));
  }
  if (options_.times != nullptr) options_.times->ObservePart(now - waiting.arrival);
  waiting.done(std::move(reply));
}

// With the traces of its requests.
void ExpertEngineCore::Impl::WarnOf(const ExpertRequest& request, Clock::time_point now,
                                    const std::string& what) {
  const std::optional<std::string> left_out = log_rate_.Take(now);
  if (!left_out.has_value()) return;
  const LogScope scope(PartFields(request));
  spdlog::warn("a part {}{}", what, *left_out);
}

// Answers every request of one layer.
void ExpertEngineCore::Impl::Execute(std::vector<Waiting> batch) {
  const auto in_use = experts_.Use();
  const Clock::time_point now = now_();
  std::vector<Waiting> live;
  for (Waiting& waiting : batch) {
    const ExpertRequest& request = *waiting.request;
    absl::Status status;
    if (options_.times != nullptr) options_.times->ObserveQueue(now - waiting.arrival);
    if (waiting.deadline <= now) {
      ++dropped_total_;
      status = absl::DeadlineExceededError("the request's time was up before it was computed");
    } else {
      status = experts_.CheckVersion(request.placement);
      if (status.ok()) {
        status = experts_.Check(request.id.layer, request.route_experts);  // may have been let go
      }
    }
    if (status.ok()) {
      live.push_back(std::move(waiting));
    } else {
      Answer(waiting, {std::move(status), {}, nullptr});
    }
  }
  if (live.empty()) return;
  if (live.size() > 1) merged_requests_total_ += static_cast<int64_t>(live.size());
  const absl::Status status = Compute(live);
  int64_t first_route = 0, first_row = 0;
  for (Waiting& waiting : live) {
    const ExpertRequest& request = *waiting.request;
    ExpertReply reply =
        status.ok() ? MakeReply(request, first_route, first_row) : ExpertReply{status, {}, nullptr};
    first_route += request.num_routes();
    first_row += request.num_rows();
    Answer(waiting, std::move(reply));
  }
  if (options_.times != nullptr) options_.times->ObserveCall(now_() - now);
}

// Runs every route of the batch in one call, into expert_rows_, and combines the rows, into
// combined_rows_, if any request asks for it.
absl::Status ExpertEngineCore::Impl::Compute(const std::vector<Waiting>& batch) {
  std::vector<int32_t> route_experts, route_rows, offsets = {0};
  std::vector<float> weights;
  bool any_combined = false;
  for (const Waiting& waiting : batch) {
    const ExpertRequest& request = *waiting.request;
    const auto first_route = static_cast<int32_t>(route_experts.size());
    route_experts.insert(route_experts.end(), request.route_experts.begin(),
                         request.route_experts.end());
    weights.insert(weights.end(), request.route_weights.begin(), request.route_weights.end());
    for (int i = 0; i < request.num_rows(); ++i) {
      const int count = request.route_offsets[i + 1] - request.route_offsets[i];
      route_rows.insert(route_rows.end(), count, static_cast<int32_t>(offsets.size()) - 1);
      offsets.push_back(first_route + request.route_offsets[i + 1]);
      any_combined = any_combined || request.combined[i];
    }
  }
  const auto num_routes = static_cast<int64_t>(route_experts.size());
  const auto num_rows = static_cast<int64_t>(offsets.size()) - 1;
  rows_total_ += num_rows;
  routes_total_ += num_routes;
  const size_t first = static_cast<size_t>(batch[0].request->id.layer) * config_.num_experts;
  std::vector<int32_t> tokens(config_.num_experts);
  for (const int32_t expert : route_experts) ++tokens[expert];
  for (size_t expert = 0; expert < tokens.size(); ++expert) {
    expert_tokens_[first + expert] += tokens[expert];
  }
  if (options_.times != nullptr) options_.times->ObserveRows(num_rows, tokens);

  const int64_t hidden = config_.hidden_size;
  const Dtype dtype = options_.dtype;
  const size_t row_bytes = static_cast<size_t>(hidden) * DtypeBytes(dtype);
  TANDEM_RETURN_IF_ERROR(EnsureScratch(num_rows * row_bytes, &rows_buffer_));
  TANDEM_RETURN_IF_ERROR(EnsureScratch(num_routes * row_bytes, &expert_rows_buffer_));
  TANDEM_RETURN_IF_ERROR(EnsureScratch(num_rows * row_bytes, &combined_buffer_));
  TANDEM_RETURN_IF_ERROR(
      EnsureScratch((3 * num_routes + num_rows + 1) * sizeof(int32_t), &routes_buffer_));
  size_t used_bytes = 0;
  const auto put = [&](const auto& values, Dtype value_dtype) {
    const auto size = static_cast<int64_t>(values.size());
    const auto tensor = routes_buffer_->Tensor(value_dtype, {size}, used_bytes);
    used_bytes += tensor.bytes();
    backend_.Write(values.data(), tensor);
    return tensor;
  };
  const auto device_experts = put(route_experts, Dtype::kI32);
  const auto device_rows = put(route_rows, Dtype::kI32);
  const auto device_offsets = put(offsets, Dtype::kI32);
  const auto device_weights = put(weights, Dtype::kF32);
  const auto rows = rows_buffer_->Tensor(dtype, {num_rows, hidden});
  WriteRows(batch, rows);
  expert_rows_ = expert_rows_buffer_->Tensor(dtype, {num_routes, hidden});
  combined_rows_ = combined_buffer_->Tensor(dtype, {num_rows, hidden});
  const auto& layer = experts_.Layer(batch[0].request->id.layer);
  backend_.ExpertMlp({rows, layer, device_experts, device_rows, expert_rows_});
  if (any_combined)
    backend_.Combine({expert_rows_, device_offsets, device_weights, combined_rows_});
  return absl::OkStatus();
}

// The requests' rows, one after the other.
void ExpertEngineCore::Impl::WriteRows(const std::vector<Waiting>& batch,
                                       const kernels::DeviceTensor& rows) {
  int64_t next = 0;
  for (const Waiting& waiting : batch) {
    const TensorView& from = waiting.request->rows;
    const int64_t count = from.rows();
    if (from.row_stride == from.width()) {
      backend_.Write(from.data, rows.slice_rows(next, count));
    } else {
      for (int64_t i = 0; i < count; ++i) {
        backend_.Write(from.row(i), rows.slice_rows(next + i, 1));
      }
    }
    next += count;
  }
}

// A request's answer from expert_rows_, where its routes begin at `first_route`, and
// combined_rows_. Each run of rows of one kind is read back by one call.
ExpertReply ExpertEngineCore::Impl::MakeReply(const ExpertRequest& request, int64_t first_route,
                                              int64_t first_row) {
  ExpertReply reply;
  const OwnedTensor rows =
      rows_pool_.Take(options_.dtype, {request.num_output_rows(), config_.hidden_size});
  reply.rows = rows.view;
  reply.owner = rows.memory;
  std::unique_ptr<kernels::DeviceEvent> last;
  int64_t next = 0;
  for (int begin = 0; begin < request.num_rows();) {
    int end = begin + 1;
    while (end < request.num_rows() && request.combined[end] == request.combined[begin]) ++end;
    const int32_t route_begin = request.route_offsets[begin];
    const auto from = request.combined[begin]
                          ? combined_rows_.slice_rows(first_row + begin, end - begin)
                          : expert_rows_.slice_rows(first_route + route_begin,
                                                    request.route_offsets[end] - route_begin);
    last = backend_.Read(from, reply.rows.row(next));
    next += from.dim(0);
    begin = end;
  }
  if (last != nullptr) last->Wait();
  return reply;
}

absl::Status ExpertEngineCore::Impl::EnsureScratch(size_t bytes,
                                                   std::unique_ptr<kernels::Buffer>* buffer) {
  if (*buffer != nullptr && (*buffer)->bytes() >= bytes) return absl::OkStatus();
  buffer->reset();
  TANDEM_ASSIGN_OR_RETURN(*buffer, backend_.Allocate(bytes));
  return absl::OkStatus();
}

// ---- life ---------------------------------------------------------------------------------------

ExpertEngineCore::Impl::~Impl() {
  std::deque<Waiting> left;
  {
    MutexLock lock(mutex_);
    left.swap(waiting_);
  }
  for (Waiting& waiting : left) {
    waiting.done({absl::UnavailableError("the expert worker has ended"), {}, nullptr});
  }
}

std::vector<int64_t> ExpertEngineCore::Impl::TakeExpertTokens() {
  std::vector<int64_t> taken;
  for (std::atomic<int64_t>& tokens : expert_tokens_) taken.push_back(tokens.exchange(0));
  return taken;
}

CounterSnapshot ExpertEngineCore::Impl::Counters() const {
  return {{"requests_total", requests_total_.load()},
          {"merged_requests_total", merged_requests_total_.load()},
          {"rows_total", rows_total_.load()},
          {"routes_total", routes_total_.load()},
          {"dropped_total", dropped_total_.load()},
          {"requests_live", requests_live_.load()},
          {"requests_waiting", requests_waiting_.load()},
          {"experts_loaded", experts_.num_loaded()},
          {"expert_loads_total", experts_.num_loads()},
          {"expert_bytes", experts_.bytes()},
          {"busy_ms", absl::ToInt64Milliseconds(busy_for())},
          {"busy_us_total", busy_us_total_}};
}

ExpertEngineCore::ExpertEngineCore(kernels::Backend* backend, const ModelConfig* config,
                                   const LoadedExperts* experts, ExpertEngineOptions options,
                                   std::function<void()> wake,
                                   std::function<Clock::time_point()> now)
    : impl_(std::make_unique<Impl>(backend, config, experts, options, std::move(wake),
                                   std::move(now))) {}
ExpertEngineCore::~ExpertEngineCore() = default;

void ExpertEngineCore::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  impl_->Send(std::move(request), std::move(done));
}

bool ExpertEngineCore::Turn() { return impl_->Turn(); }
CounterSnapshot ExpertEngineCore::Counters() const { return impl_->Counters(); }
std::vector<int64_t> ExpertEngineCore::TakeExpertTokens() { return impl_->TakeExpertTokens(); }
absl::Duration ExpertEngineCore::busy_for() const { return impl_->busy_for(); }
absl::Duration ExpertEngineCore::busy_total() const { return impl_->busy_total(); }

}  // namespace tandem
