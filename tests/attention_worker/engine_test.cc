// One answer, whatever the schedule; and what happens when sequences, workers and sessions go away.
#include "attention_worker/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <future>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/attention_worker/engine_harness.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// By position.
using Logits = std::map<int32_t, std::vector<float>>;

// One checkpoint for all tests of this program.
const std::string& CheckpointDir() {
  static const ScratchDir* const dir = [] {
    auto* dir = new ScratchDir;  // its folder goes with the environment below
    WriteRandomCheckpoint(dir->path(), kSmallConfig, 5);
    return dir;
  }();
  static class Remover : public ::testing::Environment {
   public:
    explicit Remover(const ScratchDir* dir) : dir_(dir) {}
    void TearDown() override { delete dir_; }

   private:
    const ScratchDir* dir_;
  }* const remover = new Remover(dir);
  static const bool added = (::testing::AddGlobalTestEnvironment(remover), true);
  static_cast<void>(added);
  return dir->path();
}

std::vector<int32_t> RandomIds(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 96);
  return ids;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
void ExpectSameBits(const Logits& a, const Logits& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [position, logits] : a) {
    const auto other = b.find(position);
    ASSERT_NE(other, b.end()) << position;
    EXPECT_TRUE(SameBits(logits, other->second)) << "at position " << position;
  }
}

void Collect(const StepResult& result, SequenceId sequence, Logits* logits) {
  for (const RowResult& row : result.rows) {
    if (row.sequence == sequence && row.kind == RowOutputKind::kLogits) {
      (*logits)[row.position] = row.logits;
    }
  }
}

class EngineTest : public ::testing::TestWithParam<Dtype> {
 protected:
  std::unique_ptr<TestWorker> MakeWorker(TestWorkerOptions options = {}) {
    options.dtype = GetParam();
    return std::make_unique<TestWorker>(CheckpointDir(), options);
  }

  // Logits of all positions of a sequence, computed alone in one batch.
  static Logits Alone(TestWorker& worker, const std::vector<int32_t>& ids,
                      int32_t expanded_length = -1) {
    TestGateway gateway(&worker);
    const SequenceId sequence = gateway.Open(ids, expanded_length);
    Logits logits;
    Collect(gateway.RunOk(
                gateway.WholeStep({Rows(sequence, 0, static_cast<int32_t>(ids.size()), true)})),
            sequence, &logits);
    return logits;
  }
};

INSTANTIATE_TEST_SUITE_P(Modes, EngineTest, ::testing::Values(Dtype::kF32, Dtype::kBF16),
                         [](const auto& info) { return std::string(DtypeName(info.param)); });

// ---- one answer, whatever the shape ----

TEST_P(EngineTest, PromptInChunksGivesTheBitsOfTheWholePrompt) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids = RandomIds(203, 1);
  const Logits whole = Alone(*worker, ids);
  for (const int32_t chunk : {1, 7, 64, 100}) {
    SCOPED_TRACE(chunk);
    TestGateway gateway(worker.get());
    const SequenceId sequence = gateway.Open(ids);
    Logits logits;
    for (int32_t begin = 0; begin < 203; begin += chunk) {
      const int32_t count = std::min(chunk, 203 - begin);
      Collect(gateway.RunOk(gateway.WholeStep({Rows(sequence, begin, count, true)})), sequence,
              &logits);
    }
    ExpectSameBits(logits, whole);
  }
}

TEST_P(EngineTest, PromptLayerByLayerGivesTheBitsOfTheWholePrompt) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids = RandomIds(150, 2);
  const Logits whole = Alone(*worker, ids);
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(ids);
  Step step = gateway.AdvanceStep({{gateway.NextBatch(), 0, 1}});
  step.new_batches = {Rows(sequence, 0, 150, true)};
  step.new_batches[0].batch = step.advance[0].batch;
  StepResult result = gateway.RunOk(step);
  Logits logits;
  for (int32_t layer = 1; layer < gateway.num_layers(); ++layer) {
    EXPECT_THAT(result.rows, IsEmpty());
    ASSERT_THAT(result.batches, SizeIs(1));
    EXPECT_EQ(result.batches[0].next_layer, layer);
    result = gateway.RunOk(gateway.AdvanceStep({{1, layer, layer + 1}}));
  }
  Collect(result, sequence, &logits);
  ExpectSameBits(logits, whole);
}

