#include "gateway/status_report.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/strip.h"
#include "absl/time/time.h"

namespace tandem {
namespace {

// How many experts it gives each worker.
std::map<WorkerId, uint64_t> CountGiven(const Placement& placement) {
  std::map<WorkerId, uint64_t> given;
  for (const std::vector<WorkerId>& holders : placement.holders) {
    for (const WorkerId id : holders) ++given[id];
  }
  return given;
}

uint64_t Ms(absl::Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(absl::ToInt64Milliseconds(duration), 0));
}

void ToProto(const Placement& placement, v1::PlacementStatus* proto) {
  proto->set_counter(placement.version.counter);
  proto->set_num_layers(placement.num_layers);
  proto->set_num_experts(placement.num_experts);
  for (const std::vector<WorkerId>& holders : placement.holders) {
    proto->add_holders()->mutable_worker_ids()->Add(holders.begin(), holders.end());
  }
}

}  // namespace

void AddMembers(const Coordinator::View& view, bool placement, v1::GetStatusResponse* status) {
  status->set_detail(view.detail);
  status->set_placement_epoch(view.target.version.epoch);
  status->set_placement_counter(view.placement.version.counter);
  status->set_target_counter(view.target.version.counter);
  for (const std::string& why : view.refused) status->add_refused(why);
  std::map<WorkerId, uint64_t> in_use = CountGiven(view.placement);
  std::map<WorkerId, uint64_t> target = CountGiven(view.target);
  for (const auto& [member, state] : view.members) {
    v1::WorkerStatus& worker = *status->add_workers();
    worker.set_id(member.id);
    worker.set_kind(WorkerKindName(member.join.kind));
    worker.set_address(member.join.address);
    worker.set_state(MemberStateName(state));
    worker.set_build(member.join.build);
    worker.set_digest(member.join.digest);
    worker.set_numerics_class(member.join.numerics_class);
    worker.set_loaded(member.health.loaded);
    worker.set_device(member.join.device);
    worker.set_placement_counter(member.health.placement.counter);
    worker.set_busy_ms(Ms(member.health.busy));
    worker.set_silent_ms(Ms(view.now - member.last_seen));
    for (const auto& [name, value] : member.health.counters) {
      (*worker.mutable_counters())[name] = value;
    }
    if (member.join.kind != WorkerKind::kExpert) continue;
    worker.set_experts(in_use[member.id]);
    worker.set_target_experts(target[member.id]);
    const int64_t capacity = std::min(member.join.expert_capacity, member.health.expert_capacity);
    if (capacity < std::numeric_limits<int64_t>::max()) {
      worker.set_expert_capacity(static_cast<uint64_t>(std::max<int64_t>(capacity, 0)));
    }
  }
  if (!placement) return;
  ToProto(view.placement, status->mutable_placement());
  if (view.target.version != view.placement.version) {
    ToProto(view.target, status->mutable_target());
  }
}

void AddHistograms(const prometheus::Collectable& metrics, const std::string& prefix,
                   v1::WorkerStatus* status) {
  for (const prometheus::MetricFamily& family : metrics.Collect()) {
    if (family.type != prometheus::MetricType::Histogram) continue;
    for (const prometheus::ClientMetric& metric : family.metric) {
      if (!metric.label.empty()) continue;
      v1::Histogram& histogram = *status->add_histograms();
      histogram.set_name(std::string(absl::StripPrefix(family.name, prefix)));
      histogram.set_sum(metric.histogram.sample_sum);
      uint64_t below = 0;  // Prometheus counts all that a bound holds
      for (const auto& bucket : metric.histogram.bucket) {
        if (!std::isinf(bucket.upper_bound)) histogram.add_upper_bounds(bucket.upper_bound);
        histogram.add_counts(bucket.cumulative_count - below);
        below = bucket.cumulative_count;
      }
    }
  }
}

}  // namespace tandem
