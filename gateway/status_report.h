// A deployment of several processes, as GetStatus shows it.
#ifndef TANDEM_GATEWAY_STATUS_REPORT_H_
#define TANDEM_GATEWAY_STATUS_REPORT_H_

#include <prometheus/collectable.h>

#include <string>

#include "gateway/coordinator.h"
#include "proto/inference.pb.h"

namespace tandem {

// Adds the detail, the placements' versions and the workers of `view`; with `placement` also who
// holds what.
void AddMembers(const Coordinator::View& view, bool placement, v1::GetStatusResponse* status);

// Fills in the histograms among `metrics` that have no labels, named without `prefix`.
void AddHistograms(const prometheus::Collectable& metrics, const std::string& prefix,
                   v1::WorkerStatus* status);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_STATUS_REPORT_H_