TEST_P(EngineTest, DecodesGiveTheBitsOfManyAbsorbedRowsInOneCall) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> prompt = RandomIds(70, 3);
  const int32_t expanded = SequenceSpec::ExpandedLength(70);
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(prompt);
  Logits decoded;
  std::vector<int32_t> ids = prompt;
  NewBatch batch = Rows(sequence, 0, 70, true, true);
  for (int32_t position = 70; position <= 150; ++position) {
    const StepResult result = gateway.RunOk(gateway.WholeStep({batch}));
    Collect(result, sequence, &decoded);
    ids.push_back(result.rows.back().token);
    batch = Rows(sequence, position, 1, true, true);
    batch.runs[0].last_sampled = true;
  }
  ids.pop_back();
  // As after a preemption: opened again with what was generated, and the prompt's form.
  const Logits again = Alone(*worker, ids, expanded);
  ExpectSameBits(again, decoded);
}

TEST_P(EngineTest, AbsorbedAndExpandedFormAgree) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids = RandomIds(130, 4);
  const Logits absorbed = Alone(*worker, ids, 0);
  const Logits expanded = Alone(*worker, ids, 130);
  double difference = 0, norm = 0;
  for (const auto& [position, logits] : absorbed) {
    for (size_t i = 0; i < logits.size(); ++i) {
      difference += std::pow(double{logits[i]} - expanded.at(position)[i], 2);
      norm += std::pow(double{logits[i]}, 2);
    }
  }
  EXPECT_LE(std::sqrt(difference / norm), GetParam() == Dtype::kF32 ? 1e-5 : 3e-2);
}

TEST_P(EngineTest, SequencesTogetherGiveTheBitsOfEachAlone) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  std::vector<std::vector<int32_t>> prompts;
  std::vector<SequenceId> sequences;
  NewBatch together;
  for (const int32_t length : {1, 64, 65, 140, 17}) {
    prompts.push_back(RandomIds(length, 10 + length));
    sequences.push_back(gateway.Open(prompts.back()));
    const NewBatch one = Rows(sequences.back(), 0, length, true);
    int32_t row = 0;
    for (const RowRun& run : together.runs) row += run.count;
    for (RowOutput output : one.outputs) {
      output.row += row;
      together.outputs.push_back(output);
    }
    together.runs.push_back(one.runs[0]);
  }
  const StepResult result = gateway.RunOk(gateway.WholeStep({together}));
  for (size_t i = 0; i < prompts.size(); ++i) {
    Logits logits;
    Collect(result, sequences[i], &logits);
    ExpectSameBits(logits, Alone(*worker, prompts[i]));
  }
}

TEST_P(EngineTest, AnyNumberOfExpertWorkersGivesTheSameBits) {
  const std::vector<int32_t> ids = RandomIds(90, 5);
  const Logits one = Alone(*MakeWorker(), ids);
  for (const int num_workers : {2, 3, 8}) {
    TestWorkerOptions options;
    options.num_expert_workers = num_workers;
    ExpectSameBits(Alone(*MakeWorker(options), ids), one);
  }
}

