#include "common/transport/expert_dispatcher.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/mutex.h"
#include "common/transport/expert_split.h"
#include "common/transport/holder_choice.h"
#include "common/transport/host_rows.h"

namespace tandem {
namespace {

using Clock = ExpertDispatcher::Clock;

Clock::time_point After(Clock::time_point start, absl::Duration duration) {
  constexpr absl::Duration kFar = absl::Hours(24 * 365);
  return start + absl::ToChronoNanoseconds(std::min(duration, kFar));
}

// Where links leave replies. Outlives its layer as long as a reply may still come.
struct Mailbox {
  struct Arrival {
    uint32_t part = 0;
    ExpertReply reply;
  };

  explicit Mailbox(std::function<void()> on_change) : changed(std::move(on_change)) {}

  void Put(uint32_t part, ExpertReply reply) {
    MutexLock lock(mutex);
    arrivals.push_back({part, std::move(reply)});
    if (changed) changed();
  }
  std::vector<Arrival> Take() {
    MutexLock lock(mutex);
    return std::exchange(arrivals, {});
  }
  void Notify() {
    MutexLock lock(mutex);
    if (changed) changed();
  }
  void Close() {
    MutexLock lock(mutex);
    changed = nullptr;
  }

  Mutex mutex;
  std::function<void()> changed ABSL_GUARDED_BY(mutex);  // null: nobody waits any more
  std::vector<Arrival> arrivals ABSL_GUARDED_BY(mutex);
};

struct Counts {
  std::atomic<int64_t> dispatches{0};
  std::atomic<int64_t> parts{0};
  std::atomic<int64_t> retries{0};
  std::atomic<int64_t> rows_sent{0};
  std::atomic<int64_t> rows_received{0};
  std::atomic<int64_t> late_replies{0};
  std::atomic<int64_t> parts_live{0};
};

// What all layers under way have out at each worker.
using WorkOut = std::map<WorkerId, int64_t>;

int64_t WorkOf(const ExpertRequest& request) {
  const std::set<int32_t> experts(request.route_experts.begin(), request.route_experts.end());
  return PartWork(request.num_routes(), static_cast<int64_t>(experts.size()));
}

bool Answers(const ExpertReply& reply, const ExpertRequest& request) {
  return reply.rows.rank == 2 && reply.rows.rows() == request.num_output_rows() &&
         reply.rows.width() == request.rows.width() && reply.rows.dtype == request.rows.dtype;
}

}  // namespace

// ---- a dispatched layer -------------------------------------------------------------------------

struct ExpertDispatcher::Layer {
  struct Sent {
    ExpertPart part;
    std::shared_ptr<const Placement> placement;
    std::shared_ptr<ExpertLink> link;  // kept, like the placement, until it is answered or given up
    std::string address;
    int64_t work = 0;
    Clock::time_point start;
    Clock::time_point give_up;
  };
  struct Failures {
    int count = 0;
    Clock::time_point last;
  };

  Layer(std::shared_ptr<Counts> counts, std::shared_ptr<WorkOut> work_out,
        std::function<void()> changed)
      : counts(std::move(counts)),
        work_out(std::move(work_out)),
        mailbox(std::make_shared<Mailbox>(std::move(changed))) {}
  ~Layer() {
    mailbox->Close();
    while (!sent.empty()) Forget(sent.begin()->first);
  }

  int64_t num_rows() const { return batch.rows.rows(); }
  bool done() const { return waiting.empty() && sent.empty(); }

  // Takes a part that failed back, to be split again.
  void Fail(uint32_t number, const absl::Status& status, Clock::time_point now) {
    Sent failed = std::move(sent.at(number));
    Forget(number);
    Failures& failures = this->failures[failed.part.worker];
    ++failures.count;
    failures.last = now;
    last_error =
        absl::StrCat("expert worker ", failed.part.worker,
                     failed.address.empty() ? "" : absl::StrCat(" (", failed.address, ")"), ": ",
                     absl::StatusCodeToString(status.code()), ": ", status.message());
    next_attempt = std::max(next_attempt, failed.part.request->id.attempt + 1);
    if (status.code() == absl::StatusCode::kDeadlineExceeded) {
      num_timeouts = std::min(num_timeouts + 1, 10);
    }
    const size_t middle = waiting.size();
    waiting.insert(waiting.end(), failed.part.routes.begin(), failed.part.routes.end());
    std::inplace_merge(waiting.begin(), waiting.begin() + middle, waiting.end());
    ++counts->retries;
  }
  void Forget(uint32_t number) {
    const auto it = sent.find(number);
    (*work_out)[it->second.part.worker] -= it->second.work;
    sent.erase(it);
    --counts->parts_live;
  }

