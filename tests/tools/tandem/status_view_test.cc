#include "tools/tandem/status_view.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem::tool {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

v1::WorkerStatus* AddWorker(v1::GetStatusResponse* status, uint32_t id, const char* kind,
                            const char* state) {
  v1::WorkerStatus* const worker = status->add_workers();
  worker->set_id(id);
  worker->set_kind(kind);
  worker->set_state(state);
  worker->set_loaded(1);
  return worker;
}

// Three layers, the first one dense, of four experts: workers 3 and 4 have two each, and both have
// expert 0 of the last layer.
v1::GetStatusResponse TwoExpertWorkers() {
  v1::GetStatusResponse status;
  status.set_state("serving");
  status.set_detail("experts are moving");
  status.set_placement_counter(7);
  status.set_target_counter(8);
  AddWorker(&status, 0, "gateway", "ready");
  AddWorker(&status, 3, "expert", "ready");
  AddWorker(&status, 4, "expert", "loading");
  v1::PlacementStatus& placement = *status.mutable_placement();
  placement.set_counter(7);
  placement.set_num_layers(3);
  placement.set_num_experts(4);
  for (int i = 0; i < 12; ++i) {
    v1::PlacementStatus::Holders& holders = *placement.add_holders();
    if (i >= 4) holders.add_worker_ids(i % 4 < 2 ? 3 : 4);
  }
  placement.mutable_holders(8)->add_worker_ids(4);
  return status;
}

TEST(StatusViewTest, ShowsVersionsAndWhatIsMoving) {
  v1::GetStatusResponse status = TwoExpertWorkers();
  v1::WorkerStatus& worker = *status.mutable_workers(2);
  worker.set_experts(832);
  worker.set_target_experts(640);
  worker.set_expert_capacity(7);  // of eight
  status.mutable_workers(1)->set_expert_capacity(9);
  worker.set_placement_counter(7);
  worker.set_loaded(0.25);
  const std::string text = StatusText(status, nullptr, 1, {});
  EXPECT_THAT(text, HasSubstr("serving: experts are moving\n"));
  EXPECT_THAT(text, HasSubstr("placement 7 in use, 8 being loaded\n"));
  EXPECT_THAT(text, HasSubstr("expert       4  loading     25%          7  832 -> 640 of 7"));
  EXPECT_THAT(text, Not(HasSubstr("of 9")));
  EXPECT_THAT(text, HasSubstr("placement 7, in use: layers, experts; worker: how many it has\n"
                              "  1       4 at 1 worker;  3: 2  4: 2\n"
                              "  2       3 at 1 worker, 1 at 2 workers;  3: 2  4: 3\n"));
}

TEST(StatusViewTest, ShowsEachExpertOnDemand) {
  const std::string text = StatusText(TwoExpertWorkers(), nullptr, 1, {.map = true});
  EXPECT_THAT(text, HasSubstr("placement 7, in use: layers, worker: its experts\n"
                              "  1         3: 0-1  4: 2-3\n"
                              "  2         3: 0-1  4: 0,2-3\n"));
}

TEST(StatusViewTest, ManyWorkersAreCountedAndEqualLayersShareALine) {
  v1::GetStatusResponse status;
  status.set_placement_counter(1);
  status.set_target_counter(1);
  v1::PlacementStatus& placement = *status.mutable_placement();
  placement.set_counter(1);
  placement.set_num_layers(5);
  placement.set_num_experts(10);
  for (int i = 0; i < 50; ++i) {
    v1::PlacementStatus::Holders& holders = *placement.add_holders();
    if (i >= 10) holders.add_worker_ids(i % 10 == 9 ? 100 : 100 + i % 10);
  }
  EXPECT_THAT(StatusText(status, nullptr, 1, {}),
              HasSubstr("  1-4     10 at 1 worker; 1 to 2 at each of 9 workers\n"));
}

TEST(StatusViewTest, RatesNeedAnEarlierAnswerOfTheSameWorker) {
  v1::GetStatusResponse before = TwoExpertWorkers();
  v1::GetStatusResponse now = before;
  (*before.mutable_workers(1)->mutable_counters())["rows_total"] = 1000;
  (*now.mutable_workers(1)->mutable_counters())["rows_total"] = 4000;
  (*before.mutable_workers(2)->mutable_counters())["rows_total"] = 5000;  // has started again since
  (*now.mutable_workers(2)->mutable_counters())["rows_total"] = 12;
  (*now.mutable_workers(0)->mutable_counters())["jobs_waiting"] = 5;
  const std::string text = StatusText(now, &before, 2, {});
  EXPECT_THAT(text, HasSubstr("1500 rows/s"));
  EXPECT_THAT(text, HasSubstr("5 waiting"));
  EXPECT_EQ(text.find("rows/s"), text.rfind("rows/s"));
  EXPECT_THAT(StatusText(now, nullptr, 1, {}), Not(HasSubstr("rows/s")));
}

