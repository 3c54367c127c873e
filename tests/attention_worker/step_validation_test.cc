#include "attention_worker/step_validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/attention_worker/engine_harness.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotNow = absl::StatusCode::kFailedPrecondition;

// What stands when a case begins: three layers; sequence 1 of 70 tokens with rows [0, 50) in batch
// 1, at layer 1, and [50, 70), to be sampled, in batch 2, at layer 0; sequence 2 of 10 tokens
// untouched; sequence 3 with a token that is none; sequence 4 opened with page 0, which is not
// full.
struct Case {
  std::string name;
  std::function<void(Step*)> change;  // of a step that names nothing
  absl::StatusCode code;
  std::string message;
};

NewBatch Named(NewBatch batch, BatchId id) {
  batch.batch = id;
  return batch;
}
NewBatch WithOutput(RowOutput output) {
  NewBatch batch = Named(Rows(2, 0, 10), 3);
  batch.outputs.push_back(output);
  return batch;
}

std::vector<Case> Cases() {
  const auto add = [](NewBatch batch) {
    return [batch](Step* step) { step->new_batches.push_back(batch); };
  };
  const auto advance = [](std::vector<Advance> advances) {
    return [advances](Step* step) { step->advance = advances; };
  };
  NewBatch twice_last_sampled = Named(Rows(2, 0, 2), 3);
  twice_last_sampled.runs[0].last_sampled = true;
  NewBatch sampled_twice = WithOutput({9, RowOutputKind::kSample, 0});
  sampled_twice.outputs.push_back({9, RowOutputKind::kSample, 0});
  NewBatch unordered = WithOutput({4, RowOutputKind::kLogits, 0});
  unordered.outputs.push_back({3, RowOutputKind::kLogits, 0});
  const auto with_pages = [](std::vector<int32_t> pages) {
    NewBatch batch = Named(Rows(2, 0, 10), 3);
    batch.pages = std::move(pages);
    return batch;
  };
  NewBatch undrawn = Named(Rows(1, 70, 1), 3);
  undrawn.runs[0].last_sampled = true;
  return {
      {"OldStep", [](Step* step) { step->step = 0; }, kNotNow, "older"},
      {"BatchNotNew", add(Named(Rows(2, 0, 10), 1)), kNotNow, "not new"},
      {"BatchNamedTwice",
       [](Step* step) {
         step->new_batches = {Named(Rows(2, 0, 5), 3), Named(Rows(2, 5, 5), 3)};
       },
       kNotNow, "not new"},
      {"NoRows", add(Named(NewBatch(), 3)), kInvalid, "0 rows"},
      {"EmptyRun", add(Named(Rows(2, 0, 0), 3)), kInvalid, "0 rows"},
      {"NegativeRun", add(Named(Rows(2, 0, -4), 3)), kInvalid, "-4 rows"},
      {"NeverOpened", add(Named(Rows(9, 0, 1), 3)), kNotNow, "never opened"},
      {"UnusableSequence", add(Named(Rows(3, 0, 1), 3)), kInvalid, "token id 96"},
      {"Gap", add(Named(Rows(2, 1, 5), 3)), kInvalid, "0 is next"},
      {"RowsAgain", add(Named(Rows(1, 0, 5), 3)), kInvalid, "70 is next"},
      {"NegativePosition", add(Named(Rows(2, -1, 5), 3)), kInvalid, "is next"},
      {"NoToken", add(Named(Rows(2, 0, 11), 3)), kInvalid, "has no token"},
      {"Overflow", add(Named(Rows(2, 0, INT32_MAX), 3)), kInvalid, "beyond the model"},
      {"ManyLastSampled", add(twice_last_sampled), kInvalid, "last sampled"},
      {"OutputBeyondRows", add(WithOutput({10, RowOutputKind::kLogits, 0})), kInvalid, "beyond"},
      {"OutputOfNegativeRow", add(WithOutput({-1, RowOutputKind::kLogits, 0})), kInvalid, "row -1"},
      {"OutputsOutOfOrder", add(unordered), kInvalid, "out of order"},
      {"UnknownOutput", add(WithOutput({0, static_cast<RowOutputKind>(7), 0})), kInvalid, "kind 7"},
      {"TargetOutOfRange", add(WithOutput({0, RowOutputKind::kLogProb, 96})), kInvalid,
       "target 96"},
      {"DrawsAKnownToken", add(WithOutput({8, RowOutputKind::kSample, 0})), kInvalid,
       "has a token"},
      {"SampledTwice", add(sampled_twice), kInvalid, "sampled twice"},
      {"TooManyPages", add(with_pages({5, 6})), kInvalid, "names 2 pages, its rows take 1"},
      {"NoSuchPage", add(with_pages({64})), kInvalid, "not one of 0 to 63"},
      {"PageOfAnotherSequence", add(with_pages({1})), kNotNow, "is held"},
      {"SharesAPageThatIsNotFull", add(Named(Rows(4, 64, 1), 3)), kNotNow, "0 is not full"},
      {"UnknownBatch", advance({{7, 0, 1}}), kNotNow, "not there"},
      {"WrongLayer", advance({{1, 0, 2}}), kNotNow, "stands at layer 1"},
      {"WrongLayerOfNewBatch",
       [](Step* step) {
         step->new_batches = {Named(Rows(2, 0, 10), 3)};
         step->advance = {{3, 1, 2}};
       },
       kNotNow, "stands at layer 0"},
      {"NoLayers", advance({{1, 1, 1}}), kInvalid, "layers [1, 1)"},
      {"TooManyLayers", advance({{1, 1, 4}}), kInvalid, "of 3"},
      {"AdvancedTwice", advance({{1, 1, 2}, {1, 2, 3}}), kInvalid, "twice"},
      {"Overtaking", advance({{2, 0, 2}}), kNotNow, "overtake"},
      {"NewBatchOvertaking",
       [](Step* step) {
         step->new_batches = {Named(Rows(2, 0, 5), 3), Named(Rows(2, 5, 5), 4)};
         step->advance = {{3, 0, 1}, {4, 0, 2}};
       },
       kNotNow, "overtake"},
      {"NotDrawnYet",
       [undrawn](Step* step) {
         step->new_batches = {undrawn};
         step->advance = {{1, 1, 3}, {2, 0, 3}, {3, 0, 3}};
       },
       kNotNow, "no token was drawn"},
      {"GoodPartsToo",
       [](Step* step) {
         step->new_batches = {Named(Rows(2, 0, 10), 3)};
         step->advance = {{1, 1, 3}, {2, 0, 3}, {3, 0, 3}, {9, 0, 1}};
       },
       kNotNow, "not there"},
  };
}

