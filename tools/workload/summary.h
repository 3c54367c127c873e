// What many measured values come to.
#ifndef TANDEM_TOOLS_WORKLOAD_SUMMARY_H_
#define TANDEM_TOOLS_WORKLOAD_SUMMARY_H_

#include <cstddef>
#include <vector>

namespace tandem {

// Of the smallest values that are a `share` of `sorted`, the largest (nearest rank): a value that
// was measured. 0 if there are none.
double Percentile(const std::vector<double>& sorted, double share);

struct Summary {
  size_t count = 0;
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};
Summary Summarize(std::vector<double> values);

}  // namespace tandem

#endif  // TANDEM_TOOLS_WORKLOAD_SUMMARY_H_