// Many sequences, each cut at random into batches that go up the layers at random; some are
// cancelled on their way.
TEST_P(EngineTest, RandomSchedulesGiveTheSameBits) {
  const auto worker = MakeWorker();
  for (uint32_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    TestGateway gateway(worker.get());
    struct Run {
      std::vector<int32_t> ids;
      SequenceId sequence;
      int32_t scheduled = 0;
      Logits logits;
      bool cancelled = false;
    };
    struct Standing {
      BatchId batch;
      Run* run;
      int32_t layer = 0;
    };
    std::vector<Run> runs(4);
    for (Run& run : runs) {
      run.ids = RandomIds(1 + random() % 200, random());
      run.sequence = gateway.Open(run.ids);
    }
    std::vector<Standing> standing;
    const int32_t num_layers = gateway.num_layers();
    while (true) {
      Step step = gateway.AdvanceStep({});
      for (Run& run : runs) {
        const auto left = static_cast<int32_t>(run.ids.size()) - run.scheduled;
        if (left == 0 || random() % 2 == 0) continue;
        const auto count = static_cast<int32_t>(1 + random() % left);
        NewBatch batch = Rows(run.sequence, run.scheduled, count, true);
        batch.batch = gateway.NextBatch();
        standing.push_back({batch.batch, &run});
        run.scheduled += count;
        step.new_batches.push_back(std::move(batch));
      }
      std::map<Run*, int32_t> reached;  // by the last batch of the sequence
      for (Standing& s : standing) {
        const int32_t limit = reached.count(s.run) ? reached[s.run] : num_layers;
        const int32_t end = std::min<int32_t>(limit, s.layer + random() % (num_layers + 1));
        if (end > s.layer) {
          step.advance.push_back({s.batch, s.layer, end});
          s.layer = end;
        }
        reached[s.run] = s.layer;
      }
      standing.erase(std::remove_if(standing.begin(), standing.end(),
                                    [&](const Standing& s) { return s.layer == num_layers; }),
                     standing.end());
      gateway.link().Run(std::move(step));
      if (random() % 12 == 0) {
        Run& run = runs[random() % runs.size()];
        gateway.link().Cancel(run.sequence);
        run.cancelled = true;
      }
      const StepResult result = gateway.WaitForResult();
      ASSERT_TRUE(result.status.ok()) << result.status;
      bool done = standing.empty();
      for (Run& run : runs) {
        Collect(result, run.sequence, &run.logits);
        done = done && run.scheduled == static_cast<int32_t>(run.ids.size());
      }
      if (done) break;
    }
    for (Run& run : runs) {
      const Logits alone = Alone(*worker, run.ids);
      if (!run.cancelled) {
        ExpectSameBits(run.logits, alone);
        continue;
      }
      for (const auto& [position, logits] : run.logits) {
        EXPECT_TRUE(SameBits(logits, alone.at(position)));
      }
    }
  }
  EXPECT_TRUE(worker->WaitForCount("pages_free", 64));
  EXPECT_TRUE(worker->WaitForCount("batches_live", 0));
}

TEST_P(EngineTest, SessionsShareTheWorkerAndGiveTheBitsOfEachAlone) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids_a = RandomIds(100, 6);
  const std::vector<int32_t> ids_b = RandomIds(77, 7);
  TestGateway a(worker.get()), b(worker.get());
  const SequenceId in_a = a.Open(ids_a);
  const SequenceId in_b = b.Open(ids_b);
  // Both queue up behind two steps that are held, and then walk the layers together.
  TestGateway holder(worker.get());
  worker->gate().Shut();
  for (int i = 1; i <= 2; ++i) {
    holder.link().Run(holder.WholeStep({Rows(holder.Open({1}), 0, 1)}));
    ASSERT_TRUE(worker->gate().WaitForRequests(i));
  }
  a.link().Run(a.WholeStep({Rows(in_a, 0, 100, true)}));
  b.link().Run(b.WholeStep({Rows(in_b, 0, 77, true)}));
  const int64_t layers_before = worker->Count("layers_total");
  worker->gate().Open();
  EXPECT_TRUE(holder.WaitForResult().status.ok());
  EXPECT_TRUE(holder.WaitForResult().status.ok());
  Logits of_a, of_b;
  Collect(a.WaitForResult(), in_a, &of_a);
  Collect(b.WaitForResult(), in_b, &of_b);
  EXPECT_EQ(worker->Count("layers_total") - layers_before, 3 * a.num_layers() - 2);
  ExpectSameBits(of_a, Alone(*worker, ids_a));
  ExpectSameBits(of_b, Alone(*worker, ids_b));
}

TEST_P(EngineTest, ExpertsOfTheSameDeviceGiveTheSameBits) {
  TestWorkerOptions options;
  options.num_expert_workers = 0;
  const auto local = MakeWorker(options);
  const std::vector<int32_t> ids = RandomIds(203, 30);
  ExpectSameBits(Alone(*local, ids), Alone(*MakeWorker(), ids));
  EXPECT_EQ(local->gate().num_requests(), 0);
}

// ---- two steps at once ----

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

// ---- outputs ----