CounterSnapshot Gauges(const TestWorker& worker) {
  CounterSnapshot gauges;
  for (const char* name : {"sequences_live", "batches_live", "rows_live", "pages_free",
                           "steps_total", "layers_total", "sampled_total", "scored_total"}) {
    gauges.emplace_back(name, worker.Count(name));
  }
  return gauges;
}

TEST(StepValidationTest, RefusedStepsChangeNothing) {
  ScratchDir dir;
  WriteRandomCheckpoint(dir.path(), kSmallConfig, 6);
  TestWorker worker(dir.path());
  std::vector<int32_t> ids(70);
  for (int32_t i = 0; i < 70; ++i) ids[i] = i;

  std::vector<StepResult> finished;
  for (const bool refuse : {false, true}) {
    TestGateway gateway(&worker);
    gateway.Open(ids);
    gateway.Open(std::vector<int32_t>(ids.begin(), ids.begin() + 10));
    gateway.Open({96});
    gateway.Open(ids, -1, {}, {0});
    Step step = gateway.AdvanceStep({{1, 0, 1}});
    step.new_batches = {Named(Rows(1, 0, 50), 1), Named(Rows(1, 50, 20, true, true), 2)};
    gateway.RunOk(step);
    for (const Case& c : Cases()) {
      if (!refuse) break;
      SCOPED_TRACE(c.name);
      const CounterSnapshot before = Gauges(worker);
      Step refused;
      refused.step = 2;
      c.change(&refused);
      const StepResult result = gateway.Run(refused);
      EXPECT_EQ(result.status.code(), c.code) << result.status;
      EXPECT_THAT(std::string(result.status.message()), HasSubstr(c.message));
      EXPECT_EQ(result.step, refused.step);
      EXPECT_TRUE(result.batches.empty() && result.rows.empty());
      EXPECT_EQ(Gauges(worker), before);
    }
    Step last;
    last.step = 2;
    last.new_batches = {Named(Rows(2, 0, 10, true), 3)};
    last.advance = {{1, 1, 3}, {2, 0, 3}, {3, 0, 3}};
    finished.push_back(gateway.RunOk(last));
  }
  ASSERT_EQ(finished[0].rows.size(), 31u);
  ASSERT_EQ(finished[1].rows.size(), 31u);
  for (size_t i = 0; i < 31; ++i) {
    EXPECT_EQ(finished[0].rows[i].logits, finished[1].rows[i].logits);
    EXPECT_EQ(finished[0].rows[i].token, finished[1].rows[i].token);
  }
}

TEST(StepValidationTest, AStepTakesThePagesThatItsRowsNeed) {
  PagePool pool(5);
  SessionState state;
  state.pages = std::make_unique<SessionPages>(&pool);
  for (SequenceId id : {1, 2}) {
    state.sequences[id] = std::make_shared<Sequence>();
    state.sequences[id]->spec.token_ids.resize(200);
  }
  state.last_opened = 2;
  const StepLimits limits{3, 96, 200};
  const auto check = [&](int32_t rows_1, int32_t rows_2, std::vector<int32_t> pages_1,
                         std::vector<int32_t> pages_2) {
    Step step;
    step.step = 1;
    step.new_batches = {Named(Rows(1, 0, rows_1), 1), Named(Rows(2, 0, rows_2), 2)};
    step.new_batches[0].pages = std::move(pages_1);
    step.new_batches[1].pages = std::move(pages_2);
    return ValidateStep(step, state, limits).code();
  };
  EXPECT_EQ(check(64, 64, {0}, {1}), absl::StatusCode::kOk);
  EXPECT_EQ(check(64, 64, {0}, {0}), kInvalid);
  EXPECT_EQ(check(64, 64, {0}, {}), kInvalid);
  EXPECT_EQ(check(65, 128, {4, 2}, {0, 1}), absl::StatusCode::kOk);
  EXPECT_EQ(check(65, 129, {4, 2}, {0, 1}), kInvalid);
  EXPECT_EQ(check(200, 1, {0, 1, 2, 3}, {4}), absl::StatusCode::kOk);
  EXPECT_EQ(check(200, 1, {0, 1, 2, 3}, {5}), kInvalid);
}

