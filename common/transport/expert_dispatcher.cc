#include "common/transport/expert_dispatcher.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log_rate.h"
#include "common/log_scope.h"
#include "common/time_after.h"
#include "common/transport/dispatch_counts.h"
#include "common/transport/dispatched_layer.h"
#include "common/transport/expert_split.h"
#include "common/transport/holder_choice.h"
#include "common/transport/holder_health.h"
#include "common/transport/host_rows.h"
#include "common/transport/placed_links.h"
#include "common/transport/reply_check.h"
#include "common/transport/reply_mailbox.h"
#include "common/transport/worker_probes.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

using Clock = ExpertDispatcher::Clock;

constexpr int kProbeRoutes = 4;  // at most: what a probe costs is the reading of an expert

// Ascending.
std::vector<int32_t> DistinctExperts(const ExpertRequest& request, int num_experts) {
  std::vector<uint8_t> is_used(num_experts, 0);
  for (const int32_t expert : request.route_experts) is_used[expert] = 1;
  std::vector<int32_t> experts;
  for (int e = 0; e < num_experts; ++e) {
    if (is_used[e] != 0) experts.push_back(e);
  }
  return experts;
}

std::string Milliseconds(absl::Duration time) {
  return absl::StrCat(absl::ToInt64Milliseconds(time), " ms");
}

// A worker as the placement names it.
Placement::Worker WorkerOf(const Placement& placement, WorkerId id) {
  const Placement::Worker* const worker = placement.Find(id);
  return worker != nullptr ? *worker : Placement::Worker{id, "", 0};
}

// Whether anybody but the worker holds any of the experts.
bool OthersHold(const Placement& placement, int layer, absl::Span<const int32_t> experts,
                WorkerId worker) {
  return std::any_of(experts.begin(), experts.end(), [&](int32_t expert) {
    const std::vector<WorkerId>& holders = placement.Holders(layer, expert);
    return std::any_of(holders.begin(), holders.end(), [&](WorkerId id) { return id != worker; });
  });
}

}  // namespace

// What belongs to all layers. Its methods are of the thread that polls.
struct ExpertDispatcher::State {
  using Layer = DispatchedLayer;

  // Which holder each expert's routes are for, and when there may be one for the others.
  struct Choice {
    std::map<int32_t, WorkerId> holders;
    Clock::time_point next_retry = Clock::time_point::max();

    std::optional<WorkerId> operator()(int32_t expert) const {
      const auto it = holders.find(expert);
      return it == holders.end() ? std::nullopt : std::optional(it->second);
    }
    bool Asks(WorkerId id) const {
      return std::any_of(holders.begin(), holders.end(),
                         [id](const auto& chosen) { return chosen.second == id; });
    }
  };

  State(uint64_t incarnation, DispatcherOptions options, ExpertLinkFactory make_link)
      : incarnation(incarnation),
        options(std::move(options)),
        placed(std::move(make_link)),
        holders({this->options.first_aside, this->options.longest_aside}),
        probes(this->options.now, &holders, counts) {}

  const uint64_t incarnation;
  const DispatcherOptions options;
  const std::shared_ptr<DispatchCounts> counts = std::make_shared<DispatchCounts>();
  PlacedLinks placed;

  // Of the thread that polls.
  HolderTable holders;
  absl::Duration least_per_route = absl::ZeroDuration();  // zero: not measured yet
  uint32_t next_part = 0;  // probes too; never repeats, whatever callers name their steps
  WorkerProbes probes;
  HostRowsPool rows_pool;
  LogRate log_rate;  // of what is said of single parts

  absl::Duration Limit(int64_t num_routes) const {
    return options.attempt_timeout + 8 * num_routes * least_per_route;
  }
  absl::Duration Patience(int64_t work) const;
  void NoteTime(int64_t num_routes, absl::Duration time);

  std::vector<WorkerId> UsableHolders(const Layer& layer, const Placement& current, int32_t expert,
                                      Clock::time_point now, Clock::time_point* next_retry) const;
  Choice Choose(const Layer& layer, const Placement& current, absl::Span<const int32_t> routes,
                Clock::time_point now) const;

