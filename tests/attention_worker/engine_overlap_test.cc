// Two steps at once, repeated steps, and what waits for what.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "attention_worker/engine.h"
#include "tests/attention_worker/engine_fixture.h"

namespace tandem {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_P(EngineTest, AStepOfOtherSequencesRunsWhileOneWaitsForItsExperts) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids_a = RandomIds(100, 31);
  const std::vector<int32_t> ids_b = RandomIds(77, 32);
  TestGateway gateway(worker.get());
  const SequenceId a = gateway.Open(ids_a);
  const SequenceId b = gateway.Open(ids_b);
  worker->gate().Shut();
  gateway.link().Run(gateway.WholeStep({Rows(a, 0, 100, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(1));
  gateway.link().Run(gateway.WholeStep({Rows(b, 0, 77, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(2));  // the first one is still held
  EXPECT_EQ(worker->Count("steps_total"), 2);
  EXPECT_TRUE(worker->WaitForCount("batches_live", 2));
  worker->gate().Open();
  Logits of_a, of_b;
  Collect(gateway.WaitForResult(), a, &of_a);
  Collect(gateway.WaitForResult(), b, &of_b);
  ExpectSameBits(of_a, Alone(*worker, ids_a));
  ExpectSameBits(of_b, Alone(*worker, ids_b));
}

TEST_P(EngineTest, ResultsComeInTheOrderOfTheStepsAlsoWhenALaterOneIsDoneFirst) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId a = gateway.Open(RandomIds(5, 33));
  const SequenceId b = gateway.Open(RandomIds(6, 34));
  worker->gate().Shut();
  gateway.link().Run(gateway.WholeStep({Rows(a, 0, 5, false, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(1));
  // The dense layer alone: no experts.
  Step dense = gateway.AdvanceStep({{gateway.NextBatch(), 0, 1}});
  dense.new_batches = {Rows(b, 0, 6, false, true)};
  dense.new_batches[0].batch = dense.advance[0].batch;
  gateway.link().Run(dense);
  EXPECT_TRUE(worker->WaitForCount("layers_total", 2));  // of a and of b
  worker->gate().Open();
  const StepResult first = gateway.WaitForResult(), second = gateway.WaitForResult();
  EXPECT_EQ(first.step + 1, second.step);
  ASSERT_THAT(first.rows, SizeIs(1));
  EXPECT_THAT(second.rows, IsEmpty());
  ASSERT_THAT(second.batches, SizeIs(1));
  EXPECT_EQ(second.batches[0].next_layer, 1);
}

TEST_P(EngineTest, AStepOfTheSameSequenceWaitsAndSoDoesARelease) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId a = gateway.Open(RandomIds(5, 35));
  worker->gate().Shut();
  gateway.link().Run(gateway.WholeStep({Rows(a, 0, 5, false, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(1));
  NewBatch decode = Rows(a, 5, 1, false, true);
  decode.runs[0].last_sampled = true;
  gateway.link().Run(gateway.WholeStep({decode}));
  gateway.link().Release(a);
  // Somebody else is served meanwhile; what was sent before it has then been looked at.
  TestGateway other(worker.get());
  const SequenceId b = other.Open(RandomIds(4, 36));
  other.link().Run(other.WholeStep({Rows(b, 0, 4, false, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(2));
  EXPECT_EQ(worker->Count("steps_total"), 2);
  worker->gate().Open();
  EXPECT_THAT(gateway.WaitForResult().rows, SizeIs(1));
  EXPECT_THAT(gateway.WaitForResult().rows, SizeIs(1));
  EXPECT_TRUE(other.WaitForResult().status.ok());
  other.link().Cancel(b);
  EXPECT_TRUE(worker->WaitForCount("pages_free", 64));
}

// A slow expert worker holds up its own step alone.
TEST_P(EngineTest, CancelsJoinsAndStepsAreServedWhileExpertsAreSlow) {
  const auto worker = MakeWorker();
  worker->gate().Shut();
  TestGateway first(worker.get());
  const SequenceId slow = first.Open(RandomIds(70, 37));
  const SequenceId doomed = first.Open(RandomIds(70, 38));
  first.link().Run(first.WholeStep({Rows(slow, 0, 70, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(1));
  {
    TestGateway joined(worker.get());  // a new session, its step and its end
    const SequenceId sequence = joined.Open(RandomIds(10, 39));
    Step step = joined.AdvanceStep({{1, 0, 1}});
    step.new_batches = {Rows(sequence, 0, 10)};
    step.new_batches[0].batch = 1;
    joined.RunOk(step);
    EXPECT_EQ(worker->Count("pages_free"), 64 - 3);
  }
  EXPECT_TRUE(worker->WaitForCount("sessions_live", 1));
  EXPECT_TRUE(worker->WaitForCount("pages_free", 62));
  // A step of another sequence of the same session; its result waits for the one before it.
  Step dense = first.AdvanceStep({{first.NextBatch(), 0, 1}});
  dense.new_batches = {Rows(doomed, 0, 70)};
  dense.new_batches[0].batch = dense.advance[0].batch;
  first.link().Run(dense);
  EXPECT_TRUE(worker->WaitForCount("pages_free", 60));
  first.link().Cancel(doomed);
  EXPECT_TRUE(worker->WaitForCount("pages_free", 62));
  first.link().Cancel(slow);
  EXPECT_TRUE(first.WaitForResult().status.ok());  // the gate is still shut
  EXPECT_TRUE(first.WaitForResult().status.ok());
  EXPECT_TRUE(worker->WaitForCount("pages_free", 64));
  worker->gate().Open();
}

TEST_P(EngineTest, RandomPairsOfStepsGiveTheSameBits) {
  TestWorkerOptions options;
  options.num_expert_workers = 2;
  const auto worker = MakeWorker(options);
  std::mt19937 random(40);
  TestGateway gateway(worker.get());
  struct Run {
    std::vector<int32_t> ids;
    SequenceId sequence;
    int32_t done = 0;
    Logits logits;
  };
  std::vector<Run> runs(6);
  for (Run& run : runs) {
    run.ids = RandomIds(60 + random() % 80, random());
    run.sequence = gateway.Open(run.ids);
  }
  // Two steps are always outstanding, of even and of odd runs, each a chunk of some of them.
  const auto send = [&](size_t group) {
    NewBatch batch;
    int32_t row = 0;
    for (size_t i = group; i < runs.size(); i += 2) {
      Run& run = runs[i];
      const auto left = static_cast<int32_t>(run.ids.size()) - run.done;
      if (left == 0) continue;
      const auto count = std::min<int32_t>(left, 1 + random() % 20);
      batch.runs.push_back({run.sequence, run.done, count, false});
      for (int32_t k = 0; k < count; ++k)
        batch.outputs.push_back({row++, RowOutputKind::kLogits, 0});
      run.done += count;
    }
    if (batch.runs.empty()) return false;
    gateway.link().Run(gateway.WholeStep({batch}));
    return true;
  };
  int outstanding = 0;
  bool more = true;
  for (size_t group = 0; more || outstanding > 0; group ^= 1) {
    more = send(group);
    if (more) ++outstanding;
    if (outstanding == 0 || (more && outstanding < 2)) continue;
    const StepResult result = gateway.WaitForResult();
    ASSERT_TRUE(result.status.ok()) << result.status;
    --outstanding;
    for (Run& run : runs) Collect(result, run.sequence, &run.logits);
  }
  while (send(0) || send(1)) {
    const StepResult result = gateway.WaitForResult();
    for (Run& run : runs) Collect(result, run.sequence, &run.logits);
  }
  for (Run& run : runs) ExpectSameBits(run.logits, Alone(*worker, run.ids));
}

TEST_P(EngineTest, SaysWhatAStepTookAndHowLongItWaited) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId a = gateway.Open(RandomIds(5, 41));
  worker->gate().Shut();
  gateway.link().Run(gateway.WholeStep({Rows(a, 0, 5, false, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));  // what is measured
  worker->gate().Open();
  const StepResult result = gateway.WaitForResult();
  EXPECT_GE(result.wait_us, 25'000);
  EXPECT_GE(result.busy_us, result.wait_us);
}

// ---- steps ----

TEST_P(EngineTest, ARepeatedStepIsAnsweredAgainAndNotRunAgain) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(RandomIds(10, 22));
  const Step step = gateway.WholeStep({Rows(sequence, 0, 10, true, true)});
  const StepResult first = gateway.RunOk(step);
  const int64_t layers = worker->Count("layers_total");
  const StepResult again = gateway.RunOk(step);
  EXPECT_EQ(worker->Count("layers_total"), layers);
  ASSERT_EQ(again.rows.size(), first.rows.size());
  EXPECT_TRUE(SameBits(again.rows[3].logits, first.rows[3].logits));
  EXPECT_EQ(again.rows.back().token, first.rows.back().token);
  EXPECT_EQ(again.batches.size(), 1u);
  // Long ago: neither known nor run.
  for (int32_t i = 0; i < 5; ++i) gateway.Decode({{sequence, 10 + i}});
  EXPECT_EQ(gateway.Run(step).status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(EngineTest, TwoStepsMayBeOutstandingAndTheNextUsesTheFirstOnesDraw) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids = RandomIds(10, 23);
  TestGateway one_by_one(worker.get());
  const SequenceId slow = one_by_one.Open(ids);
  const int32_t first =
      one_by_one.RunOk(one_by_one.WholeStep({Rows(slow, 0, 10, false, true)})).rows[0].token;
  const int32_t second = one_by_one.Decode({{slow, 10}})[0];

  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(ids);
  worker->gate().Shut();
  gateway.link().Run(gateway.WholeStep({Rows(sequence, 0, 10, false, true)}));
  NewBatch decode = Rows(sequence, 10, 1, false, true);
  decode.runs[0].last_sampled = true;
  gateway.link().Run(gateway.WholeStep({decode}));
  gateway.link().Run(gateway.AdvanceStep({}));  // one too many
  worker->gate().Open();
  EXPECT_EQ(gateway.WaitForResult().rows[0].token, first);
  EXPECT_EQ(gateway.WaitForResult().rows[0].token, second);
  EXPECT_EQ(gateway.WaitForResult().status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(EngineTest, PagesThatAnotherSessionHoldsAreARefusalAndComeBack) {
  TestWorkerOptions options;
  options.total_pages = 3;
  options.page_wait = absl::ZeroDuration();
  const auto worker = MakeWorker(options);
  TestGateway gateway(worker.get());
  TestGateway other(worker.get());
  const SequenceId a = gateway.Open(RandomIds(128, 24));
  const SequenceId b = other.Open(RandomIds(65, 25));
  gateway.RunOk(gateway.WholeStep({Rows(a, 0, 128)}));
  const StepResult refused = other.Run(other.WholeStep({Rows(b, 0, 65)}));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted) << refused.status;
  EXPECT_EQ(worker->Count("pages_free"), 1);
  gateway.link().Cancel(a);
  EXPECT_TRUE(worker->WaitForCount("pages_free", 3));
  other.RunOk(other.WholeStep({Rows(b, 0, 65)}));
  EXPECT_EQ(worker->Count("pages_free"), 1);
}

}  // namespace
}  // namespace tandem
