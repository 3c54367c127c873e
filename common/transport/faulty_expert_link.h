// An expert link that fails on purpose, for tests: what happens to each request follows from a
// seed.
#ifndef TANDEM_COMMON_TRANSPORT_FAULTY_EXPERT_LINK_H_
#define TANDEM_COMMON_TRANSPORT_FAULTY_EXPERT_LINK_H_

#include <chrono>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "common/transport/expert_link.h"
#include "common/transport/timer_thread.h"

namespace tandem {

// Probabilities, each of one fate of a request; what is left of 1 goes through unharmed.
struct ExpertFaults {
  double drop = 0;        // never answered, which no honest link does
  double error = 0;       // UNAVAILABLE, without being computed
  double wrong_rows = 0;  // the first row is missing
  double delay = 0;       // answered late, by up to max_delay
  std::chrono::milliseconds max_delay{50};
};

// Thread-safe. Delayed answers that are still due when the link is destroyed are given then. Must
// be owned by a shared_ptr.
class FaultyExpertLink : public ExpertLink, public std::enable_shared_from_this<FaultyExpertLink> {
 public:
  FaultyExpertLink(std::shared_ptr<ExpertLink> inner, ExpertFaults faults, uint64_t seed)
      : inner_(std::move(inner)),
        faults_(faults),
        random_(seed),
        timer_([this] { return DeliverDue(); }) {}
  ~FaultyExpertLink() override {
    std::vector<Late> late;
    {
      MutexLock lock(mu_);
      late.swap(late_);
    }
    for (Late& l : late) l.done(std::move(l.reply));
  }

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
    double fate;
    std::chrono::milliseconds delay;
    {
      MutexLock lock(mu_);
      fate = std::uniform_real_distribution<double>(0, 1)(random_);
      delay = std::chrono::milliseconds(random_() % (faults_.max_delay.count() + 1));
    }
    if ((fate -= faults_.drop) < 0) return;
    if ((fate -= faults_.error) < 0) {
      done({absl::UnavailableError("a fault on purpose"), {}, nullptr});
    } else if ((fate -= faults_.wrong_rows) < 0) {
      inner_->Send(std::move(request), [done = std::move(done)](ExpertReply reply) {
        if (reply.status.ok()) reply.rows = reply.rows.slice_rows(1, reply.rows.rows() - 1);
        done(std::move(reply));
      });
    } else if ((fate -= faults_.delay) < 0) {
      inner_->Send(std::move(request),
                   [weak = weak_from_this(), delay, done = std::move(done)](ExpertReply reply) {
                     if (const auto self = weak.lock()) {
                       self->Delay(delay, done, std::move(reply));
                     } else {
                       done(std::move(reply));
                     }
                   });
    } else {
      inner_->Send(std::move(request), std::move(done));
    }
  }

 private:
  struct Late {
    TimerThread::Clock::time_point when;
    Done done;
    ExpertReply reply;
  };

  void Delay(std::chrono::milliseconds delay, Done done, ExpertReply reply) {
    {
      MutexLock lock(mu_);
      late_.push_back({TimerThread::Clock::now() + delay, std::move(done), std::move(reply)});
    }
    timer_.Wake();
  }

  TimerThread::Clock::time_point DeliverDue() {
    const auto now = TimerThread::Clock::now();
    auto next = now + std::chrono::hours(1);
    std::vector<Late> due;
    {
      MutexLock lock(mu_);
      for (size_t i = 0; i < late_.size();) {
        if (late_[i].when <= now) {
          due.push_back(std::move(late_[i]));
          late_.erase(late_.begin() + i);
        } else {
          next = std::min(next, late_[i].when);
          ++i;
        }
      }
    }
    for (Late& l : due) l.done(std::move(l.reply));
    return next;
  }

  const std::shared_ptr<ExpertLink> inner_;
  const ExpertFaults faults_;
  Mutex mu_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  std::vector<Late> late_ ABSL_GUARDED_BY(mu_);
  TimerThread timer_;  // last: its thread uses all of the above
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_FAULTY_EXPERT_LINK_H_
