// What happens when sequences, expert workers and sessions go away.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "attention_worker/engine.h"
#include "tests/attention_worker/engine_fixture.h"

namespace tandem {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_P(EngineTest, CancelWithinALayerLeavesOthersAndFreesPages) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids_a = RandomIds(100, 11);
  const std::vector<int32_t> ids_b = RandomIds(90, 12);
  TestGateway gateway(worker.get());
  const SequenceId a = gateway.Open(ids_a);
  const SequenceId b = gateway.Open(ids_b);
  worker->gate().Shut();
  gateway.link().Run(gateway.WholeStep({Rows(a, 0, 100, true), Rows(b, 0, 90, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(1));
  gateway.link().Cancel(a);
  worker->gate().Open();
  const StepResult result = gateway.WaitForResult();
  ASSERT_TRUE(result.status.ok()) << result.status;
  for (const RowResult& row : result.rows) EXPECT_EQ(row.sequence, b);
  Logits logits;
  Collect(result, b, &logits);
  ExpectSameBits(logits, Alone(*worker, ids_b));
  EXPECT_TRUE(worker->WaitForCount("pages_free", 64 - 2));
  EXPECT_LE(worker->Count("cancel_layers_max"), 1);
  // The cancelled rows went through the dense layer and the one that was held, and no further;
  // `Alone` took the others through once more.
  EXPECT_EQ(worker->Count("expanded_row_layers_total") + worker->Count("absorbed_row_layers_total"),
            100 * 2 + (90 + 90) * gateway.num_layers());
  // Resumed: opened again under a new name.
  ExpectSameBits(Alone(*worker, ids_a), Alone(*MakeWorker(), ids_a));
}

TEST_P(EngineTest, CancelOfEveryRowEndsTheWaitForExpertsAtOnce) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId a = gateway.Open(RandomIds(70, 13));
  const SequenceId b = gateway.Open(RandomIds(5, 14));
  worker->gate().Shut();
  gateway.link().Run(gateway.WholeStep({Rows(a, 0, 70, true), Rows(b, 0, 5, true)}));
  ASSERT_TRUE(worker->gate().WaitForRequests(1));
  gateway.link().Cancel(a);
  gateway.link().Cancel(b);
  const StepResult result = gateway.WaitForResult();  // the gate is still shut
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_THAT(result.rows, IsEmpty());
  ASSERT_THAT(result.batches, SizeIs(2));
  EXPECT_EQ(result.batches[0].next_layer, gateway.num_layers());
  EXPECT_TRUE(worker->WaitForCount("pages_free", 64));
  EXPECT_EQ(worker->Count("layers_total"), 2);  // the dense one and the one that was held
  EXPECT_LE(worker->Count("cancel_layers_max"), 1);
  EXPECT_EQ(worker->Count("cancels_total"), 2);
  worker->gate().Open();
  ExpectSameBits(Alone(*worker, RandomIds(70, 13)), Alone(*MakeWorker(), RandomIds(70, 13)));
}

TEST_P(EngineTest, RowsOfEndedSequencesAreDead) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId dead = gateway.Open(RandomIds(10, 15));
  const SequenceId live = gateway.Open(RandomIds(10, 16));
  const SequenceId released = gateway.Open(RandomIds(10, 17));
  gateway.link().Cancel(dead);
  gateway.link().Release(released);
  NewBatch batch = Rows(dead, 0, 10, true);
  batch.runs.push_back({live, 0, 10, false});
  batch.runs.push_back({released, 0, 10, false});
  for (int32_t i = 10; i < 30; ++i) batch.outputs.push_back({i, RowOutputKind::kLogits, 0});
  const StepResult result = gateway.RunOk(gateway.WholeStep({batch}));
  EXPECT_THAT(result.rows, SizeIs(10));
  for (const RowResult& row : result.rows) EXPECT_EQ(row.sequence, live);
  EXPECT_EQ(worker->Count("absorbed_row_layers_total"), 10 * gateway.num_layers());
}

TEST_P(EngineTest, ReleaseEndsASequenceAfterTheStepsBeforeIt) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(RandomIds(70, 18));
  gateway.link().Run(gateway.WholeStep({Rows(sequence, 0, 70, false, true)}));
  gateway.link().Release(sequence);
  EXPECT_THAT(gateway.WaitForResult().rows, SizeIs(1));
  EXPECT_TRUE(worker->WaitForCount("pages_free", 64));
  EXPECT_TRUE(worker->WaitForCount("sequences_live", 0));
}

