// Which expert workers hold which experts.
#ifndef TANDEM_COMMON_PLACEMENT_H_
#define TANDEM_COMMON_PLACEMENT_H_

#include <algorithm>
#include <compare>
#include <cstdint>
#include <string>
#include <vector>

namespace tandem {

using WorkerId = uint32_t;  // given by the registry, never reused within a gateway's life

// Orders placements: a gateway's life, then a count within it.
struct PlacementVersion {
  uint64_t epoch = 0;
  uint64_t counter = 0;
  auto operator<=>(const PlacementVersion&) const = default;
};

// A versioned map from (layer, expert) to the expert workers that hold it, one or more, in an order
// that means nothing: dispatchers choose. Owned by the gateway, pushed to every worker. A plain
// value.
struct Placement {
  struct Worker {
    WorkerId id = 0;
    std::string address;       // host:port of its ExpertWorker service; empty within one process
    uint64_t incarnation = 0;  // of its process: where it listens on its own machine
    bool operator==(const Worker&) const = default;
  };

  // A worker and the experts that it has loaded.
  struct Source {
    Worker worker;
    std::vector<bool> experts;  // [num_layers * num_experts]
  };

  PlacementVersion version;
  bool urgent = false;  // requests wait for it: it is loaded as fast as can be
  int num_layers = 0;   // of the model, dense ones included
  int num_experts = 0;  // routed experts per layer
  std::vector<Worker> workers;
  std::vector<std::vector<WorkerId>> holders;  // [num_layers * num_experts]; empty in dense layers
  // Of what is to be loaded: who had what when it was planned, as far as the gateway knew.
  std::vector<Source> sources;

  // Of [num_layers * num_experts], those that `worker` holds.
  std::vector<bool> GivenTo(WorkerId worker) const {
    std::vector<bool> given(holders.size());
    for (size_t i = 0; i < holders.size(); ++i) {
      given[i] = std::find(holders[i].begin(), holders[i].end(), worker) != holders[i].end();
    }
    return given;
  }
  // Null if it names no worker of that id.
  const Worker* Find(WorkerId id) const {
    const auto it = std::find_if(workers.begin(), workers.end(),
                                 [id](const Worker& worker) { return worker.id == id; });
    return it != workers.end() ? &*it : nullptr;
  }
  // In this life of the worker's process.
  bool Names(const Worker& worker) const {
    const Worker* const named = Find(worker.id);
    return named != nullptr && *named == worker;
  }
  const std::vector<WorkerId>& Holders(int layer, int expert) const {
    return holders[static_cast<size_t>(layer) * num_experts + expert];
  }
};

}  // namespace tandem

#endif  // TANDEM_COMMON_PLACEMENT_H_
