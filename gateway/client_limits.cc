#include "gateway/client_limits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

// Where calls must end before others are let in.
constexpr absl::Duration kRetryAfterCalls = absl::Seconds(1);
// Between two looks at all clients, so that a full table costs no look at each call.
constexpr absl::Duration kForgetInterval = absl::Seconds(1);

}  // namespace

ClientLimits::Decision ClientLimits::Admit(const std::string& client, absl::Time now) {
  if (!limited()) return {};
  MutexLock lock(mutex_);
  auto it = clients_.find(client);
  if (it == clients_.end()) {
    if (clients_.size() >= options_.max_clients) ForgetAtRest(now);
    if (clients_.size() >= options_.max_clients) {
      return Refuse(kRetryAfterCalls,
                    absl::StrCat("more than ", options_.max_clients, " clients ask at once"));
    }
    it = clients_.emplace(client, Client{0, options_.burst, now}).first;
  }
  Client& entry = it->second;
  if (options_.calls > 0 && entry.calls >= options_.calls) {
    return Refuse(kRetryAfterCalls,
                  absl::StrCat("this client has ", entry.calls, " calls running, and may have ",
                               options_.calls, " at once"));
  }
  if (options_.calls_per_s > 0) {
    Refill(entry, now);
    if (entry.tokens < 1) {
      return Refuse(absl::Seconds((1 - entry.tokens) / options_.calls_per_s),
                    absl::StrCat("this client may make ", options_.calls_per_s,
                                 " calls per second, and has made them"));
    }
    entry.tokens -= 1;
  }
  ++entry.calls;
  return {absl::OkStatus(), Lease(this, client), absl::ZeroDuration()};
}

ClientLimits::Decision ClientLimits::AddCalls(Lease* lease, int more, absl::Time now) {
  if (!limited()) return {};
  MutexLock lock(mutex_);
  Client& entry = clients_.find(lease->client_)->second;
  const int wanted = lease->calls_ + more;
  if (options_.calls > 0 && wanted > options_.calls) {
    ++refused_;
    return {absl::InvalidArgumentError(absl::StrCat("this call counts as ", wanted,
                                                    ", one for each choice, but a client ",
                                                    "may have ", options_.calls, " calls at once")),
            Lease(), absl::ZeroDuration()};
  }
  if (options_.calls > 0 && entry.calls + more > options_.calls) {
    return Refuse(kRetryAfterCalls, absl::StrCat("this client has ", entry.calls - lease->calls_,
                                                 " calls running and may have ", options_.calls,
                                                 " at once, and this one counts as ", wanted));
  }
  if (options_.calls_per_s > 0) {
    Refill(entry, now);
    entry.tokens -= more;
  }
  entry.calls += more;
  lease->calls_ = wanted;
  return {};
}

void ClientLimits::Release(const std::string& client, int calls) {
  MutexLock lock(mutex_);
  const auto it = clients_.find(client);
  it->second.calls -= calls;
  // Without a rate there is nothing else to remember.
  if (it->second.calls == 0 && options_.calls_per_s == 0) clients_.erase(it);
}

void ClientLimits::Refill(Client& client, absl::Time now) const {
  const double passed_s = std::max(absl::ToDoubleSeconds(now - client.since), 0.0);
  client.tokens = std::min(client.tokens + passed_s * options_.calls_per_s, options_.burst);
  client.since = now;
}

bool ClientLimits::AtRest(const Client& client) const {
  return client.calls == 0 && client.tokens >= options_.burst;
}

void ClientLimits::ForgetAtRest(absl::Time now) {
  if (now - forgot_ < kForgetInterval) return;
  forgot_ = now;
  for (auto it = clients_.begin(); it != clients_.end();) {
    Refill(it->second, now);
    const auto here = it++;
    if (AtRest(here->second)) clients_.erase(here);
  }
}

ClientLimits::Decision ClientLimits::Refuse(absl::Duration retry_after, const std::string& why) {
  ++refused_;
  return {absl::ResourceExhaustedError(absl::StrCat(
              why, "; try again in ",
              absl::ToInt64Milliseconds(absl::Ceil(retry_after, absl::Milliseconds(1))), " ms")),
          Lease(), retry_after};
}

CounterSnapshot ClientLimits::Counters() const {
  if (!limited()) return {};
  MutexLock lock(mutex_);
  return {{"clients_known", static_cast<int64_t>(clients_.size())},
          {"calls_over_limit_total", refused_}};
}

}  // namespace tandem
