// Expert workers and the links to them, simulated.
#ifndef TANDEM_TOOLS_SIMULATE_EXPERT_SIDE_H_
#define TANDEM_TOOLS_SIMULATE_EXPERT_SIDE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "common/placement.h"
#include "tools/simulate/cost_model.h"
#include "tools/simulate/event_queue.h"

namespace tandem::simulate {

// One attention worker's rows of a layer for one expert worker, and when what happened to them.
struct ExpertCall {
  int layer = 0;
  int64_t rows = 0;                                  // that travel there
  int64_t reply_rows = 0;                            // that travel back
  std::vector<std::pair<int32_t, int64_t>> experts;  // and how many routes each has
  Nanos sent = 0;
  Nanos arrived = 0;
  Nanos begun = 0;
  Nanos computed = 0;
  // When the reply has come to the attention worker's port.
  std::function<void(const std::shared_ptr<ExpertCall>&)> answered;
};

// A worker as expert_worker/engine.cc has it: one thread; the oldest call first, and with it all
// that wait for the same layer.
class ExpertSide {
 public:
  ExpertSide(EventQueue* events, const CostModel* costs) : events_(*events), costs_(*costs) {}
  ExpertSide(const ExpertSide&) = delete;

  // `call` has left the attention worker.
  void Send(std::shared_ptr<ExpertCall> call);

  struct Counts {
    int64_t computations = 0;
    int64_t calls = 0;    // merged into these
    int64_t experts = 0;  // distinct ones whose weights were read, of all computations
    int64_t routes = 0;
  };
  const Counts& counts() const { return counts_; }
  Nanos busy() const { return busy_; }
  Nanos in_busy() const { return in_.busy(); }
  Nanos out_busy() const { return out_.busy(); }
  void ResetCounts();

 private:
  void Compute();

  EventQueue& events_;
  const CostModel& costs_;
  Resource in_, out_;  // of its port
  std::deque<std::shared_ptr<ExpertCall>> waiting_;
  bool computing_ = false;
  Nanos busy_ = 0;
  Counts counts_;
};

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_EXPERT_SIDE_H_
