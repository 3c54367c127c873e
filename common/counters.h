// What a component counts, as it is shown in status, heartbeats, metrics and tests.
#ifndef TANDEM_COMMON_COUNTERS_H_
#define TANDEM_COMMON_COUNTERS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace tandem {

// (name, value) in a fixed order. Names ending in _total only grow; all others are gauges.
using CounterSnapshot = std::vector<std::pair<std::string, int64_t>>;

}  // namespace tandem

#endif  // TANDEM_COMMON_COUNTERS_H_