TEST_P(EngineTest, CancelOfAnIdleSequenceFreesItsPages) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(RandomIds(70, 19));
  Step step = gateway.AdvanceStep({{1, 0, 2}});
  step.new_batches = {Rows(sequence, 0, 70, true)};
  step.new_batches[0].batch = 1;
  gateway.RunOk(step);
  EXPECT_EQ(worker->Count("pages_free"), 62);
  EXPECT_EQ(worker->Count("rows_live"), 70);
  gateway.link().Cancel(sequence);
  EXPECT_TRUE(worker->WaitForCount("pages_free", 64));
  EXPECT_TRUE(worker->WaitForCount("batches_live", 0));
  // Its batch may still be advanced: nothing is computed.
  const int64_t layers = worker->Count("layers_total");
  EXPECT_THAT(gateway.RunOk(gateway.AdvanceStep({{1, 2, 3}})).rows, IsEmpty());
  EXPECT_EQ(worker->Count("layers_total"), layers);
}

TEST_P(EngineTest, ClosingASessionStopsItsWorkAndFreesItsPages) {
  const auto worker = MakeWorker();
  worker->gate().Shut();
  {
    TestGateway gateway(worker.get());
    const SequenceId sequence = gateway.Open(RandomIds(70, 20));
    gateway.link().Run(gateway.WholeStep({Rows(sequence, 0, 70, true)}));
    ASSERT_TRUE(worker->gate().WaitForRequests(1));
  }
  EXPECT_TRUE(worker->WaitForCount("sessions_live", 0));  // the gate is still shut
  EXPECT_EQ(worker->Count("pages_free"), 64);
  EXPECT_EQ(worker->Count("layers_total"), 2);
}

// A gateway that is back reckons with all pages before it is known that its session of old is over.
TEST_P(EngineTest, AStepWaitsForPagesThatAnotherSessionGivesBack) {
  TestWorkerOptions options;
  options.total_pages = 2;
  const auto worker = MakeWorker(options);
  const std::vector<int32_t> ids = RandomIds(100, 21);
  auto gone = std::make_unique<TestGateway>(worker.get());
  const SequenceId old = gone->Open(ids);
  gone->RunOk(gone->WholeStep({Rows(old, 0, 90)}));
  ASSERT_EQ(worker->Count("pages_free"), 0);
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(ids);
  gateway.link().Run(gateway.WholeStep({Rows(sequence, 0, 100, true)}));
  gone->RunOk(gone->WholeStep({Rows(old, 90, 10)}));  // by now the other step was looked at
  gone.reset();
  const StepResult result = gateway.WaitForResult();
  ASSERT_TRUE(result.status.ok()) << result.status;
  Logits logits;
  Collect(result, sequence, &logits);
  EXPECT_EQ(logits.size(), ids.size());
}

TEST_P(EngineTest, StepGoesOnFromItsLayerAfterNoExpertWorkerAnswered) {
  TestWorkerOptions options;
  options.dispatcher.layer_timeout = absl::Milliseconds(50);
  const auto worker = MakeWorker(options);
  const std::vector<int32_t> ids = RandomIds(100, 21);
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(ids);
  worker->gate().Shut();
  const StepResult failed = gateway.Run(gateway.WholeStep({Rows(sequence, 0, 100, true)}));
  EXPECT_EQ(failed.status.code(), absl::StatusCode::kUnavailable) << failed.status;
  ASSERT_THAT(failed.batches, SizeIs(1));
  EXPECT_EQ(failed.batches[0].next_layer, 1);
  EXPECT_THAT(failed.rows, IsEmpty());
  worker->gate().Open();
  Logits logits;
  Collect(gateway.RunOk(gateway.AdvanceStep({{failed.batches[0].batch, 1, gateway.num_layers()}})),
          sequence, &logits);
  ExpectSameBits(logits, Alone(*worker, ids));
}

}  // namespace
}  // namespace tandem