// Rows of a sequence that has ended take no page, but theirs are named before those of others.
TEST(StepValidationTest, PagesOfDeadRowsAreSkipped) {
  PagePool pool(2);
  SessionState state;
  state.pages = std::make_unique<SessionPages>(&pool);
  state.sequences[2] = std::make_shared<Sequence>();
  state.sequences[2]->spec.token_ids.resize(64);
  state.last_opened = 2;
  const StepLimits limits{3, 96, 200};
  Step step;
  step.step = 1;
  step.new_batches = {Named(Rows(1, 60, 10), 1)};
  step.new_batches[0].runs.push_back({2, 0, 64, false});
  step.new_batches[0].pages = {7, 1};
  EXPECT_TRUE(ValidateStep(step, state, limits).ok());
  step.new_batches[0].pages = {1, 7};
  EXPECT_EQ(ValidateStep(step, state, limits).code(), kInvalid);
  step.new_batches[0].runs[0].first_position = -60;
  EXPECT_EQ(ValidateStep(step, state, limits).code(), kInvalid);
}

TEST(StepValidationTest, SequencesOutOfRangeAreNotUsable) {
  const StepLimits limits{3, 96, 200};
  SequenceSpec good;
  good.sequence = 1;
  good.token_ids = {0, 95};
  EXPECT_TRUE(ValidateSpec(good, limits).ok());
  const auto changed = [&](const std::function<void(SequenceSpec&)>& change) {
    SequenceSpec spec = good;
    change(spec);
    return ValidateSpec(spec, limits).code();
  };
  EXPECT_EQ(changed([](SequenceSpec& s) { s.token_ids.clear(); }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.token_ids.resize(201); }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.token_ids[0] = -1; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.expanded_length = -1; }), kInvalid);
  const auto with_absorbed = [&](std::vector<PageRange> ranges) {
    return changed([&](SequenceSpec& s) {
      s.expanded_length = 256;
      s.absorbed_pages = ranges;
    });
  };
  EXPECT_EQ(with_absorbed({{0, 1}, {2, 4}}), absl::StatusCode::kOk);
  EXPECT_EQ(with_absorbed({{-1, 1}}), kInvalid);
  EXPECT_EQ(with_absorbed({{1, 1}}), kInvalid);
  EXPECT_EQ(with_absorbed({{0, 1}, {1, 2}}), kInvalid);
  EXPECT_EQ(with_absorbed({{2, 3}, {0, 1}}), kInvalid);
  EXPECT_EQ(with_absorbed({{2, 5}}), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.pages = {0}; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) {
              s.token_ids.resize(65, 1);
              s.pages = {0};
            }),
            absl::StatusCode::kOk);
  EXPECT_EQ(changed([](SequenceSpec& s) {
              s.token_ids.resize(64, 1);
              s.pages = {0};
            }),
            kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.sampling.temperature = -0.5f; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.sampling.temperature = NAN; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.sampling.top_k = -1; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.sampling.top_p = 0; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.sampling.top_p = 1.5f; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.num_prompt_tokens = 3; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.num_prompt_tokens = -1; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.top_logprobs = 21; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.top_logprobs = -1; }), kInvalid);
  EXPECT_EQ(changed([](SequenceSpec& s) { s.top_logprobs = 20; }), absl::StatusCode::kOk);
  const auto sampled = [&](const std::function<void(SamplingParams&)>& change) {
    return changed([&](SequenceSpec& s) {
      s.num_prompt_tokens = 1;
      s.sampling.end_ids = {0, 95};
      s.sampling.logit_bias = {{0, -100.0f}, {95, 100.0f}};
      change(s.sampling);
    });
  };
  EXPECT_EQ(sampled([](SamplingParams&) {}), absl::StatusCode::kOk);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.min_p = 1.5f; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.min_p = NAN; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.repetition_penalty = 0; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.repetition_penalty = INFINITY; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.frequency_penalty = -2.5f; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.presence_penalty = NAN; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.end_ids.push_back(96); }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.logit_bias[0].id = -1; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.logit_bias[1].id = 96; }), kInvalid);
  EXPECT_EQ(sampled([](SamplingParams& s) { s.logit_bias[1].bias = INFINITY; }), kInvalid);
}

}  // namespace
}  // namespace tandem
