#include "gateway/status_report.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

TEST(StatusReportTest, HistogramsCountEachValueOnce) {
  prometheus::Registry registry;
  auto& family = prometheus::BuildHistogram().Name("tandem_x_seconds").Register(registry);
  prometheus::Histogram& histogram = family.Add({}, prometheus::Histogram::BucketBoundaries{1, 2});
  family.Add({{"part", "other"}}, prometheus::Histogram::BucketBoundaries{1});
  prometheus::BuildCounter().Name("tandem_x_total").Register(registry).Add({});
  for (const double value : {1.0, 1.5, 2.0, 7.0}) histogram.Observe(value);
  v1::WorkerStatus status;
  AddHistograms(registry, "tandem_x_", &status);
  ASSERT_EQ(status.histograms_size(), 1);
  const v1::Histogram& shown = status.histograms(0);
  EXPECT_EQ(shown.name(), "seconds");
  EXPECT_THAT(shown.upper_bounds(), ::testing::ElementsAre(1, 2));
  EXPECT_THAT(shown.counts(), ::testing::ElementsAre(1, 2, 1));
  EXPECT_EQ(shown.sum(), 11.5);
}

TEST(StatusReportTest, ShowsWorkersAndBothPlacements) {
  Coordinator::View view;
  view.detail = "experts are moving";
  view.refused = {"it is another checkpoint"};
  view.now = absl::UnixEpoch() + absl::Seconds(100);
  Placement& in_use = view.placement;
  in_use.version = {9, 3};
  in_use.num_layers = 1;
  in_use.num_experts = 3;
  in_use.holders = {{1}, {1, 2}, {1}};
  view.target = in_use;
  view.target.version.counter = 4;
  view.target.holders = {{1}, {2}, {2}};
  Member expert;
  expert.id = 1;
  expert.join.kind = WorkerKind::kExpert;
  expert.join.expert_capacity = 50;
  expert.join.digest = "d";
  expert.join.numerics_class = "n";
  expert.health.expert_capacity = 40;
  expert.health.placement = {9, 4};
  expert.health.busy = absl::Milliseconds(1500);
  expert.health.counters = {{"rows_total", 77}};
  expert.last_seen = view.now - absl::Milliseconds(250);
  Member attention;
  attention.id = 5;
  view.members = {{expert, MemberState::kReady}, {attention, MemberState::kJoining}};

  v1::GetStatusResponse status;
  AddMembers(view, /*placement=*/true, &status);
  EXPECT_EQ(status.detail(), "experts are moving");
  EXPECT_EQ(status.placement_epoch(), 9u);
  EXPECT_EQ(status.placement_counter(), 3u);
  EXPECT_EQ(status.target_counter(), 4u);
  ASSERT_EQ(status.refused_size(), 1);
  EXPECT_EQ(status.refused(0), "it is another checkpoint");
  ASSERT_EQ(status.workers_size(), 2);
  const v1::WorkerStatus& worker = status.workers(0);
  EXPECT_EQ(worker.kind(), "expert");
  EXPECT_EQ(worker.digest(), "d");
  EXPECT_EQ(worker.numerics_class(), "n");
  EXPECT_EQ(worker.state(), "ready");
  EXPECT_EQ(worker.experts(), 3u);
  EXPECT_EQ(worker.target_experts(), 1u);
  EXPECT_EQ(worker.expert_capacity(), 40u);
  EXPECT_EQ(worker.placement_counter(), 4u);
  EXPECT_EQ(worker.busy_ms(), 1500u);
  EXPECT_EQ(worker.silent_ms(), 250u);
  EXPECT_EQ(worker.counters().at("rows_total"), 77);
  EXPECT_EQ(status.workers(1).expert_capacity(), 0u);
  EXPECT_EQ(status.placement().counter(), 3u);
  ASSERT_EQ(status.placement().holders_size(), 3);
  EXPECT_EQ(status.placement().holders(1).worker_ids_size(), 2);
  EXPECT_EQ(status.target().counter(), 4u);
  EXPECT_EQ(status.target().holders(2).worker_ids(0), 2u);
}

TEST(StatusReportTest, SaysWhoHoldsWhatOnDemandOnly) {
  Coordinator::View view;
  view.placement.version = view.target.version = {9, 3};
  view.placement.holders = view.target.holders = {{1}};
  v1::GetStatusResponse status;
  AddMembers(view, /*placement=*/false, &status);
  EXPECT_FALSE(status.has_placement());
  AddMembers(view, /*placement=*/true, &status);
  EXPECT_TRUE(status.has_placement());
  EXPECT_FALSE(status.has_target()) << "it is the one in use";
}

}  // namespace
}  // namespace tandem