TEST_P(EngineTest, CountsRowsByForm) {
  const auto worker = MakeWorker();
  Alone(*worker, RandomIds(130, 1));
  const int64_t layers = worker->config().num_layers;
  EXPECT_EQ(worker->Count("expanded_row_layers_total"), 128 * layers);
  EXPECT_EQ(worker->Count("absorbed_row_layers_total"), 2 * layers);
  EXPECT_EQ(worker->Count("layers_total"), layers);
  EXPECT_EQ(worker->Count("scored_total"), 130);
}

TEST_P(EngineTest, LogProbsAreThoseOfTheLogits) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids = RandomIds(80, 8);
  const Logits logits = Alone(*worker, ids);
  TestGateway gateway(worker.get());
  const SequenceId sequence = gateway.Open(ids);
  NewBatch batch = Rows(sequence, 0, 80);
  for (int32_t i = 0; i + 1 < 80; ++i) {
    batch.outputs.push_back({i, RowOutputKind::kLogProb, ids[i + 1]});
  }
  const StepResult result = gateway.RunOk(gateway.WholeStep({batch}));
  ASSERT_THAT(result.rows, SizeIs(79));
  for (const RowResult& row : result.rows) {
    const std::vector<float>& l = logits.at(row.position);
    double sum = 0;
    for (float v : l) sum += std::exp(double{v});
    EXPECT_EQ(row.token, ids[row.position + 1]);
    EXPECT_NEAR(row.log_prob, l[row.token] - std::log(sum), 1e-5);
  }
}

TEST_P(EngineTest, DrawsOnlyIdsWithATokenUnlessUnmasked) {
  TestWorkerOptions options;
  options.ids_with_token.assign(96, 0);
  options.ids_with_token[41] = 1;
  const auto worker = MakeWorker(options);
  TestGateway gateway(worker.get());
  const std::vector<int32_t> ids = RandomIds(20, 9);
  const SequenceId masked = gateway.Open(ids);
  SequenceSpec spec;
  spec.sequence = 100;
  spec.token_ids = ids;
  spec.mask_ids_without_token = false;
  gateway.link().OpenSequence(spec);
  NewBatch second = Rows(100, 0, 20, true, true);
  const StepResult result =
      gateway.RunOk(gateway.WholeStep({Rows(masked, 0, 20, false, true), second}));
  EXPECT_EQ(result.rows[0].token, 41);
  const std::vector<float>& logits = result.rows[20].logits;
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  EXPECT_EQ(result.rows[21].token, best);
}

TEST_P(EngineTest, ADrawDependsOnSeedAndPositionNotOnTheSchedule) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> prompt = RandomIds(66, 10);
  SamplingParams sampling;
  sampling.temperature = 1.5f;
  sampling.seed = 77;
  std::vector<std::vector<int32_t>> generated;
  for (const int32_t chunk : {66, 10}) {
    TestGateway gateway(worker.get());
    const SequenceId sequence = gateway.Open(prompt, -1, sampling);
    const SequenceId noise = gateway.Open({1, 2, 3});
    StepResult result;
    for (int32_t begin = 0; begin < 66; begin += chunk) {
      const int32_t count = std::min(chunk, 66 - begin);
      result = gateway.RunOk(
          gateway.WholeStep({Rows(sequence, begin, count, false, begin + count == 66)}));
    }
    if (chunk == 10) gateway.RunOk(gateway.WholeStep({Rows(noise, 0, 3, false, true)}));
    std::vector<int32_t> ids = {result.rows[0].token};
    for (int32_t i = 0; i < 30; ++i) {
      std::vector<std::pair<SequenceId, int32_t>> rows = {{sequence, 66 + i}};
      if (chunk == 10) rows.insert(rows.begin(), {noise, 3 + i});
      ids.push_back(gateway.Decode(rows).back());
    }
    generated.push_back(ids);
  }
  EXPECT_EQ(generated[0], generated[1]);
}

