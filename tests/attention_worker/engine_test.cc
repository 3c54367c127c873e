// One answer, whatever the schedule; and what is drawn from it.
#include "attention_worker/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention_worker/layer_times.h"
#include "tests/attention_worker/engine_fixture.h"
#include "tests/kernels/oracle.h"

namespace tandem {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

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

TEST_P(EngineTest, RowsBehindSharedPagesGiveTheBitsOfTheWholePrompt) {
  const auto worker = MakeWorker();
  std::vector<int32_t> ids = RandomIds(203, 71);
  TestGateway gateway(worker.get());
  const SequenceId first = gateway.Open(ids);
  gateway.RunOk(gateway.WholeStep({Rows(first, 0, 203)}));
  const std::vector<int32_t> shared = {gateway.link().pages(first)[0],
                                       gateway.link().pages(first)[1]};
  // Another ending, beside the first one and after it.
  for (int32_t i = 128; i < 203; ++i) ids[i] = 95 - ids[i];
  const Logits whole = Alone(*worker, ids);
  for (const bool first_is_there : {true, false}) {
    SCOPED_TRACE(first_is_there);
    if (!first_is_there) gateway.link().Release(first);
    const int64_t rows_before = worker->Count("expanded_row_layers_total");
    const SequenceId second = gateway.Open(ids, -1, {}, shared);
    Logits logits;
    Collect(gateway.RunOk(gateway.WholeStep({Rows(second, 128, 75, true)})), second, &logits);
    EXPECT_EQ(worker->Count("expanded_row_layers_total") - rows_before, 64 * gateway.num_layers());
    ASSERT_THAT(logits, SizeIs(75));
    for (const auto& [position, row] : logits) {
      EXPECT_TRUE(SameBits(row, whole.at(position))) << "at position " << position;
    }
    gateway.link().Cancel(second);
  }
}

TEST_P(EngineTest, AbsorbedPagesHaveTheBitsOfTheAbsorbedForm) {
  const auto worker = MakeWorker();
  const std::vector<int32_t> ids = RandomIds(203, 72);
  // All absorbed, as when the tokens were drawn one by one, and pages 1 and 2 so by name.
  TestGateway gateway(worker.get());
  const SequenceId drawn = gateway.Open(ids, 64);
  Logits expected, logits;
  Collect(gateway.RunOk(gateway.WholeStep({Rows(drawn, 0, 203, true)})), drawn, &expected);
  const SequenceId named = gateway.Open(ids, 192, {}, {}, {{1, 3}});
  Collect(gateway.RunOk(gateway.WholeStep({Rows(named, 0, 203, true)})), named, &logits);
  ExpectSameBits(logits, expected);
  const Logits usual = Alone(*worker, ids);
  int differing = 0;
  for (const auto& [position, row] : usual) differing += SameBits(row, logits.at(position)) ? 0 : 1;
  EXPECT_GT(differing, 50);
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

TEST_P(EngineTest, EachLayersPartsAreMeasuredOnce) {
  for (const int expert_workers : {1, 0}) {
    LayerTimes times(3);
    TestWorkerOptions options;
    options.layer_times = &times;
    options.num_expert_workers = expert_workers;
    Alone(*MakeWorker(options), RandomIds(130, 1));
    const std::string text = prometheus::TextSerializer().Serialize(times.registry()->Collect());
    // Of three layers the first is dense. What is local is not dispatched.
    for (const auto& [part, count] :
         {std::pair("attention", 3), std::pair("dispatch", expert_workers == 0 ? 0 : 2),
          std::pair("mlp", 3), std::pair("expert_wait", 2), std::pair("combine", 3)}) {
      EXPECT_THAT(text, ::testing::HasSubstr(
                            absl::StrCat("\ntandem_attention_layer_part_seconds_count{part=\"",
                                         part, "\"} ", count, "\n")));
    }
  }
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
    const kernels::SampleRow wanted = kernels::MakeSampleRow(sampling, position + 1);
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

// Of adjusted logits the best is drawn, and its log-probability is that of the model's own; also
// behind an interruption, and beside sequences that ask for nothing.
TEST_P(EngineTest, PenaltiesAreOfTheTokensBeforeEachDraw) {
  const auto worker = MakeWorker();
  TestGateway gateway(worker.get());
  SequenceSpec spec;
  spec.token_ids = RandomIds(20, 9);
  spec.num_prompt_tokens = 20;
  spec.sampling.min_tokens = 9;
  spec.sampling.end_ids = {3, 4};
  spec.sampling.logit_bias = {{3, 2.0f}, {50, 1.0f}};
  spec.sampling.repetition_penalty = 1.3f;
  spec.sampling.frequency_penalty = 0.4f;
  spec.sampling.presence_penalty = 0.2f;
  const std::vector<int32_t> prompt = spec.token_ids;
  const auto adjusted = [&](const std::vector<float>& logits) {
    const std::vector<int32_t> answer(spec.token_ids.begin() + 20, spec.token_ids.end());
    return kernels::oracle::Adjusted({logits.begin(), logits.end()}, prompt, answer, spec.sampling);
  };
  const SequenceId plain = gateway.Open(prompt);
  int unlike_the_models = 0;
  for (int32_t i = 0; i < 24; ++i) {
    if (i == 0 || i == 11) {  // opened again, with what was generated
      spec.sequence = 100 + i;
      gateway.link().OpenSequence(spec);
    }
    const int32_t position = 19 + i;
    const bool whole = i == 0 || i == 11;
    NewBatch batch =
        Rows(spec.sequence, whole ? 0 : position, whole ? position + 1 : 1, true, true);
    batch.runs[0].last_sampled = !whole;
    NewBatch beside = Rows(plain, i == 0 ? 0 : position, i == 0 ? 20 : 1, true, true);
    beside.runs[0].last_sampled = i > 0;
    const StepResult result = gateway.RunOk(gateway.WholeStep({batch, beside}));
    for (const RowResult& row : result.rows) {
      if (row.kind != RowOutputKind::kSample) continue;
      Logits logits;
      Collect(result, row.sequence, &logits);
      const std::vector<float>& own = logits.at(row.position);
      const auto best = std::max_element(own.begin(), own.end()) - own.begin();
      double sum = 0;
      for (const float l : own) sum += std::exp(double{l});
      EXPECT_NEAR(row.log_prob, own[row.token] - std::log(sum), 1e-5);
      if (row.sequence == plain) {
        EXPECT_EQ(row.token, best);
        continue;
      }
      const std::vector<double> wanted = adjusted(own);
      const auto first = std::max_element(wanted.begin(), wanted.end()) - wanted.begin();
      EXPECT_GE(wanted[row.token], wanted[first] - 1e-5) << "at position " << row.position;
      unlike_the_models += row.token == best ? 0 : 1;
      spec.token_ids.push_back(row.token);
      if (i < 9) {
        EXPECT_NE(row.token, 3);
        EXPECT_NE(row.token, 4);
      }
    }
  }
  EXPECT_GT(unlike_the_models, 5);
}

TEST_P(EngineTest, TheMostProbableAreThoseOfTheModelsOwnLogits) {
  TestWorkerOptions options;
  options.ids_with_token.assign(96, 1);
  options.ids_with_token[7] = 0;
  const auto worker = MakeWorker(options);
  TestGateway gateway(worker.get());
  NewBatch batch;
  std::vector<SequenceSpec> specs(4);
  for (size_t i = 0; i < specs.size(); ++i) {
    SequenceSpec& spec = specs[i];
    spec.sequence = 1 + i;
    spec.token_ids = RandomIds(20, 9 + static_cast<uint32_t>(i));
    spec.num_prompt_tokens = 20;
    spec.top_logprobs = std::vector<int32_t>{3, 0, 20, 5}[i];
    spec.mask_ids_without_token = i != 2;
    if (i == 3) spec.sampling.logit_bias = {{40, 100.0f}};
    gateway.link().OpenSequence(spec);
    const NewBatch rows = Rows(spec.sequence, 0, 20);
    batch.runs.push_back(rows.runs[0]);
    const auto last = static_cast<int32_t>(20 * i + 19);
    batch.outputs.push_back({last, RowOutputKind::kLogits, 0});
    batch.outputs.push_back({last, RowOutputKind::kSample, 0});
  }
  const StepResult result = gateway.RunOk(gateway.WholeStep({batch}));
  for (const SequenceSpec& spec : specs) {
    SCOPED_TRACE(spec.sequence);
    Logits logits;
    Collect(result, spec.sequence, &logits);
    std::vector<double> own(logits.at(19).begin(), logits.at(19).end());
    if (spec.mask_ids_without_token) own[7] = -INFINITY;
    const std::vector<double> p = kernels::oracle::Softmax(own);
    const std::vector<int> order = kernels::oracle::Ranking(p);
    for (const RowResult& row : result.rows) {
      if (row.sequence != spec.sequence || row.kind != RowOutputKind::kSample) continue;
      ASSERT_THAT(row.top, SizeIs(spec.top_logprobs));
      for (size_t k = 0; k < row.top.size(); ++k) {
        EXPECT_EQ(row.top[k].token, order[k]);
        EXPECT_NEAR(row.top[k].log_prob, std::log(p[order[k]]), 1e-5);
        if (row.top[k].token == row.token) {
          EXPECT_EQ(row.top[k].log_prob, row.log_prob);
        }
      }
      EXPECT_EQ(row.token, spec.sampling.logit_bias.empty() ? order[0] : 40);
    }
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

}  // namespace
}  // namespace tandem
