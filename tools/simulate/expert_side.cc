#include "tools/simulate/expert_side.h"

namespace tandem::simulate {

void ExpertSide::Send(std::shared_ptr<ExpertCall> call) {
  events_.After(costs_.Latency(), [this, call = std::move(call)] {
    const Nanos received = in_.Take(events_.now(), costs_.Transfer(call->rows));
    events_.At(received, [this, call] {
      call->arrived = events_.now();
      waiting_.push_back(call);
      if (!computing_) Compute();
    });
  });
}

void ExpertSide::Compute() {
  computing_ = !waiting_.empty();
  if (!computing_) return;
  std::vector<std::shared_ptr<ExpertCall>> batch;
  std::deque<std::shared_ptr<ExpertCall>> rest;
  std::map<int32_t, int64_t> routes;
  const int layer = waiting_.front()->layer;
  for (std::shared_ptr<ExpertCall>& call : waiting_) {
    if (call->layer != layer) {
      rest.push_back(std::move(call));
      continue;
    }
    call->begun = events_.now();
    for (const auto& [expert, count] : call->experts) routes[expert] += count;
    batch.push_back(std::move(call));
  }
  waiting_ = std::move(rest);
  Nanos duration = costs_.ExpertCall();
  for (const auto& [expert, count] : routes) {
    duration += costs_.Expert(count);
    counts_.routes += count;
  }
  ++counts_.computations;
  counts_.calls += static_cast<int64_t>(batch.size());
  counts_.experts += static_cast<int64_t>(routes.size());
  busy_ += duration;
  events_.After(duration, [this, batch = std::move(batch)] {
    for (const std::shared_ptr<ExpertCall>& call : batch) {
      call->computed = events_.now();
      const Nanos left = out_.Take(events_.now(), costs_.Transfer(call->reply_rows));
      events_.At(left + costs_.Latency(), [call] { call->answered(call); });
    }
    Compute();
  });
}

void ExpertSide::ResetCounts() {
  counts_ = {};
  busy_ = 0;
  in_.ResetBusy();
  out_.ResetBusy();
}

}  // namespace tandem::simulate
