// One answer, whatever the shape: the same prompts give the same ids and the same bits of the
// log-probabilities however the service is put together.

#include <gtest/gtest.h>
#include <xxhash.h>

#include <iostream>
#include <map>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

constexpr int kVocab = 1024;

// 40 prompts of mixed lengths, every other one sampled with a seed of its own.
std::vector<v1::GenerateRequest> Requests() {
  std::mt19937 random(20240607);
  const std::vector<int> lengths = {1,   2,   7,   17,  40,  63,  64,  65,  66,  90,
                                    127, 128, 129, 130, 191, 192, 200, 260, 300, 420};
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 40; ++i) {
    v1::GenerateRequest request;
    const int length = lengths[i % lengths.size()];
    for (int k = 0; k < length; ++k) {
      request.mutable_token_ids()->add_ids(static_cast<int32_t>(random() % kVocab));
    }
    request.mutable_sampling()->set_seed(1000 + i);
    request.mutable_sampling()->set_temperature(i % 2 == 0 ? 0.0f : 0.9f);
    request.mutable_sampling()->set_top_p(i % 4 == 1 ? 0.95f : 1.0f);
    request.mutable_sampling()->set_top_k(i % 8 == 3 ? 20 : 0);
    request.set_max_tokens(8 + i % 9);
    request.set_ignore_eos(true);
    requests.push_back(request);
  }
  return requests;
}

// Rows of all the requests that belong to the absorbed form: the prompt's last page, and every
// generated token but the last, which is never fed back.
int64_t AbsorbedRows() {
  int64_t rows = 0;
  for (const auto& request : Requests()) {
    const int prompt = request.token_ids().ids_size();
    rows += prompt - 64 * ((prompt - 1) / 64) + request.max_tokens() - 1;
  }
  return rows;
}

int64_t ExpandedRows() {
  int64_t rows = 0;
  for (const auto& request : Requests()) rows += 64 * ((request.token_ids().ids_size() - 1) / 64);
  return rows;
}

// Of all ids and the bits of all log-probabilities: the same before and after a change that is not
// to change them, and on every machine of the numerics class.
std::string IdentityHash(const std::vector<Answer>& answers) {
  std::string bytes;
  const auto add = [&bytes](const auto& values) {
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
  };
  for (const Answer& answer : answers) {
    add(answer.ids);
    add(answer.bits);
  }
  return absl::StrCat(absl::Hex(XXH3_64bits(bytes.data(), bytes.size()), absl::kZeroPad16));
}

// A mode, "f32" or "bf16", or bf16 with weights in an integer format or, on a GPU, by tensor cores.
DeploymentOptions OptionsFor(const std::string& numbers) {
  DeploymentOptions options;
  options.dtype = numbers == "f32" ? "f32" : "bf16";
  if (TestDevice() != "cpu" && numbers == "bf16")
    options.weights_flags = {"--numerics", "portable"};
  if (numbers == "int8" || numbers == "int4") options.weights_flags = {"--weights", numbers};
  return options;
}

// Embedded, one at a time: what everything else is compared with. On a GPU it is the CPU, in the
// order of additions that they have in common; but tensor cores have only themselves.
const std::vector<Answer>& Reference(const std::string& numbers) {
  static auto* answers = new std::map<std::string, std::vector<Answer>>;
  if (answers->count(numbers) == 0) {
    DeploymentOptions options = OptionsFor(numbers);
    if (TestDevice() != "cpu" && numbers != "tensor") {
      options.device = "cpu";
      options.weights_flags = {"--numerics", "portable"};
    }
    Deployment deployment(options);
    (*answers)[numbers] = AskAll(deployment.stub(), Requests(), 1);
    std::cout << "identity of 40 prompts, " << numbers << ": " << IdentityHash(answers->at(numbers))
              << std::endl;
  }
  return answers->at(numbers);
}

void ExpectReference(const std::string& numbers, const std::vector<Answer>& answers) {
  const std::vector<Answer>& reference = Reference(numbers);
  const std::vector<v1::GenerateRequest> requests = Requests();
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(reference[i].status.ok()) << reference[i].status.error_message();
    ASSERT_TRUE(answers[i].status.ok()) << i << ": " << answers[i].status.error_message();
    ASSERT_EQ(reference[i].ids.size(), requests[i].max_tokens());
    EXPECT_EQ(answers[i].ids, reference[i].ids) << "prompt " << i;
    EXPECT_EQ(answers[i].bits, reference[i].bits) << "prompt " << i;
  }
}

struct Shape {
  const char* name;
  int attention_workers;
  int expert_workers;
  int at_once;
  int test_seed;
  const char* expert_link = "auto";  // the processes share a machine: through shared memory
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.name; }

class TopologyTest : public testing::TestWithParam<std::tuple<std::string, Shape>> {
 public:
  static std::string Name(const testing::TestParamInfo<ParamType>& info) {
    return absl::StrCat(std::get<0>(info.param), "_", std::get<1>(info.param).name);
  }
};

