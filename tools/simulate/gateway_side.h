// The gateway, simulated around the real scheduler: requests come, steps go out, tokens come back,
// and one thread has time for all of it.
#ifndef TANDEM_TOOLS_SIMULATE_GATEWAY_SIDE_H_
#define TANDEM_TOOLS_SIMULATE_GATEWAY_SIDE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "gateway/scheduler.h"
#include "tools/simulate/attention_side.h"
#include "tools/simulate/cost_model.h"
#include "tools/simulate/event_queue.h"
#include "tools/workload/lengths.h"

namespace tandem::simulate {

struct Load {
  // Closed loop: so many streams, each of which asks again when it has its answer. 0: open loop.
  int64_t streams = 0;
  double requests_per_s = 0;  // open loop, a Poisson process
  LengthDistribution prompt = LengthDistribution::Fixed(512);
  LengthDistribution output = LengthDistribution::Fixed(128);
  int64_t shared_prefix = 0;  // tokens with which all prompts begin
};

// What clients have seen since the last ResetCounts.
struct ClientTimes {
  std::vector<double> first_token_ms;
  std::vector<double> between_tokens_ms;
  int64_t tokens = 0;
  int64_t prompt_tokens = 0;  // of requests whose first token came
  int64_t finished = 0;
  int64_t refused = 0;
  int64_t failed = 0;
};

class GatewaySide {
 public:
  GatewaySide(EventQueue* events, const CostModel* costs, const SchedulerPolicy& policy,
              const Load& load, uint64_t seed);
  GatewaySide(const GatewaySide&) = delete;

  // `worker` must outlive this. Requires that it is ready before Start.
  void AddWorker(WorkerId id, AttentionSide* worker, const AttentionWorkerInfo& info);
  void OnStepDone(WorkerId worker, StepResult result);
  void Start();

  const ClientTimes& times() const { return times_; }
  const Scheduler& scheduler() const { return scheduler_; }
  // Of the streams' first requests, how many have their first token.
  int64_t streams_begun() const { return streams_begun_; }
  int64_t requests() const { return requests_; }  // that came, ever
  int64_t steps() const { return steps_; }
  Nanos busy() const { return busy_; }
  void ResetCounts();

 private:
  struct Request {
    Nanos came = 0;
    Nanos last_token = 0;
    int64_t prompt_tokens = 0;
    int64_t tokens = 0;
  };
  using Event = std::pair<double, std::function<void()>>;  // microseconds that it takes, and it

  void Enqueue(double us, std::function<void()> event);
  // Takes what has come, and sends what follows from it: as StepDriver's thread does.
  void Process();
  void SendOrders();
  void Ask(double share_of_output);
  void AskNext();
  void Take(const std::vector<SchedulerEvent>& events);
  void TakeToken(JobId id, Request& request);

  EventQueue& events_;
  const CostModel& costs_;
  const Load load_;
  Scheduler scheduler_;
  WorkloadRandom random_;
  std::map<WorkerId, AttentionSide*> workers_;
  std::map<JobId, Request> live_;
  std::vector<Event> queue_;
  bool processing_ = false;
  JobId last_job_ = 0;
  int64_t streams_begun_ = 0;
  int64_t requests_ = 0;
  ClientTimes times_;
  int64_t steps_ = 0;
  Nanos busy_ = 0;
};

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_GATEWAY_SIDE_H_
