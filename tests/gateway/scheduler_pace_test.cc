// How many rows and layers of prefill go beside those who decode.
#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/scheduler_house.h"

namespace tandem {
namespace {

constexpr int kDeepLayers = 10;

// Eight sequences that decode, and the steps that the worker runs.
class PaceTest : public ::testing::Test {
 protected:
  struct Ran {
    int64_t us = 0;
    int decode_rows = 0;
    int prefill_rows = 0;  // of new batches
    int prefill_layers = 0;
  };

  // Of a layer: its weights once for all rows, then each row.
  static double LayerUs(int, int rows) { return 2000.0 + 20.0 * rows; }

  House& Start(SchedulerPolicy policy, int decoding = 8,
               SimulatedAttentionWorker::LayerTime layer_us = LayerUs) {
    house_ = std::make_unique<House>(policy);
    house_->AddWorker(1, 400, kDeepLayers);
    house_->workers[1]->SetLayerTime(std::move(layer_us));
    for (int i = 0; i < decoding; ++i) house_->Add(MakeJob(20, 2000, i));
    Run(60);
    return *house_;
  }

  // Runs so many steps, or until `done`.
  std::vector<Ran> Run(
      int steps, const std::function<bool()>& done = [] { return false; }) {
    std::vector<Ran> ran;
    for (int i = 0; i < steps && !done(); ++i) {
      while (std::optional<Step> step = house_->Plan(1)) sent_.push_back(*std::move(step));
      if (sent_.empty()) break;
      house_->Work(1);
      Ran& now = ran.emplace_back(Describe(sent_.front()));
      sent_.pop_front();
      now.us = house_->results[1].front().busy_us;
      house_->Deliver(1);
    }
    return ran;
  }

  static Ran Describe(const Step& step) {
    Ran ran;
    std::set<BatchId> decode;
    for (const NewBatch& batch : step.new_batches) {
      for (const RowRun& run : batch.runs) {
        (run.last_sampled ? ran.decode_rows : ran.prefill_rows) += run.count;
        if (run.last_sampled) decode.insert(batch.batch);
      }
    }
    for (const Advance& advance : step.advance) {
      if (!decode.contains(advance.batch)) {
        ran.prefill_layers += advance.end_layer - advance.first_layer;
      }
    }
    return ran;
  }

  bool HasToken(JobId job) const { return !house_->outcomes.at(job).tokens.empty(); }

  std::unique_ptr<House> house_;
  std::deque<Step> sent_;
};

TEST_F(PaceTest, StepsStayWithinTheTargetWhileAPromptIsComputed) {
  SchedulerPolicy policy;
  House& house = Start(policy);
  const double alone_us = kDeepLayers * LayerUs(8, 8);
  EXPECT_EQ(Run(1)[0].us, static_cast<int64_t>(alone_us));
  const JobId prompt = house.Add(MakeJob(4096, 5, 77));
  const std::vector<Ran> steps = Run(5000, [&] { return HasToken(prompt); });
  ASSERT_TRUE(HasToken(prompt));
  int64_t worst_us = 0, total_us = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i].decode_rows, 8) << i;
    total_us += steps[i].us;
    if (i >= 20) worst_us = std::max(worst_us, steps[i].us);
  }
  EXPECT_LT(worst_us, 1.6 * alone_us);
  EXPECT_GT(static_cast<double>(total_us) / steps.size(), 1.25 * alone_us);  // and uses what it may
  // A layer's rows are as many as fit, so that few slices read its weights.
  const int64_t layers = house.scheduler.prefill_layers();
  EXPECT_LT(layers, 10 * kDeepLayers + 8);
  house.CheckWorker(*house.workers[1]);
}

TEST_F(PaceTest, AnotherTargetGivesOtherTimes) {
  double last = 0;
  for (const double target : {1.2, 2.0, 4.0}) {
    SchedulerPolicy policy;
    policy.prefill_step_target = target;
    House& house = Start(policy);
    const JobId prompt = house.Add(MakeJob(8000, 5, 77));
    const std::vector<Ran> steps = Run(5000, [&] { return HasToken(prompt); });
    std::vector<int64_t> us;
    for (const Ran& step : steps) us.push_back(step.us);
    std::nth_element(us.begin(), us.begin() + us.size() / 2, us.end());
    const double median = us[us.size() / 2] / (kDeepLayers * LayerUs(8, 8));
    EXPECT_GT(median, last);
    EXPECT_LT(median, 1.1 * target);
    EXPECT_GT(median, 1 + 0.6 * (target - 1));
    last = median;
  }
}