// Wherever the step is cut: what is drawn for a position takes that position's random number.
TEST_P(EngineTest, ADrawIsThatOfTheRowsLogitsForThePositionOfTheDrawnToken) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  SamplingParams sampling;
  sampling.temperature = 3.0f;
  sampling.seed = 5;
  const auto backend = *kernels::CreateCpuBackend(1);
  const auto logits = *backend->Allocate(96 * sizeof(float));
  const auto row = *backend->Allocate(sizeof(kernels::SampleRow));
  const auto out = *backend->Allocate(sizeof(kernels::SampledToken));
  const auto bytes = [](const kernels::Buffer& buffer, size_t size) {
    return buffer.Tensor(Dtype::kU8, {1, static_cast<int64_t>(size)});
  };
  const SequenceId sequence = gateway.Open(RandomIds(20, 9), -1, sampling);
  for (int32_t position = 19; position < 30; ++position) {
    const bool decodes = position > 19;
    NewBatch batch = Rows(sequence, decodes ? position : 0, decodes ? 1 : 20, true, true);
    batch.runs[0].last_sampled = decodes;
    const StepResult result = gateway.RunOk(gateway.WholeStep({batch}));
    Logits of_step;
    Collect(result, sequence, &of_step);
    const kernels::SampleRow wanted = {sampling, position + 1};
    kernels::SampledToken token;
    backend->Write(of_step.at(position).data(), logits->Tensor(Dtype::kF32, {1, 96}));
    backend->Write(&wanted, bytes(*row, sizeof(wanted)));
    backend->Sample({logits->Tensor(Dtype::kF32, {1, 96}),
                     bytes(*row, sizeof(wanted)),
                     {},
                     bytes(*out, sizeof(token))});
    backend->Read(bytes(*out, sizeof(token)), &token)->Wait();
    EXPECT_EQ(result.rows.back().kind, RowOutputKind::kSample);
    EXPECT_EQ(result.rows.back().token, token.id) << "at position " << position;
    EXPECT_EQ(result.rows.back().log_prob, token.log_prob);
  }
}

TEST_P(EngineTest, NaNEndsItsOwnSequenceOnly) {
  ScratchDir dir;
  auto config = ParseModelConfig(kSmallConfig, "small");
  ASSERT_TRUE(config.ok());
  std::vector<RawTensor> tensors = RandomTensors(*config, 5);
  for (RawTensor& tensor : tensors) {
    if (tensor.name != "model.embed_tokens.weight") continue;
    std::memset(tensor.bytes.data() + 13 * config->hidden_size * 2, 0xff, 2);  // of id 13
  }
  WriteCheckpoint(dir.path(), kSmallConfig, tensors);
  TestWorkerOptions options;
  options.dtype = GetParam();
  TestWorker worker(dir.path(), options);
  const Logits alone = Alone(worker, {4, 5, 6, 7});
  TestGateway gateway(&worker);
  const SequenceId bad = gateway.Open({4, 13, 6});
  const SequenceId good = gateway.Open({4, 5, 6, 7});
  const StepResult result = gateway.RunOk(
      gateway.WholeStep({Rows(bad, 0, 3, false, true), Rows(good, 0, 4, true, true)}));
  EXPECT_EQ(result.rows[0].token, -1);
  Logits logits;
  Collect(result, good, &logits);
  ExpectSameBits(logits, alone);
  EXPECT_THAT(gateway.Decode({{bad, 3}, {good, 4}}), SizeIs(1));
  EXPECT_EQ(worker.Count("sequences_live"), 1);
}

// ---- cancelled, released, interrupted ----

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

TEST_P(EngineTest, PagesRunOutAsARefusalAndComeBack) {
  TestWorkerOptions options;
  options.total_pages = 3;
  const auto worker = MakeWorker(options);
  TestGateway gateway(worker.get());
  const SequenceId a = gateway.Open(RandomIds(128, 24));
  const SequenceId b = gateway.Open(RandomIds(65, 25));
  gateway.RunOk(gateway.WholeStep({Rows(a, 0, 128)}));
  const StepResult refused = gateway.Run(gateway.WholeStep({Rows(b, 0, 65)}));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted) << refused.status;
  EXPECT_EQ(worker->Count("pages_free"), 1);
  gateway.link().Cancel(a);
  gateway.RunOk(gateway.WholeStep({Rows(b, 0, 65)}));
  EXPECT_EQ(worker->Count("pages_free"), 1);
}

}  // namespace
}  // namespace tandem
