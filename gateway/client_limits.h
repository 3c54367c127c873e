// What one client may take of a gateway: how many of its calls run at once, and how many it makes
// per second.
#ifndef TANDEM_GATEWAY_CLIENT_LIMITS_H_
#define TANDEM_GATEWAY_CLIENT_LIMITS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/mutex.h"

namespace tandem {

struct ClientLimitOptions {
  int calls = 0;              // of one client at once; 0: any number
  double calls_per_s = 0;     // of one client; 0: any number
  double burst = 1;           // calls that it may make at once after a rest; with calls_per_s
  size_t max_clients = 8192;  // remembered: those with calls, and those that made some lately
};

// Thread-safe. Costs a look-up per call; nothing where nothing is limited.
class ClientLimits {
 public:
  // A call that was let in. Counts for its client until it is destroyed, before the limits are.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept
        : limits_(std::exchange(other.limits_, nullptr)),
          client_(std::move(other.client_)),
          calls_(other.calls_) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(limits_, other.limits_);
      std::swap(client_, other.client_);
      std::swap(calls_, other.calls_);
      return *this;
    }
    ~Lease() {
      if (limits_ != nullptr) limits_->Release(client_, calls_);
    }

   private:
    friend class ClientLimits;
    Lease(ClientLimits* limits, std::string client) : limits_(limits), client_(std::move(client)) {}
    ClientLimits* limits_ = nullptr;
    std::string client_;
    int calls_ = 1;
  };

  // Let in, or a sentence why not and when to ask again.
  struct Decision {
    absl::Status status;  // OK, or RESOURCE_EXHAUSTED; INVALID_ARGUMENT where waiting is of no use
    Lease lease;
    absl::Duration retry_after;  // what would be let in then; a guess where calls must end first
  };

  explicit ClientLimits(ClientLimitOptions options) : options_(options) {}

  bool limited() const { return options_.calls > 0 || options_.calls_per_s > 0; }
  Decision Admit(const std::string& client, absl::Time now);
  // The call that was let in is as good as so many more: it counts for them as well, all or none.
  // Where the rate would not let that many in now they are let in, and others wait for it longer.
  Decision AddCalls(Lease* lease, int more, absl::Time now);

  // clients_known, calls_over_limit_total; nothing where nothing is limited
  CounterSnapshot Counters() const;

 private:
  // One bucket: `tokens` calls may be made at `since`, and more as time passes.
  struct Client {
    int calls = 0;
    double tokens = 0;
    absl::Time since;
  };

  void Release(const std::string& client, int calls);
  void Refill(Client& client, absl::Time now) const;
  bool AtRest(const Client& client) const;
  // Forgets who has no calls and may make as many as a newcomer.
  void ForgetAtRest(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Decision Refuse(absl::Duration retry_after, const std::string& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ClientLimitOptions options_;
  mutable Mutex mutex_;
  absl::flat_hash_map<std::string, Client> clients_ ABSL_GUARDED_BY(mutex_);
  absl::Time forgot_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int64_t refused_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_CLIENT_LIMITS_H_