  void SendPart(Layer& layer, ExpertPart part, const std::shared_ptr<const Placement>& current,
                Clock::time_point now);
  void SendWaiting(Layer& layer, const std::shared_ptr<const Placement>& current,
                   Clock::time_point now);
  void SendProbes(const Layer& layer, const std::shared_ptr<const Placement>& current,
                  const Choice& choice, absl::Span<const int32_t> routes, Clock::time_point now);
  void SendProbe(const Layer& layer, ExpertPart part,
                 const std::shared_ptr<const Placement>& current, Clock::time_point now);

  // Logs what became of a part, with the traces of its requests.
  void Warn(const Layer& layer, const Layer::Sent& sent, Clock::time_point now,
            const std::string& what);
  void Collect(Layer& layer);
  void FailPart(Layer& layer, uint32_t number, const absl::Status& status, Clock::time_point now);
  void GiveUpParts(Layer& layer, const std::shared_ptr<const Placement>& current,
                   Clock::time_point now);
  void AskOthers(Layer& layer, const std::shared_ptr<const Placement>& current,
                 Clock::time_point now);
  void Advance(Layer& layer, Clock::time_point now);
  std::optional<absl::Status> Poll(Layer& layer);
};

// ---- times --------------------------------------------------------------------------------------

absl::Duration ExpertDispatcher::State::Patience(int64_t work) const {
  const std::optional<absl::Duration> expected = holders.ExpectedTime(work);
  if (!expected.has_value()) return options.first_patience;
  return std::max(options.least_patience, 4 * *expected);
}

// The least is that of large parts, which say most about a worker.
void ExpertDispatcher::State::NoteTime(int64_t num_routes, absl::Duration time) {
  const absl::Duration per_route = time / num_routes;
  if (least_per_route == absl::ZeroDuration() || per_route < least_per_route) {
    least_per_route = per_route;
  }
}

// ---- choosing -----------------------------------------------------------------------------------

// Of an expert's holders who have not been asked for it already, those that have failed least in
// this layer, and among these the least reluctant ones; none while the retry delays of all of them
// run.
std::vector<WorkerId> ExpertDispatcher::State::UsableHolders(const Layer& layer,
                                                             const Placement& current,
                                                             int32_t expert, Clock::time_point now,
                                                             Clock::time_point* next_retry) const {
  std::vector<WorkerId> usable;
  std::pair<int, int> best(std::numeric_limits<int>::max(), 0);
  Clock::time_point next_ready = Clock::time_point::max();
  for (const WorkerId id : current.Holders(layer.batch().layer, expert)) {
    if (layer.IsAsked(id, expert)) continue;
    const Layer::Failures failures = layer.FailuresOf(id);
    const HolderHealth* health = holders.Find(id);
    const std::pair rank(failures.count, health == nullptr ? 0 : health->reluctance());
    if (best < rank) continue;
    if (rank < best) {
      best = rank;
      usable.clear();
      next_ready = Clock::time_point::max();
    }
    const Clock::time_point ready =
        failures.count == 0 ? now : After(failures.last, options.retry_delay);
    if (now >= ready) {
      usable.push_back(id);
    } else {
      next_ready = std::min(next_ready, ready);
    }
  }
  if (usable.empty()) *next_retry = std::min(*next_retry, next_ready);
  return usable;
}

ExpertDispatcher::State::Choice ExpertDispatcher::State::Choose(const Layer& layer,
                                                                const Placement& current,
                                                                absl::Span<const int32_t> routes,
                                                                Clock::time_point now) const {
  Choice choice;
  if (layer.batch().layer < 0 || layer.batch().layer >= current.num_layers) return choice;
  std::vector<int64_t> num_routes(current.num_experts, 0);  // of each expert
  for (const int32_t route : routes) {
    const int32_t expert = layer.batch().expert_ids[route];
    if (expert >= 0 && expert < current.num_experts) ++num_routes[expert];
  }
  std::vector<ExpertDemand> demands;
  for (int32_t expert = 0; expert < current.num_experts; ++expert) {
    if (num_routes[expert] == 0) continue;
    ExpertDemand demand{expert, num_routes[expert],
                        UsableHolders(layer, current, expert, now, &choice.next_retry)};
    if (!demand.holders.empty()) demands.push_back(std::move(demand));
  }
  std::map<WorkerId, int64_t> work_out;
  for (const auto& [id, holder] : holders.all()) work_out[id] = holder->work_out();
  choice.holders = ChooseHolders(std::move(demands), std::move(work_out), incarnation);
  return choice;
}

// ---- sending ------------------------------------------------------------------------------------