TEST(StatusViewTest, SaysWhereALayersTimeGoesAndHowBusyExpertsAre) {
  v1::GetStatusResponse before;
  AddWorker(&before, 0, "gateway", "ready");
  AddWorker(&before, 1, "attention", "ready");
  AddWorker(&before, 2, "expert", "ready");
  v1::GetStatusResponse now = before;
  for (const char* part : {"attention", "dispatch", "mlp", "expert_wait", "combine"}) {
    const std::string counter = std::string("layer_") + part + "_us_total";
    (*before.mutable_workers(1)->mutable_counters())[counter] = 1000;
    (*now.mutable_workers(1)->mutable_counters())[counter] = 1000;
  }
  EXPECT_THAT(StatusText(now, &before, 2, {}), Not(HasSubstr("%,")));
  (*now.mutable_workers(1)->mutable_counters())["layer_attention_us_total"] += 300;
  (*now.mutable_workers(1)->mutable_counters())["layer_expert_wait_us_total"] += 100;
  (*before.mutable_workers(2)->mutable_counters())["busy_us_total"] = 0;
  (*now.mutable_workers(2)->mutable_counters())["busy_us_total"] = 500'000;
  const std::string text = StatusText(now, &before, 2, {});
  EXPECT_THAT(text, HasSubstr("attention 75%, dispatch 0%, mlp 0%, expert wait 25%, combine 0%"));
  EXPECT_THAT(text, HasSubstr("computes 25% of the time"));
}

TEST(StatusViewTest, NamesWhoIsSilentOrBusyAndOtherVersions) {
  v1::GetStatusResponse status = TwoExpertWorkers();
  status.mutable_workers(0)->set_build("2.0");
  status.mutable_workers(1)->set_silent_ms(2500);
  status.mutable_workers(1)->set_busy_ms(999);
  status.mutable_workers(2)->set_busy_ms(61000);
  status.mutable_workers(2)->set_build("1.9");
  const std::string text = StatusText(status, nullptr, 1, {});
  EXPECT_THAT(text, HasSubstr("silent for 2.5 s"));
  EXPECT_THAT(text, HasSubstr("busy for 61.0 s"));
  EXPECT_EQ(text.find("busy"), text.rfind("busy"));
  EXPECT_THAT(text, HasSubstr("its program is version 1.9, the gateway's 2.0"));
}

// Bounds 1, 2 and 4.
v1::Histogram MakeHistogram(const char* name, const std::vector<uint64_t>& counts) {
  v1::Histogram histogram;
  histogram.set_name(name);
  for (const double bound : {1, 2, 4}) histogram.add_upper_bounds(bound);
  histogram.mutable_counts()->Add(counts.begin(), counts.end());
  return histogram;
}

TEST(StatusViewTest, AQuantileLiesWithinItsBucket) {
  const v1::Histogram histogram = MakeHistogram("", {10, 0, 10, 0});
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.25), 0.5);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.5), 1);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.75), 3);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 1), 4);
  EXPECT_TRUE(std::isinf(*Quantile(MakeHistogram("", {1, 0, 0, 1}), 0.99)));
  EXPECT_FALSE(Quantile(MakeHistogram("", {0, 0, 0, 0}), 0.5).has_value());
}

TEST(StatusViewTest, PercentilesAreOfWhatCameSinceThen) {
  constexpr char kName[] = "time_to_first_token_seconds";
  v1::GetStatusResponse since = TwoExpertWorkers();
  v1::GetStatusResponse now = since;
  EXPECT_THAT(StatusText(now, nullptr, 1, {}), Not(HasSubstr("latency")));
  *since.mutable_workers(0)->add_histograms() = MakeHistogram(kName, {100, 0, 0, 0});
  *now.mutable_workers(0)->add_histograms() = MakeHistogram(kName, {100, 0, 20, 0});
  EXPECT_THAT(StatusText(now, nullptr, 1, {}, &since),
              HasSubstr("  first token       3000 ms    3800 ms    3980 ms        20\n"));
  EXPECT_THAT(StatusText(now, nullptr, 1, {}),
              HasSubstr("  first token        600 ms    2800 ms    3880 ms       120\n"));
  // The gateway has started again.
  *now.mutable_workers(0)->mutable_histograms(0) = MakeHistogram(kName, {0, 0, 0, 2});
  EXPECT_THAT(StatusText(now, nullptr, 1, {}, &since),
              HasSubstr("  first token     > 4000 ms  > 4000 ms  > 4000 ms         2\n"));
  // Nothing came.
  EXPECT_THAT(StatusText(since, nullptr, 1, {}, &since),
              HasSubstr("  first token             -          -          -         0\n"));
}

TEST(StatusViewTest, CountersAreSorted) {
  v1::GetStatusResponse status;
  v1::WorkerStatus* const worker = AddWorker(&status, 0, "gateway", "ready");
  (*worker->mutable_counters())["b"] = 2;
  (*worker->mutable_counters())["a"] = 1;
  const std::string text = StatusText(status, nullptr, 1, {.counters = true});
  EXPECT_LT(text.find("    a "), text.find("    b "));
  EXPECT_THAT(StatusText(status, nullptr, 1, {}), Not(HasSubstr("    a ")));
  EXPECT_THAT(text, Not(HasSubstr("placement")));  // one process: there is none
}

TEST(StatusViewTest, FitsTheScreen) {
  EXPECT_EQ(FitToScreen("one\ntwo\nthree\n", 3, 80), "one\ntwo\nthree");
  EXPECT_EQ(FitToScreen("one\ntwo\nthree\n", 2, 80), "one\n... and 2 lines more");
  EXPECT_EQ(FitToScreen("one\nthree\n", 5, 3), "one\nthr");
}

}  // namespace
}  // namespace tandem::tool
