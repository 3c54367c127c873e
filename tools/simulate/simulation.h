// A whole deployment under load, simulated: what it gives, and which part of it has no time left.
#ifndef TANDEM_TOOLS_SIMULATE_SIMULATION_H_
#define TANDEM_TOOLS_SIMULATE_SIMULATION_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "gateway/scheduler.h"
#include "tools/simulate/attention_side.h"
#include "tools/simulate/cost_model.h"
#include "tools/simulate/gateway_side.h"
#include "tools/workload/summary.h"

namespace tandem::simulate {

struct SimulationOptions {
  ModelConfig model;
  CostConstants constants;
  SchedulerPolicy policy;
  Load load;
  int attention_workers = 1;
  int expert_workers = 1;
  int64_t cache_pages = 16384;  // of each attention worker
  int copies = 2;               // of an expert, at most
  int64_t expert_capacity = 0;  // of an expert worker's memory; 0: no limit
  double skew = 0;              // as in Routing
  // What is measured begins when every stream has its first token (closed loop) or after a fifth of
  // the requests (open loop), and ends after so many tokens per stream, or all requests.
  int64_t tokens_per_stream = 64;
  int64_t open_loop_requests = 2000;
  double max_simulated_s = 36000;  // gives up then
  uint64_t seed = 1;
};

// The share of the measured time in which it was busy.
struct BusyShare {
  double mean = 0;
  double max = 0;  // of the busiest of its kind
};

struct SimulationReport {
  double measured_s = 0;  // of simulated time
  double tokens_per_s = 0;
  double prompt_tokens_per_s = 0;
  double requests_per_s = 0;
  Summary step_ms;  // that decode
  Summary first_token_ms;
  Summary between_tokens_ms;
  int64_t refused = 0;
  int64_t failed = 0;
  int64_t preemptions = 0;
  int64_t waiting = 0;                                        // requests in the end
  BusyShare attention, experts, attention_port, expert_port;  // ports: the busier direction
  double gateway = 0;
  // Parts of the steps' time; their sum is 1.
  double in_attention = 0, in_network = 0, in_queue = 0, in_experts = 0, in_engine = 0;
  double calls_per_layer = 0;        // expert workers that a worker's layer asks
  double calls_per_computation = 0;  // merged
  double experts_per_computation = 0;
  double routes_per_expert = 0;  // read once for them
  double imbalance = 0;          // of expert workers: the busiest over the mean
  // The busiest kind of part, if its busiest one works for more than 85% of the time; else
  // "latency": nothing is full, and steps wait for one part after the other.
  std::string bound;
  int64_t events = 0;
};

// The same options give the same report.
//   DEADLINE_EXCEEDED   nothing was measured within max_simulated_s
//   as PlanPlacement
absl::StatusOr<SimulationReport> Simulate(const SimulationOptions& options);

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_SIMULATION_H_