TEST_P(TopologyTest, GivesTheSameBits) {
  const auto& [numbers, shape] = GetParam();
  if (numbers == "tensor" && TestDevice() == "cpu") GTEST_SKIP() << "tensor cores are a GPU's";
  DeploymentOptions options = OptionsFor(numbers);
  options.attention_workers = shape.attention_workers;
  options.expert_workers = shape.expert_workers;
  options.worker_flags = {"--expert-link", shape.expert_link};
  if (shape.test_seed != 0) {
    options.gateway_flags = {"--test-schedule-seed", std::to_string(shape.test_seed)};
  }
  Deployment deployment(options);
  ExpectReference(numbers, AskAll(deployment.stub(), Requests(), shape.at_once));

  EXPECT_TRUE(deployment.WaitIdle());
  for (int64_t rows : deployment.CounterEach("expert", "rows_total")) EXPECT_GT(rows, 0);
  if (shape.attention_workers > 0) {
    const int each = std::string(shape.expert_link) == "auto" ? shape.expert_workers : 0;
    EXPECT_EQ(deployment.Counter("attention", "expert_links_shm"), shape.attention_workers * each);
  }
  for (int64_t rows : deployment.CounterEach("attention", "absorbed_row_layers_total")) {
    EXPECT_GT(rows, 0);
  }
  const auto preemptions = [&] { return deployment.Counter("gateway", "preemptions_total"); };
  if (shape.test_seed != 0) {
    // What the seed interrupts depends on when results come: on a busy machine it may be nothing.
    for (int round = 0; round < 20 && preemptions() == 0; ++round) {
      ExpectReference(numbers, AskAll(deployment.stub(), Requests(), shape.at_once));
    }
    EXPECT_GT(preemptions(), 0) << "the test scheduler interrupted nothing";
    return;
  }
  EXPECT_EQ(preemptions(), 0);
  v1::GetModelResponse model;
  grpc::ClientContext context;
  ASSERT_TRUE(deployment.stub().GetModel(&context, {}, &model).ok());
  EXPECT_EQ(deployment.Counter("attention", "absorbed_row_layers_total"),
            AbsorbedRows() * model.num_layers());
  EXPECT_EQ(deployment.Counter("attention", "expanded_row_layers_total"),
            ExpandedRows() * model.num_layers());
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, TopologyTest,
    testing::Combine(testing::Values(std::string("f32"), std::string("bf16")),
                     testing::Values(Shape{"embedded_16_at_once", 0, 0, 16, 0},
                                     Shape{"embedded_test_scheduler", 0, 0, 16, 7},
                                     Shape{"three_processes", 1, 1, 16, 0},
                                     Shape{"three_processes_alone", 1, 1, 1, 0},
                                     Shape{"three_processes_grpc", 1, 1, 16, 0, "grpc"},
                                     Shape{"two_experts", 1, 2, 16, 0},
                                     Shape{"two_experts_grpc", 1, 2, 16, 0, "grpc"},
                                     Shape{"four_experts", 1, 4, 16, 0},
                                     Shape{"two_attention", 2, 2, 16, 0},
                                     Shape{"two_experts_test_scheduler", 1, 2, 16, 11})),
    TopologyTest::Name);

INSTANTIATE_TEST_SUITE_P(
    IntegerShapes, TopologyTest,
    testing::Combine(testing::Values(std::string("int8"), std::string("int4")),
                     testing::Values(Shape{"embedded_16_at_once", 0, 0, 16, 0},
                                     Shape{"three_processes_grpc", 1, 1, 16, 0, "grpc"},
                                     Shape{"two_experts_test_scheduler", 1, 2, 16, 11})),
    TopologyTest::Name);

INSTANTIATE_TEST_SUITE_P(
    TensorShapes, TopologyTest,
    testing::Combine(testing::Values(std::string("tensor")),
                     testing::Values(Shape{"embedded_16_at_once", 0, 0, 16, 0},
                                     Shape{"embedded_test_scheduler", 0, 0, 16, 7},
                                     Shape{"two_experts_grpc", 1, 2, 16, 0, "grpc"})),
    TopologyTest::Name);

TEST(WireTest, ProtobufEncodesOnlyHeadersAndEachWorkerMapsOnlyItsTensors) {
  DeploymentOptions options;
  options.attention_workers = 1;
  options.expert_workers = 2;
  options.worker_flags = {"--expert-link", "grpc"};
  Deployment deployment(options);
  const std::vector<Answer> answers = AskAll(deployment.stub(), Requests(), 16);
  for (const Answer& answer : answers) ASSERT_TRUE(answer.status.ok());
  ASSERT_TRUE(deployment.WaitIdle());

  // Rows are 4 * hidden bytes in f32; what protobuf encodes must not grow with them.
  const int64_t frames = deployment.Counter("attention", "parts_total");
  const int64_t header_bytes = deployment.Counter("attention", "expert_header_bytes_sent_total");
  const int64_t payload_bytes = deployment.Counter("attention", "expert_payload_bytes_sent_total");
  const int64_t rows = deployment.Counter("attention", "rows_sent_total");
  EXPECT_GT(frames, 0);
  EXPECT_LT(header_bytes, frames * 200);
  EXPECT_GT(payload_bytes, rows * 4 * 8);

  v1::GetModelResponse model;
  grpc::ClientContext context;
  ASSERT_TRUE(deployment.stub().GetModel(&context, {}, &model).ok());
  const std::vector<int64_t> expert = deployment.CounterEach("expert", "mapped_tensors");
  ASSERT_EQ(expert.size(), 2u);
  const std::vector<int64_t> loaded = deployment.CounterEach("expert", "experts_loaded");
  for (size_t i = 0; i < expert.size(); ++i) EXPECT_EQ(expert[i], 3 * loaded[i]);
  // All tensors but the routed experts': embedding, final norm, lm_head; per layer 7 of attention
  // and norms; 3 of a dense layer; router and 3 shared of a MoE layer.
  const int64_t layers = model.num_layers();
  EXPECT_EQ(deployment.Counter("attention", "mapped_tensors"),
            3 + 7 * layers + 3 * 1 + 4 * (layers - 1));
}

}  // namespace
}  // namespace tandem::test