void ExpertDispatcher::State::SendPart(Layer& layer, ExpertPart part,
                                       const std::shared_ptr<const Placement>& current,
                                       Clock::time_point now) {
  const uint32_t number = next_part++;
  ExpertRequest& request = *part.request;
  request.id = {incarnation, layer.batch().step, static_cast<uint32_t>(layer.batch().layer), number,
                layer.next_attempt};
  request.placement = current->version;
  request.traces = layer.batch().traces;
  request.time_left = std::min(Limit(request.num_routes()) * (1 << layer.num_timeouts),
                               absl::FromChrono(layer.deadline - now));
  counts->parts += 1;
  counts->rows_sent += request.num_rows();

  const std::shared_ptr<HolderHealth> holder = holders.Of(WorkerOf(*current, part.worker));
  const std::shared_ptr<ExpertLink> link = placed.LinkTo(part.worker);
  std::vector<int32_t> experts = DistinctExperts(request, current->num_experts);
  WorkOut work(holder, PartWork(request.num_routes(), static_cast<int64_t>(experts.size())));
  const absl::Duration patience =
      std::min(Patience(work.in_line()) * (1 << layer.num_late), request.time_left);
  const bool alone = !OthersHold(*current, layer.batch().layer, experts, part.worker);
  std::shared_ptr<const ExpertRequest> sending = part.request;
  layer.Add(number, {std::move(part), std::move(experts), current, link, std::move(work), now,
                     patience, alone ? Clock::time_point::max() : After(now, patience),
                     After(now, request.time_left + options.reply_grace), layer.num_timeouts});
  if (link == nullptr) {
    layer.mailbox()->Put(number, {absl::UnavailableError("it cannot be reached"), {}, nullptr});
    return;
  }
  link->Send(std::move(sending), [mailbox = layer.mailbox(), number](ExpertReply reply) {
    mailbox->Put(number, std::move(reply));
  });
}

void ExpertDispatcher::State::SendWaiting(Layer& layer,
                                          const std::shared_ptr<const Placement>& current,
                                          Clock::time_point now) {
  if (layer.waiting.empty() || current == nullptr) return;
  const Choice choice = Choose(layer, *current, layer.waiting, now);
  const std::vector<int32_t> routes = std::exchange(layer.waiting, {});
  ExpertSplit split = SplitRoutes(layer.batch(), routes, choice);
  layer.waiting = std::move(split.unplaced);
  layer.next_retry = choice.next_retry;
  for (ExpertPart& part : split.parts) SendPart(layer, std::move(part), current, now);
  SendProbes(layer, current, choice, routes, now);
}