  const std::shared_ptr<Counts> counts;
  const std::shared_ptr<WorkOut> work_out;
  RowBatch batch;  // its ids and weights are the vectors below
  std::vector<int32_t> expert_ids;
  std::vector<float> weights;
  const std::shared_ptr<Mailbox> mailbox;
  absl::Duration timeout;  // of the layer
  Clock::time_point deadline;

  std::vector<int32_t> waiting;  // routes that are in no part, ascending
  std::map<uint32_t, Sent> sent;
  std::map<WorkerId, Failures> failures;
  PlacementVersion placement;  // under which the waiting routes were last split
  uint32_t next_attempt = 0;
  int num_timeouts = 0;
  std::string last_error;
  Clock::time_point next_retry = Clock::time_point::max();  // of the waiting routes

  std::vector<uint8_t> combined;  // [rows], 1: the worker has combined the row
  OwnedTensor combined_rows;      // [rows, hidden]; empty until there is one
  OwnedTensor expert_rows;        // [routes, hidden]; likewise
};

// ---- the dispatcher -----------------------------------------------------------------------------

struct ExpertDispatcher::State {
  struct Peer {
    Placement::Worker worker;
    std::shared_ptr<ExpertLink> link;  // null until first needed
  };

  uint64_t incarnation = 0;
  DispatcherOptions options;
  ExpertLinkFactory make_link;
  std::shared_ptr<Counts> counts = std::make_shared<Counts>();

  mutable Mutex mutex;
  std::shared_ptr<const Placement> placement ABSL_GUARDED_BY(mutex);  // null until set
  std::map<WorkerId, Peer> peers ABSL_GUARDED_BY(mutex);
  // All that parts which are out were sent under, oldest first.
  std::vector<std::weak_ptr<const Placement>> placements_in_use ABSL_GUARDED_BY(mutex);
  std::vector<std::weak_ptr<Mailbox>> mailboxes ABSL_GUARDED_BY(mutex);  // of layers under way

  // Of the thread that polls.
  const std::shared_ptr<WorkOut> work_out = std::make_shared<WorkOut>();
  std::map<WorkerId, Clock::time_point> avoid_until;
  absl::Duration least_per_route = absl::ZeroDuration();  // zero: not measured yet
  uint32_t next_part = 0;  // never repeats, whatever callers name their steps
  HostRowsPool rows_pool;

