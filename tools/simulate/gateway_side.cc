#include "tools/simulate/gateway_side.h"

#include <algorithm>

#include "absl/time/time.h"
#include "common/check.h"

namespace tandem::simulate {
namespace {

constexpr Nanos kAskAgain = 100'000'000;  // a stream that was refused

absl::Time TimeOf(Nanos now) { return absl::UnixEpoch() + absl::Nanoseconds(now); }
double Ms(Nanos duration) { return 1e-6 * static_cast<double>(duration); }

}  // namespace

GatewaySide::GatewaySide(EventQueue* events, const CostModel* costs, const SchedulerPolicy& policy,
                         const Load& load, uint64_t seed)
    : events_(*events), costs_(*costs), load_(load), scheduler_(policy), random_(seed) {}

void GatewaySide::AddWorker(WorkerId id, AttentionSide* worker, const AttentionWorkerInfo& info) {
  workers_[id] = worker;
  TANDEM_CHECK(scheduler_.AddWorker(id, info).ok());
}

void GatewaySide::Start() {
  // In the middle of their answers, so that they do not all end together.
  for (int64_t stream = 0; stream < load_.streams; ++stream) Ask(1 - DrawUniform(random_));
  if (load_.streams == 0) AskNext();
}

void GatewaySide::AskNext() {
  const double seconds = DrawInterval(random_, load_.requests_per_s);
  events_.After(static_cast<Nanos>(1e9 * seconds), [this] {
    Ask(1);
    AskNext();
  });
}

void GatewaySide::Ask(double share_of_output) {
  Job job;
  const int64_t prompt = load_.prompt.Draw(random_);
  const auto output = static_cast<double>(load_.output.Draw(random_));
  // No two begin alike, but for what all share.
  job.prompt.assign(prompt, static_cast<int32_t>(requests_ + 1));
  std::fill_n(job.prompt.begin(), std::min(prompt, load_.shared_prefix), 0);
  job.expanded_length = SequenceSpec::ExpandedLength(prompt);
  job.max_new_tokens = std::max(static_cast<int32_t>(output * share_of_output), 1);
  ++requests_;
  Enqueue(costs_.constants().gateway_request_us, [this, came = events_.now(), job] {
    const JobId id = ++last_job_;
    if (!scheduler_.Add(id, job, TimeOf(events_.now())).ok()) {
      ++times_.refused;
      if (load_.streams > 0) events_.After(kAskAgain, [this] { Ask(1); });
      return;
    }
    Request& request = live_[id];
    request.came = came;
    request.prompt_tokens = static_cast<int64_t>(job.prompt.size());
  });
}

void GatewaySide::OnStepDone(WorkerId worker, StepResult result) {
  events_.After(CostModel::FromUs(costs_.constants().gateway_latency_us),
                [this, worker, result = std::move(result)] {
                  const CostConstants& constants = costs_.constants();
                  const auto tokens = static_cast<double>(result.rows.size());
                  Enqueue(constants.gateway_step_us / 2 + constants.gateway_token_us * tokens,
                          [this, worker, result] { Take(scheduler_.OnStepDone(worker, result)); });
                });
}

void GatewaySide::Enqueue(double us, std::function<void()> event) {
  queue_.emplace_back(us, std::move(event));
  if (!processing_) Process();
}

void GatewaySide::Process() {
  processing_ = !queue_.empty();
  if (!processing_) return;
  double us = 0;
  for (const Event& event : queue_) us += event.first;
  const Nanos duration = CostModel::FromUs(us);
  busy_ += duration;
  events_.After(duration, [this, taken = std::exchange(queue_, {})] {
    for (const Event& event : taken) event.second();
    SendOrders();
  });
}

void GatewaySide::SendOrders() {
  const int64_t steps_before = steps_;
  std::vector<std::function<void()>> orders_out;
  bool again = true;
  while (again) {
    again = false;
    for (const auto& [id, worker] : workers_) {
      WorkerOrders orders = scheduler_.NextStep(id);
      again = again || orders.changed_something();
      Take(orders.events);
      orders.events.clear();
      steps_ += orders.step.has_value() ? 1 : 0;
      if (!orders.step.has_value() && orders.cancels.empty() && orders.opens.empty()) continue;
      orders_out.emplace_back([worker = worker, orders = std::move(orders)] {
        for (const SequenceId sequence : orders.cancels) worker->Cancel(sequence);
        for (const SequenceSpec& spec : orders.opens) worker->Open(spec);
        if (orders.step.has_value()) worker->Run(*orders.step);
      });
    }
  }
  const auto sent = static_cast<double>(steps_ - steps_before);
  const Nanos duration = CostModel::FromUs(sent * costs_.constants().gateway_step_us / 2);
  busy_ += duration;
  const Nanos arrives = duration + CostModel::FromUs(costs_.constants().gateway_latency_us);
  for (std::function<void()>& order : orders_out) events_.After(arrives, std::move(order));
  events_.After(duration, [this] { Process(); });
}

void GatewaySide::Take(const std::vector<SchedulerEvent>& events) {
  for (const SchedulerEvent& event : events) {
    const auto it = live_.find(event.job);
    TANDEM_CHECK(it != live_.end());
    if (event.kind == SchedulerEvent::Kind::kToken) TakeToken(event.job, it->second);
    if (event.kind != SchedulerEvent::Kind::kDone) continue;
    ++(event.status.ok() ? times_.finished : times_.failed);
    live_.erase(it);
    if (load_.streams > 0) Ask(1);
  }
}

void GatewaySide::TakeToken(JobId id, Request& request) {
  ++times_.tokens;
  if (request.tokens++ == 0) {
    if (id <= static_cast<JobId>(load_.streams)) ++streams_begun_;
    times_.prompt_tokens += request.prompt_tokens;
    times_.first_token_ms.push_back(Ms(events_.now() - request.came));
  } else {
    times_.between_tokens_ms.push_back(Ms(events_.now() - request.last_token));
  }
  request.last_token = events_.now();
}

void GatewaySide::ResetCounts() {
  times_ = {};
  steps_ = 0;
  busy_ = 0;
}

}  // namespace tandem::simulate