TEST_F(PaceTest, WhereNoSliceFitsTheLeastOneGoesOn) {
  SchedulerPolicy policy;
  // A row of prefill costs as much as a decode step.
  House& house = Start(
      policy, 8, [](int decode_rows, int rows) { return 1000.0 + 10000.0 * (rows - decode_rows); });
  const JobId prompt = house.Add(MakeJob(300, 5, 77));
  const std::vector<Ran> steps = Run(5000, [&] { return HasToken(prompt); });
  ASSERT_TRUE(HasToken(prompt));
  for (size_t i = 1; i < steps.size(); ++i) {
    EXPECT_LE(steps[i].prefill_layers, 1);
    EXPECT_TRUE(steps[i].prefill_rows == 0 ||
                (steps[i].prefill_rows >= Scheduler::kLeastPrefillRows &&
                 steps[i].prefill_rows <= Scheduler::kLeastPrefillRows + 300 / 8) ||
                steps[i].prefill_rows == 300 - 64 - 72 - 81);
  }
}

TEST_F(PaceTest, APromptAloneGoesAsAWhole) {
  SchedulerPolicy policy;
  House& house = Start(policy, 0);
  const JobId prompt = house.Add(MakeJob(2048, 5, 77));
  const std::vector<Ran> steps = Run(100, [&] { return HasToken(prompt); });
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(steps[0].prefill_rows, 2048);
  EXPECT_EQ(house.scheduler.prefill_layers(), kDeepLayers);
  EXPECT_EQ(house.scheduler.prefill_rows(), 2048);
}

TEST_F(PaceTest, WithoutATargetEverythingGoesAtOnce) {
  SchedulerPolicy policy;
  policy.prefill_step_target = 0;
  House& house = Start(policy);
  const JobId prompt = house.Add(MakeJob(2048, 5, 77));
  const std::vector<Ran> steps = Run(100, [&] { return HasToken(prompt); });
  EXPECT_THAT(steps, ::testing::Contains(::testing::Field(&Ran::prefill_rows, 2048)));
  EXPECT_LE(steps.size(), 3u);
}

TEST_F(PaceTest, LayersPerStepMayBeBoundedBesides) {
  SchedulerPolicy policy;
  policy.max_layers_per_step = 3;
  House& house = Start(policy, 0);
  const JobId prompt = house.Add(MakeJob(1000, 5, 77));
  const std::vector<Ran> steps = Run(100, [&] { return HasToken(prompt); });
  std::vector<int> layers;
  for (const Ran& step : steps) layers.push_back(step.prefill_layers);
  EXPECT_THAT(layers, ::testing::ElementsAre(3, 3, 3, 1));
}

TEST_F(PaceTest, TheOldestPromptGoesFirstAndNoneWaitsForever) {
  SchedulerPolicy policy;
  House& house = Start(policy);
  std::vector<JobId> prompts;
  for (int i = 0; i < 4; ++i) prompts.push_back(house.Add(MakeJob(1500, 3, 100 + i)));
  std::vector<JobId> order;
  for (int i = 0; i < 3000 && order.size() < 4; ++i) {
    const int64_t us = Run(1)[0].us;
    if (i >= 20) {
      EXPECT_LT(us, 1.75 * kDeepLayers * LayerUs(8, 8)) << i;
    }
    for (const JobId job : prompts) {
      const bool known = std::find(order.begin(), order.end(), job) != order.end();
      if (!known && HasToken(job)) order.push_back(job);
    }
  }
  EXPECT_EQ(order, prompts);
}

TEST_F(PaceTest, WherePromptsOutnumberWhoDecodesTheyGetMore) {
  std::vector<int64_t> medians;
  for (const int prompts : {1, 6}) {
    SchedulerPolicy policy;
    House& house = Start(policy, 2);
    for (int i = 0; i < prompts; ++i) house.Add(MakeJob(4000, 3, 100 + i));
    std::vector<int64_t> us;
    for (const Ran& step : Run(60)) us.push_back(step.us);
    std::nth_element(us.begin(), us.begin() + us.size() / 2, us.end());
    medians.push_back(us[us.size() / 2]);
  }
  const double alone_us = kDeepLayers * LayerUs(2, 2);
  EXPECT_LT(medians[0], 1.7 * alone_us);
  EXPECT_GT(medians[1], 2.0 * alone_us);  // 1 + 0.5 * 6 / 2, less as they come to their ends
  EXPECT_LT(medians[1], 2.8 * alone_us);
}

TEST_F(PaceTest, AFewRowsPassManyLayersInAStep) {
  SchedulerPolicy policy;
  House& house = Start(policy);
  const JobId first = house.Add(MakeJob(4000, 3, 99));  // by which it learns
  Run(5000, [&] { return HasToken(first); });
  ASSERT_TRUE(HasToken(first));
  Run(5);
  const JobId prompt = house.Add(MakeJob(130, 3, 100));
  const std::vector<Ran> steps = Run(100, [&] { return HasToken(prompt); });
  EXPECT_LE(steps.size(), 5u);
  EXPECT_THAT(steps, ::testing::Contains(::testing::Field(
                         &Ran::prefill_layers,
                         ::testing::AllOf(::testing::Gt(1), ::testing::Lt(kDeepLayers)))));
}

}  // namespace
}  // namespace tandem
