// What `tandem status` prints.
#ifndef TANDEM_TOOLS_TANDEM_STATUS_VIEW_H_
#define TANDEM_TOOLS_TANDEM_STATUS_VIEW_H_

#include <optional>
#include <string>

#include "proto/inference.pb.h"

namespace tandem::tool {

struct StatusViewOptions {
  bool counters = false;  // of every worker, and the gateway's histograms
  bool map = false;       // each layer's experts by worker, instead of how many
};

// Lines for a person, each with its end. `before`, not null, is what was answered `seconds` > 0
// earlier: rates are shown. A worker that was not there then, or has started again, has none.
// Percentiles are of what came since `since` was answered, or since the gateway's start if that is
// null or of an earlier gateway.
std::string StatusText(const v1::GetStatusResponse& status, const v1::GetStatusResponse* before,
                       double seconds, const StatusViewOptions& options,
                       const v1::GetStatusResponse* since = nullptr);

// The value that a share `q`, 0 to 1, of all do not exceed, as Prometheus' histogram_quantile
// estimates it: evenly spread within each bucket. Infinite if it is above all bounds; none if there
// are no values.
std::optional<double> Quantile(const v1::Histogram& histogram, double q);

// `text` as a terminal of so many rows and columns takes it without scrolling or breaking lines:
// what does not fit is left out, and how many lines that are is said in the last one.
std::string FitToScreen(const std::string& text, int rows, int columns);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_STATUS_VIEW_H_