// Copies of what others were just asked for: to each worker whose time is up, and that was asked
// for nothing, some routes of the expert that it holds and that has the fewest.
void ExpertDispatcher::State::SendProbes(const Layer& layer,
                                         const std::shared_ptr<const Placement>& current,
                                         const Choice& choice, absl::Span<const int32_t> routes,
                                         Clock::time_point now) {
  std::vector<WorkerId> due;
  for (const auto& [id, holder] : holders.all()) {
    if (holder->ProbeIsDue(now) && !choice.Asks(id)) due.push_back(id);
  }
  for (const WorkerId id : due) {
    std::map<int32_t, std::vector<int32_t>> routes_of;  // expert
    for (const int32_t route : routes) {
      const int32_t expert = layer.batch().expert_ids[route];
      const std::optional<WorkerId> asked = choice(expert);
      if (!asked.has_value() || holders.Find(*asked)->aside()) continue;
      const auto& named = current->Holders(layer.batch().layer, expert);
      if (std::find(named.begin(), named.end(), id) == named.end()) continue;
      routes_of[expert].push_back(route);
    }
    const auto fewest = std::min_element(
        routes_of.begin(), routes_of.end(),
        [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
    if (fewest == routes_of.end()) continue;
    fewest->second.resize(std::min<size_t>(fewest->second.size(), kProbeRoutes));
    ExpertSplit split = SplitRoutes(layer.batch(), fewest->second, [id](int) { return id; });
    SendProbe(layer, std::move(split.parts.front()), current, now);
  }
}

void ExpertDispatcher::State::SendProbe(const Layer& layer, ExpertPart part,
                                        const std::shared_ptr<const Placement>& current,
                                        Clock::time_point now) {
  const std::shared_ptr<HolderHealth> holder = holders.Of(WorkerOf(*current, part.worker));
  const std::shared_ptr<ExpertLink> link = placed.LinkTo(part.worker);
  if (link == nullptr) return;
  ExpertRequest& request = *part.request;
  request.id = {incarnation, layer.batch().step, static_cast<uint32_t>(layer.batch().layer),
                next_part++, 0};
  request.placement = current->version;
  request.time_left = Patience(PartWork(request.num_routes(), 1));
  probes.Send(*link, std::move(part.request), holder, current, now);
}

// ---- what comes, and what does not --------------------------------------------------------------

void ExpertDispatcher::State::Warn(const Layer& layer, const Layer::Sent& sent,
                                   Clock::time_point now, const std::string& what) {
  const std::optional<std::string> left_out = log_rate.Take(now);
  if (!left_out.has_value()) return;
  LogFields fields = FieldsOf(layer.batch().traces);
  fields.emplace_back("step", static_cast<int64_t>(layer.batch().step));
  fields.emplace_back("layer", layer.batch().layer);
  const LogScope scope(std::move(fields));
  spdlog::warn("{} {}{}", Layer::NameOf(sent.worker()), what, *left_out);
}

void ExpertDispatcher::State::Collect(Layer& layer) {
  for (ReplyMailbox::Arrival& arrival : layer.mailbox()->Take()) {
    Layer::Sent* const sent = layer.Find(arrival.part);
    if (sent == nullptr) {
      ++counts->late_replies;
      continue;
    }
    const ExpertRequest& request = *sent->part.request;
    const absl::Status status = CheckReply(arrival.reply, request);
    if (!status.ok()) {
      FailPart(layer, arrival.part, status, arrival.when);
      continue;
    }
    const absl::Duration time = absl::FromChrono(arrival.when - sent->start);
    // Before anything was measured, the first large part may well take longer.
    if (time > sent->patience && !sent->noted_late &&
        holders.ExpectedTime(sent->work.in_line()).has_value()) {
      Warn(layer, *sent, arrival.when,
           absl::StrCat("took ", Milliseconds(time), " for ", request.num_rows(),
                        " rows, but was expected to take ", Milliseconds(sent->patience),
                        " at most"));
    }
    holders.Answered(sent->work.holder(), sent->work.in_line(), sent->start, arrival.when);
    NoteTime(request.num_routes(), time);
    layer.Accept(arrival.part, arrival.reply, &rows_pool);
  }
}

void ExpertDispatcher::State::FailPart(Layer& layer, uint32_t number, const absl::Status& status,
                                       Clock::time_point now) {
  const Layer::Sent& sent = *layer.Find(number);
  if (!HasLetGo(status)) {
    sent.work.holder().Failed(sent.start, now);
    Warn(layer, sent, now,
         absl::StrCat("failed: ", absl::StatusCodeToString(status.code()), ": ", status.message()));
  }
  layer.Fail(number, status, now, options.retry_delay);
}

// Takes back parts whose link has lost them, and those at workers that the newest placement no
// longer names: they may be the reason for it.
void ExpertDispatcher::State::GiveUpParts(Layer& layer,
                                          const std::shared_ptr<const Placement>& current,
                                          Clock::time_point now) {
  const bool changed = current != nullptr && current->version != layer.placement;
  std::vector<uint32_t> lost, left;
  for (const auto& [number, sent] : layer.sent()) {
    if (now >= sent.give_up_at) {
      lost.push_back(number);
    } else if (changed && !current->Names(sent.worker())) {
      left.push_back(number);
    }
  }
  for (const uint32_t number : lost) {
    FailPart(layer, number, absl::DeadlineExceededError("it did not answer in time"), now);
  }
  for (const uint32_t number : left) {
    layer.Fail(number, absl::UnavailableError("it has left the placement"), now,
               options.retry_delay);
  }
  if (!changed) return;
  layer.placement = current->version;
  layer.AskOthersFrom(now);
}

// Asks other holders as well for what is out for longer than patience has it. A worker is late only
// if one that is not put aside can do what it should.
void ExpertDispatcher::State::AskOthers(Layer& layer,
                                        const std::shared_ptr<const Placement>& current,
                                        Clock::time_point now) {
  std::vector<uint32_t> due;
  for (const auto& [number, sent] : layer.sent()) {
    if (now >= sent.ask_others_at) due.push_back(number);
  }
  const int num_late = std::min(layer.num_late + 1, Layer::kMaxDoublings);
  for (const uint32_t number : due) {
    Layer::Sent& sent = *layer.Find(number);
    const std::vector<int32_t> missing = layer.MissingRoutes(sent);
    const Choice choice = Choose(layer, *current, missing, now);
    sent.ask_others_at = choice.next_retry;
    if (choice.holders.empty()) continue;
    layer.num_late = num_late;
    if (!sent.noted_late) {
      Warn(layer, sent, now,
           absl::StrCat("has not answered in ", Milliseconds(absl::FromChrono(now - sent.start)),
                        "; others are asked as well"));
    }
    layer.NoteLate(sent, now);
    const bool others_are_well =
        std::any_of(choice.holders.begin(), choice.holders.end(), [this](const auto& chosen) {
          const HolderHealth* health = holders.Find(chosen.second);
          return health == nullptr || !health->aside();
        });
    if (others_are_well) sent.work.holder().Failed(sent.start, now);
    // At once: nobody is asked for the same by two that are late.
    ExpertSplit split = SplitRoutes(layer.batch(), missing, choice);
    for (ExpertPart& part : split.parts) SendPart(layer, std::move(part), current, now);
  }
}

// Does what is due.
void ExpertDispatcher::State::Advance(Layer& layer, Clock::time_point now) {
  // One look for all: a placement that comes in between is seen as new by the next Poll.
  const std::shared_ptr<const Placement> current = placed.Current();
  probes.Collect(now);
  GiveUpParts(layer, current, now);
  if (current != nullptr) holders.Keep(*current);
  AskOthers(layer, current, now);
  SendWaiting(layer, current, now);
  counts->workers_aside = holders.num_aside();
}

std::optional<absl::Status> ExpertDispatcher::State::Poll(Layer& layer) {
  Collect(layer);
  const Clock::time_point now = options.now();
  if (!layer.done() && now >= layer.deadline) {
    return absl::UnavailableError(
        absl::StrCat("layer ", layer.batch().layer, " was not answered in ",
                     absl::FormatDuration(layer.timeout), ": ", layer.Reason()));
  }
  Advance(layer, now);
  if (layer.done()) return absl::OkStatus();
  return std::nullopt;
}

// ---- Pending ------------------------------------------------------------------------------------

ExpertDispatcher::Pending::Pending(std::shared_ptr<State> state,
                                   std::unique_ptr<DispatchedLayer> layer)
    : state_(std::move(state)), layer_(std::move(layer)) {}
ExpertDispatcher::Pending::~Pending() = default;

std::optional<absl::Status> ExpertDispatcher::Pending::Poll() { return state_->Poll(*layer_); }
Clock::time_point ExpertDispatcher::Pending::wake_time() const { return layer_->wake_time(); }
ExpertRows ExpertDispatcher::Pending::rows() const { return layer_->rows(); }

// ---- ExpertDispatcher ---------------------------------------------------------------------------

ExpertDispatcher::ExpertDispatcher(uint64_t incarnation, DispatcherOptions options,
                                   ExpertLinkFactory make_link)
    : state_(std::make_shared<State>(incarnation, std::move(options), std::move(make_link))) {}

ExpertDispatcher::~ExpertDispatcher() = default;

void ExpertDispatcher::SetPlacement(Placement placement) {
  state_->placed.Set(std::move(placement));
}

std::unique_ptr<ExpertDispatcher::Pending> ExpertDispatcher::Dispatch(
    const RowBatch& batch, std::function<void()> changed) {
  TANDEM_CHECK(batch.top_k > 0 && batch.rows.rank == 2);
  State& state = *state_;
  auto layer = std::make_unique<DispatchedLayer>(
      batch, state.counts,
      std::make_shared<ReplyMailbox>(state.options.now, std::move(changed), state.counts));
  const Clock::time_point now = state.options.now();
  const auto num_routes = static_cast<int64_t>(layer->waiting.size());
  layer->timeout = std::max(state.options.layer_timeout, 24 * num_routes * state.least_per_route);
  layer->deadline = After(now, layer->timeout);
  state.placed.Tell(layer->mailbox());
  ++state.counts->dispatches;
  state.Advance(*layer, now);
  return std::unique_ptr<Pending>(new Pending(state_, std::move(layer)));
}

PlacementVersion ExpertDispatcher::oldest_in_use() const { return state_->placed.OldestInUse(); }

CounterSnapshot ExpertDispatcher::Counters() const { return state_->counts->Snapshot(); }

}  // namespace tandem
