#include "common/transport/dispatched_layer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace tandem {
namespace {

using TimePoint = DispatchedLayer::TimePoint;

}  // namespace

DispatchedLayer::DispatchedLayer(const RowBatch& batch, std::shared_ptr<DispatchCounts> counts,
                                 std::shared_ptr<ReplyMailbox> mailbox)
    : waiting(batch.rows.rows() * batch.top_k),
      batch_(batch),
      expert_ids_(batch.expert_ids, batch.expert_ids + waiting.size()),
      weights_(batch.weights, batch.weights + waiting.size()),
      counts_(std::move(counts)),
      mailbox_(std::move(mailbox)),
      gathered_(batch.rows.rows(), batch.top_k),
      num_out_(waiting.size(), 0) {
  batch_.expert_ids = expert_ids_.data();
  batch_.weights = weights_.data();
  std::iota(waiting.begin(), waiting.end(), 0);
}

std::string DispatchedLayer::NameOf(const Placement::Worker& worker) {
  return absl::StrCat("expert worker ", worker.id,
                      worker.address.empty() ? "" : absl::StrCat(" (", worker.address, ")"));
}

DispatchedLayer::~DispatchedLayer() {
  mailbox_->Close();
  while (!sent_.empty()) Forget(sent_.begin()->first);
}

DispatchedLayer::Sent* DispatchedLayer::Find(uint32_t number) {
  const auto it = sent_.find(number);
  return it == sent_.end() ? nullptr : &it->second;
}

std::vector<int32_t> DispatchedLayer::MissingRoutes(const Sent& sent) const {
  std::vector<int32_t> missing;
  std::copy_if(sent.part.routes.begin(), sent.part.routes.end(), std::back_inserter(missing),
               [this](int32_t route) { return !gathered_.has(route); });
  return missing;
}

bool DispatchedLayer::IsAsked(WorkerId worker, int32_t expert) const {
  return std::any_of(sent_.begin(), sent_.end(), [&](const auto& entry) {
    const auto& [number, sent] = entry;
    return sent.worker().id == worker &&
           std::binary_search(sent.experts.begin(), sent.experts.end(), expert);
  });
}

DispatchedLayer::Failures DispatchedLayer::FailuresOf(WorkerId worker) const {
  const auto it = failures_.find(worker);
  return it == failures_.end() ? Failures() : it->second;
}

void DispatchedLayer::Add(uint32_t number, Sent sent) {
  for (const int32_t route : sent.part.routes) ++num_out_[route];
  sent_.emplace(number, std::move(sent));
  ++counts_->parts_live;
}

void DispatchedLayer::Forget(uint32_t number) {
  const auto it = sent_.find(number);
  for (const int32_t route : it->second.part.routes) --num_out_[route];
  sent_.erase(it);
  --counts_->parts_live;
}

void DispatchedLayer::Accept(uint32_t number, const ExpertReply& reply, HostRowsPool* pool) {
  counts_->rows_received += gathered_.Take(sent_.at(number).part, reply, pool);
  Forget(number);
  std::vector<uint32_t> overtaken;
  for (const auto& [other, sent] : sent_) {
    const auto& routes = sent.part.routes;
    if (std::all_of(routes.begin(), routes.end(),
                    [this](int32_t route) { return gathered_.has(route); })) {
      overtaken.push_back(other);
    }
  }
  for (const uint32_t other : overtaken) Forget(other);
}

void DispatchedLayer::Fail(uint32_t number, const absl::Status& status, TimePoint now,
                           absl::Duration retry_delay) {
  const Sent& failed = sent_.at(number);
  const std::vector<int32_t> missing = MissingRoutes(failed);
  Failures& failures = failures_[failed.worker().id];
  ++failures.count;
  failures.last = now;
  last_error_ = absl::StrCat(NameOf(failed.worker()), ": ", absl::StatusCodeToString(status.code()),
                             ": ", status.message());
  next_attempt = std::max(next_attempt, failed.part.request->id.attempt + 1);
  if (status.code() == absl::StatusCode::kDeadlineExceeded) {
    // Once for all parts that were out together.
    num_timeouts = std::clamp(failed.num_timeouts + 1, num_timeouts, kMaxDoublings);
  }
  ++counts_->retries;
  Forget(number);

  const auto middle = static_cast<ptrdiff_t>(waiting.size());
  std::copy_if(missing.begin(), missing.end(), std::back_inserter(waiting),
               [this](int32_t route) { return num_out_[route] == 0; });
  std::inplace_merge(waiting.begin(), waiting.begin() + middle, waiting.end());
  // The others may be out at a worker that never answers, whom this one was to stand in for.
  if (static_cast<ptrdiff_t>(waiting.size()) - middle != static_cast<ptrdiff_t>(missing.size())) {
    AskOthersFrom(now + absl::ToChronoNanoseconds(retry_delay));
  }
}

void DispatchedLayer::NoteLate(Sent& sent, TimePoint now) {
  sent.noted_late = true;
  Failures& failures = failures_[sent.worker().id];
  ++failures.count;
  failures.last = now;
  last_error_ = absl::StrCat(NameOf(sent.worker()), " is late");
  next_attempt = std::max(next_attempt, sent.part.request->id.attempt + 1);
  ++counts_->hedged_parts;
}

void DispatchedLayer::AskOthersFrom(TimePoint when) {
  for (auto& [number, sent] : sent_) {
    if (sent.ask_others_at != TimePoint::max()) continue;
    sent.ask_others_at = std::max(when, sent.start + absl::ToChronoNanoseconds(sent.patience));
  }
}

TimePoint DispatchedLayer::wake_time() const {
  TimePoint time = std::min(deadline, next_retry);
  for (const auto& [number, sent] : sent_) {
    time = std::min({time, sent.ask_others_at, sent.give_up_at});
  }
  return time;
}

std::string DispatchedLayer::Reason() const {
  if (!last_error_.empty()) return last_error_;
  if (!sent_.empty())
    return absl::StrCat(NameOf(sent_.begin()->second.worker()), " has not answered");
  return absl::StrCat("no expert worker holds expert ", expert_ids_[waiting.front()]);
}

}  // namespace tandem
