// A model whose weights are made up on a GPU, an emulated one, is the one that make_checkpoint
// writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "deployment/embedded.h"
#include "proto/inference.grpc.pb.h"
#include "tests/common/checkpoint/safetensors_writer.h"
#include "tools/make_checkpoint/synthetic_checkpoint.h"

namespace tandem {
namespace {

using testing::HasSubstr;

SyntheticOptions TinyOptions(const std::string& out_dir) {
  SyntheticOptions options;
  options.config_path = TANDEM_SOURCE_DIR "/tests/golden/tiny/config.json";
  options.out_dir = out_dir;
  options.seed = 5;
  return options;
}

EmbeddedOptions OnTheGpu(const std::string& dir) {
  EmbeddedOptions options;
  options.model_dir = dir;
  options.backend.device = "cuda";
  options.cache_tokens = 256;
  return options;
}

// Ids and bits of log-probabilities of an answer.
std::vector<uint32_t> Answer(const EmbeddedOptions& options) {
  const auto deployment = InProcessDeployment::Create(options);
  EXPECT_TRUE(deployment.ok()) << deployment.status();
  if (!deployment.ok()) return {};
  const auto stub = v1::Inference::NewStub((*deployment)->Channel());
  v1::GenerateRequest request;
  for (const int id : {3, 1, 4, 1, 5}) request.mutable_token_ids()->add_ids(id);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(4);
  request.set_ignore_eos(true);
  grpc::ClientContext context;
  const auto stream = stub->Generate(&context, request);
  std::vector<uint32_t> bits;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    for (const int id : response.chunk().token_ids()) bits.push_back(static_cast<uint32_t>(id));
    for (const float p : response.chunk().log_probs()) bits.push_back(std::bit_cast<uint32_t>(p));
  }
  EXPECT_TRUE(stream->Finish().ok());
  return bits;
}

TEST(MadeUpWeightsTest, AreThoseThatMakeCheckpointWrites) {
  const ScratchDir whole_dir, empty_dir;
  ASSERT_TRUE(WriteSyntheticCheckpoint(TinyOptions(whole_dir.File("model"))).ok());
  SyntheticOptions empty = TinyOptions(empty_dir.File("model"));
  empty.empty = true;
  ASSERT_TRUE(WriteSyntheticCheckpoint(empty).ok());

  EmbeddedOptions made_up = OnTheGpu(empty.out_dir);
  made_up.made_up_weights = 5;
  const std::vector<uint32_t> want = Answer(OnTheGpu(whole_dir.File("model")));
  EXPECT_EQ(want.size(), 8u);
  EXPECT_EQ(Answer(made_up), want);
  made_up.made_up_weights = 6;
  EXPECT_NE(Answer(made_up), want);
}

TEST(MadeUpWeightsTest, AreSaidAndTakeAGpu) {
  EmbeddedOptions options = OnTheGpu(TANDEM_SOURCE_DIR "/tests/golden/tiny");
  options.made_up_weights = 5;
  const auto deployment = *InProcessDeployment::Create(options);
  grpc::ClientContext context;
  v1::GetStatusResponse status;
  const auto stub = v1::Inference::NewStub(deployment->Channel());
  ASSERT_TRUE(stub->GetStatus(&context, {}, &status).ok());
  EXPECT_THAT(status.detail(), HasSubstr("bf16 weights made up from seed 5"));

  options.backend.device = "cpu";
  EXPECT_THAT(std::string(InProcessDeployment::Create(options).status().message()),
              HasSubstr("does not make weights up: it takes a GPU"));
}

}  // namespace
}  // namespace tandem