  std::shared_ptr<const Placement> CurrentPlacement() const {
    MutexLock lock(mutex);
    return placement;
  }
  std::pair<std::shared_ptr<ExpertLink>, std::string> LinkTo(WorkerId id);
  absl::Duration AttemptLimit(int64_t num_routes) const {
    return options.attempt_timeout + 8 * num_routes * least_per_route;
  }
  void Measure(absl::Duration elapsed, int64_t num_routes);
  std::vector<WorkerId> UsableHolders(Layer& layer, const Placement& placement, int expert,
                                      Clock::time_point now) const;
  std::map<int32_t, WorkerId> Choose(Layer& layer, const Placement& placement,
                                     Clock::time_point now) const;
  void SendWaiting(Layer& layer, const std::shared_ptr<const Placement>& current);
  void SendPart(Layer& layer, ExpertPart part, const std::shared_ptr<const Placement>& current,
                Clock::time_point now);
  void GiveUpParts(Layer& layer, const std::shared_ptr<const Placement>& current);
  void Collect(Layer& layer);
  void Accept(Layer& layer, const ExpertPart& part, const ExpertReply& reply);
  std::optional<absl::Status> Poll(Layer& layer);
  absl::Status TimedOut(const Layer& layer) const;
};

std::pair<std::shared_ptr<ExpertLink>, std::string> ExpertDispatcher::State::LinkTo(WorkerId id) {
  MutexLock lock(mutex);
  const auto it = peers.find(id);
  if (it == peers.end()) return {nullptr, ""};
  Peer& peer = it->second;
  if (peer.link == nullptr) peer.link = make_link(peer.worker);
  return {peer.link, peer.worker.address};
}

// Times of large parts say most about the worker, and are the least per route.
void ExpertDispatcher::State::Measure(absl::Duration elapsed, int64_t num_routes) {
  const absl::Duration per_route = elapsed / num_routes;
  if (least_per_route == absl::ZeroDuration() || per_route < least_per_route) {
    least_per_route = per_route;
  }
}

// Of an expert's holders those that have failed least in this layer, and among these those that
// have not failed lately anywhere; none while the retry delays of all of them run.
std::vector<WorkerId> ExpertDispatcher::State::UsableHolders(Layer& layer,
                                                             const Placement& placement, int expert,
                                                             Clock::time_point now) const {
  if (layer.batch.layer < 0 || layer.batch.layer >= placement.num_layers || expert < 0 ||
      expert >= placement.num_experts) {
    return {};
  }
  std::vector<WorkerId> usable;
  std::pair<int, bool> best(std::numeric_limits<int>::max(), true);
  Clock::time_point ready = Clock::time_point::max();
  for (const WorkerId holder : placement.Holders(layer.batch.layer, expert)) {
    const auto failures = layer.failures.find(holder);
    const int count = failures == layer.failures.end() ? 0 : failures->second.count;
    const auto avoid = avoid_until.find(holder);
    const std::pair<int, bool> rank(count, avoid != avoid_until.end() && now < avoid->second);
    if (best < rank) continue;
    if (rank < best) {
      best = rank;
      usable.clear();
      ready = Clock::time_point::max();
    }
    const Clock::time_point holder_ready =
        count == 0 ? now : After(failures->second.last, options.retry_delay);
    if (now >= holder_ready) {
      usable.push_back(holder);
    } else {
      ready = std::min(ready, holder_ready);
    }
  }
  if (usable.empty()) layer.next_retry = std::min(layer.next_retry, ready);
  return usable;
}

std::map<int32_t, WorkerId> ExpertDispatcher::State::Choose(Layer& layer,
                                                            const Placement& placement,
                                                            Clock::time_point now) const {
  std::map<int32_t, ExpertDemand> by_expert;
  for (const int32_t route : layer.waiting) ++by_expert[layer.expert_ids[route]].num_routes;
  std::vector<ExpertDemand> demands;
  for (auto& [expert, demand] : by_expert) {
    demand.expert = expert;
    demand.holders = UsableHolders(layer, placement, expert, now);
    if (!demand.holders.empty()) demands.push_back(std::move(demand));
  }
  return ChooseHolders(std::move(demands), *work_out, incarnation);
}

void ExpertDispatcher::State::SendWaiting(Layer& layer,
                                          const std::shared_ptr<const Placement>& current) {
  if (layer.waiting.empty() || current == nullptr) return;
  const Clock::time_point now = options.now();
  layer.next_retry = Clock::time_point::max();
  const std::map<int32_t, WorkerId> chosen = Choose(layer, *current, now);
  ExpertSplit split = SplitRoutes(layer.batch, layer.waiting, [&](int expert) {
    const auto it = chosen.find(expert);
    return it == chosen.end() ? std::nullopt : std::optional(it->second);
  });
  layer.waiting = std::move(split.unplaced);
  layer.placement = current->version;
  for (ExpertPart& part : split.parts) SendPart(layer, std::move(part), current, now);
}

void ExpertDispatcher::State::SendPart(Layer& layer, ExpertPart part,
                                       const std::shared_ptr<const Placement>& current,
                                       Clock::time_point now) {
  const uint32_t number = next_part++;
  const absl::Duration layer_left = absl::FromChrono(layer.deadline - now);
  ExpertRequest& request = *part.request;
  request.id = {incarnation, layer.batch.step, static_cast<uint32_t>(layer.batch.layer), number,
                layer.next_attempt};
  request.placement = current->version;
  request.time_left =
      std::min(AttemptLimit(request.num_routes()) * (1 << layer.num_timeouts), layer_left);
  counts->parts += 1;
  counts->parts_live += 1;
  counts->rows_sent += request.num_rows();

  auto [link, address] = LinkTo(part.worker);
  std::shared_ptr<const ExpertRequest> sending = part.request;
  const int64_t work = WorkOf(request);
  (*work_out)[part.worker] += work;
  layer.sent.emplace(number, Layer::Sent{std::move(part), current, link, std::move(address), work,
                                         now, After(now, request.time_left + options.reply_grace)});
  if (link == nullptr) {
    layer.mailbox->Put(number, {absl::UnavailableError("it cannot be reached"), {}, nullptr});
    return;
  }
  link->Send(std::move(sending), [mailbox = layer.mailbox, number](ExpertReply reply) {
    mailbox->Put(number, std::move(reply));
  });
}

// Takes back parts whose link has lost them, and those at workers that the newest placement no
// longer names: they may be the reason for it.
void ExpertDispatcher::State::GiveUpParts(Layer& layer,
                                          const std::shared_ptr<const Placement>& current) {
  const bool changed = current != nullptr && current->version != layer.placement;
  if (changed) layer.placement = current->version;
  const Clock::time_point now = options.now();
  const auto has_left = [&](WorkerId id) {
    return changed && std::none_of(current->workers.begin(), current->workers.end(),
                                   [id](const Placement::Worker& w) { return w.id == id; });
  };
  std::vector<std::pair<uint32_t, absl::Status>> lost;
  for (const auto& [number, sent] : layer.sent) {
    if (now >= sent.give_up) {
      lost.emplace_back(number, absl::DeadlineExceededError("it did not answer in time"));
    } else if (has_left(sent.part.worker)) {
      lost.emplace_back(number, absl::UnavailableError("it has left the placement"));
    }
  }
  for (const auto& [number, status] : lost) {
    avoid_until[layer.sent.at(number).part.worker] = After(now, options.avoid_failed);
    layer.Fail(number, status, now);
  }
}

void ExpertDispatcher::State::Collect(Layer& layer) {
  for (Mailbox::Arrival& arrival : layer.mailbox->Take()) {
    const auto it = layer.sent.find(arrival.part);
    if (it == layer.sent.end()) {
      ++counts->late_replies;
      continue;
    }
    const ExpertPart& part = it->second.part;
    absl::Status status = arrival.reply.status;
    if (status.ok() && !Answers(arrival.reply, *part.request)) {
      status = absl::DataLossError("its reply does not answer the request");
    }
    if (!status.ok()) {
      const Clock::time_point now = options.now();
      avoid_until[part.worker] = After(now, options.avoid_failed);
      layer.Fail(arrival.part, status, now);
      continue;
    }
    avoid_until.erase(part.worker);
    Measure(absl::FromChrono(options.now() - it->second.start), part.request->num_routes());
    Accept(layer, part, arrival.reply);
    layer.Forget(arrival.part);
  }
}

// Puts a part's rows where they belong.
void ExpertDispatcher::State::Accept(Layer& layer, const ExpertPart& part,
                                     const ExpertReply& reply) {
  const ExpertRequest& request = *part.request;
  const Dtype dtype = reply.rows.dtype;
  const int64_t hidden = reply.rows.width();
  const size_t row_bytes = static_cast<size_t>(hidden) * DtypeBytes(dtype);
  const auto ensure = [&](OwnedTensor* tensor, int64_t rows) {
    if (tensor->view.empty()) *tensor = rows_pool.Take(dtype, {rows, hidden});
  };
  int64_t next = 0;
  for (int i = 0; i < request.num_rows(); ++i) {
    if (request.combined[i]) {
      ensure(&layer.combined_rows, layer.num_rows());
      std::memcpy(layer.combined_rows.view.row(part.rows[i]), reply.rows.row(next++), row_bytes);
      layer.combined[part.rows[i]] = 1;
      continue;
    }
    ensure(&layer.expert_rows, layer.num_rows() * layer.batch.top_k);
    for (int t = request.route_offsets[i]; t < request.route_offsets[i + 1]; ++t) {
      std::memcpy(layer.expert_rows.view.row(part.routes[t]), reply.rows.row(next++), row_bytes);
    }
  }
  counts->rows_received += next;
}

std::optional<absl::Status> ExpertDispatcher::State::Poll(Layer& layer) {
  Collect(layer);
  if (!layer.done() && options.now() >= layer.deadline) return TimedOut(layer);
  // One look for both: a placement that comes in between is seen as new by the next Poll.
  const std::shared_ptr<const Placement> current = CurrentPlacement();
  GiveUpParts(layer, current);
  SendWaiting(layer, current);
  if (layer.done()) return absl::OkStatus();
  return std::nullopt;
}

absl::Status ExpertDispatcher::State::TimedOut(const Layer& layer) const {
  std::string why = layer.last_error;
  if (why.empty() && !layer.sent.empty()) {
    const Layer::Sent& sent = layer.sent.begin()->second;
    why = absl::StrCat("expert worker ", sent.part.worker,
                       sent.address.empty() ? "" : absl::StrCat(" (", sent.address, ")"),
                       " has not answered");
  } else if (why.empty()) {
    why = absl::StrCat("no expert worker holds expert ",
                       layer.batch.expert_ids[layer.waiting.front()]);
  }
  return absl::UnavailableError(absl::StrCat("layer ", layer.batch.layer, " was not answered in ",
                                             absl::FormatDuration(layer.timeout), ": ", why));
}

// ---- Pending ------------------------------------------------------------------------------------

ExpertDispatcher::Pending::Pending(std::shared_ptr<State> state, std::unique_ptr<Layer> layer)
    : state_(std::move(state)), layer_(std::move(layer)) {}
ExpertDispatcher::Pending::~Pending() = default;

std::optional<absl::Status> ExpertDispatcher::Pending::Poll() { return state_->Poll(*layer_); }

Clock::time_point ExpertDispatcher::Pending::wake_time() const {
  Clock::time_point time = std::min(layer_->deadline, layer_->next_retry);
  for (const auto& [number, sent] : layer_->sent) time = std::min(time, sent.give_up);
  return time;
}

ExpertRows ExpertDispatcher::Pending::rows() const {
  return {layer_->combined, layer_->combined_rows.view, layer_->expert_rows.view};
}

// ---- ExpertDispatcher ---------------------------------------------------------------------------

ExpertDispatcher::ExpertDispatcher(uint64_t incarnation, DispatcherOptions options,
                                   ExpertLinkFactory make_link)
    : state_(std::make_shared<State>()) {
  state_->incarnation = incarnation;
  state_->options = options;
  state_->make_link = std::move(make_link);
}

ExpertDispatcher::~ExpertDispatcher() = default;

void ExpertDispatcher::SetPlacement(Placement placement) {
  auto shared = std::make_shared<const Placement>(std::move(placement));
  std::vector<std::shared_ptr<Mailbox>> waiting;
  {
    MutexLock lock(state_->mutex);
    std::map<WorkerId, State::Peer> peers;
    for (const Placement::Worker& worker : shared->workers) {
      State::Peer peer{worker, nullptr};
      const auto it = state_->peers.find(worker.id);
      if (it != state_->peers.end() && it->second.worker == worker) {
        peer.link = std::move(it->second.link);
      }
      peers.emplace(worker.id, std::move(peer));
    }
    state_->peers = std::move(peers);
    std::erase_if(state_->placements_in_use, [](const auto& used) { return used.expired(); });
    state_->placements_in_use.push_back(shared);
    state_->placement = std::move(shared);
    for (const auto& mailbox : state_->mailboxes) {
      if (auto alive = mailbox.lock()) waiting.push_back(std::move(alive));
    }
  }
  for (const auto& mailbox : waiting) mailbox->Notify();
}

std::unique_ptr<ExpertDispatcher::Pending> ExpertDispatcher::Dispatch(
    const RowBatch& batch, std::function<void()> changed) {
  TANDEM_CHECK(batch.top_k > 0 && batch.rows.rank == 2);
  auto layer = std::make_unique<Layer>(state_->counts, state_->work_out, std::move(changed));
  const int64_t num_routes = batch.rows.rows() * batch.top_k;
  layer->expert_ids.assign(batch.expert_ids, batch.expert_ids + num_routes);
  layer->weights.assign(batch.weights, batch.weights + num_routes);
  layer->batch = batch;
  layer->batch.expert_ids = layer->expert_ids.data();
  layer->batch.weights = layer->weights.data();
  layer->timeout = state_->options.layer_timeout;
  if (state_->least_per_route > absl::ZeroDuration()) {
    layer->timeout = std::max(layer->timeout, 24 * num_routes * state_->least_per_route);
  }
  layer->deadline = After(state_->options.now(), layer->timeout);
  layer->combined.assign(batch.rows.rows(), 0);
  layer->waiting.resize(num_routes);
  std::iota(layer->waiting.begin(), layer->waiting.end(), 0);
  {
    MutexLock lock(state_->mutex);
    auto& mailboxes = state_->mailboxes;
    mailboxes.erase(std::remove_if(mailboxes.begin(), mailboxes.end(),
                                   [](const auto& mailbox) { return mailbox.expired(); }),
                    mailboxes.end());
    mailboxes.push_back(layer->mailbox);
  }
  ++state_->counts->dispatches;
  state_->SendWaiting(*layer, state_->CurrentPlacement());
  return std::unique_ptr<Pending>(new Pending(state_, std::move(layer)));
}

PlacementVersion ExpertDispatcher::oldest_in_use() const {
  MutexLock lock(state_->mutex);
  for (const auto& used : state_->placements_in_use) {
    if (const auto placement = used.lock()) return placement->version;
  }
  return {};
}

CounterSnapshot ExpertDispatcher::Counters() const {
  const Counts& counts = *state_->counts;
  return {{"dispatches_total", counts.dispatches.load()},
          {"parts_total", counts.parts.load()},
          {"retries_total", counts.retries.load()},
          {"rows_sent_total", counts.rows_sent.load()},
          {"rows_received_total", counts.rows_received.load()},
          {"late_replies_total", counts.late_replies.load()},
          {"parts_live", counts.parts_live.load()}};
}

}  // namespace tandem
