#include "deployment/sizing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

namespace tandem {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

// By hand, of V2-Lite in bf16. An expert: 3 * 1408 * 2048 * 2 bytes, 26 * 64 of them.
constexpr int64_t kExpert = 17'301'504;
constexpr int64_t kExperts = 1664;
// Embedding, lm_head, 27 layers of attention with kv_b_proj's keys twice, a dense layer, 26 routers
// and pairs of shared experts, norms.
constexpr int64_t kOthers = 2'679'888'896;
// Two passes of 2,112 rows of 253,440 bytes, keys and values of 512 tokens, 64 rows of logits as
// they are and as they are adjusted; 8 MiB.
constexpr int64_t kPasses = 1'194'786'816;

class SizingTest : public testing::Test {
 protected:
  SizingTest() {
    const std::string path = TANDEM_SOURCE_DIR "/tools/gpu_bench/v2_lite_config.json";
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    request_.config = *ParseModelConfig(text.str(), path);
    request_.streams = 16;
    request_.stream_tokens = 4096;
    request_.node_memory_bytes = 64 * kGiB;
  }

  Sizing Plan() {
    const absl::StatusOr<Sizing> sizing = PlanSizing(request_);
    EXPECT_TRUE(sizing.ok()) << sizing.status();
    return sizing.ok() ? *sizing : Sizing{};
  }

  SizingRequest request_;
};

TEST_F(SizingTest, AnAttentionWorkerHasItsWeightsAndACacheForItsStreams) {
  const Sizing sizing = Plan();
  EXPECT_EQ(sizing.attention.replicas, 1);
  EXPECT_EQ(sizing.attention.weight_bytes, kOthers);
  EXPECT_EQ(sizing.cache_tokens, 65536);
  EXPECT_EQ(sizing.attention.cache_bytes, 65536 * 31104);
  EXPECT_EQ(sizing.attention.pass_bytes, kPasses);
  // (2.68 + 2.04 + 1.19) GB * 20 / 19, in whole 64 MiB.
  EXPECT_EQ(sizing.attention.memory_bytes, 93 * kGiB / 16);
  // Read twice at 200 MB/s; what is in the file has kv_b_proj's keys once, which makes 0.6 s.
  EXPECT_EQ(sizing.attention.startup_s, 60 + 27);
}

TEST_F(SizingTest, OneLargeNodeHoldsEveryExpertOnce) {
  const Sizing sizing = Plan();
  EXPECT_EQ(sizing.expert_copies, 1);  // 2 * 29.4 GiB are more than 60.8 with the attention worker
  EXPECT_EQ(sizing.expert.replicas, 1);
  EXPECT_EQ(sizing.experts_each, kExperts);
  EXPECT_EQ(sizing.expert.weight_bytes, kExperts * kExpert);
  EXPECT_EQ(sizing.expert_memory_bytes, int64_t{27456} << 20);
  EXPECT_EQ(sizing.expert.memory_bytes, 471 * kGiB / 16);
  EXPECT_EQ(sizing.expert.startup_s, 60 + 288);
  EXPECT_THAT(sizing.why, Contains(HasSubstr("memory does not allow 2 copies of each expert")));
  EXPECT_THAT(sizing.why, Contains(HasSubstr("an expert worker that dies takes experts with it")));
}

TEST_F(SizingTest, MoreNodesHoldEachExpertTwiceAndMayBeSmaller) {
  request_.nodes = 4;
  request_.node_memory_bytes = 24 * kGiB;
  const Sizing sizing = Plan();
  EXPECT_EQ(sizing.expert_copies, 2);
  // Three of 20.2 GiB take a node each and the fourth has the attention worker.
  EXPECT_EQ(sizing.expert.replicas, 3);
  EXPECT_EQ(sizing.expert_nodes, 3);
  EXPECT_EQ(sizing.experts_each, 26 * 43);  // of 64 * 2 / 3 in a layer, rounded up
  EXPECT_EQ(sizing.expert.memory_bytes, 323 * kGiB / 16);
  // Two others read what one had: 1,118 experts of bf16, half each, twice.
  EXPECT_EQ(sizing.drain_limit_s, 30 + 97);
}

TEST_F(SizingTest, AsFewAttentionWorkersAsMayRunTheStreamsAndHoldTheirCache) {
  request_.nodes = 8;
  request_.streams = 65;  // one more than a worker runs
  EXPECT_EQ(Plan().attention.replicas, 2);
  EXPECT_EQ(Plan().cache_tokens, 33 * 4096);
  request_.streams = 16;
  request_.stream_tokens = 163840;  // 5.1 GB each: 11 in what is left of 60.8 GiB
  EXPECT_EQ(Plan().attention.replicas, 2);
  EXPECT_EQ(Plan().cache_tokens, 8 * 163840);
}

TEST_F(SizingTest, WhatIsReadBoundsTheSpeed) {
  request_.expert_copies = 1;
  request_.streams = 1;
  request_.stream_tokens = 64;
  // Per token: 6 of 64 experts, all of attention but the embedding, 32 latents; keys count twice.
  const double bytes = kExperts * kExpert * 6.0 / 64 + kOthers - 2.0 * 102400 * 2048 + 32 * 31104;
  EXPECT_NEAR(Plan().most_tokens_per_s, 30e9 / bytes, 1e-9);
  request_.nodes = 3;
  request_.tokens_per_s = 8;  // with experts on two nodes
  const Sizing two = Plan();
  EXPECT_EQ(two.expert.replicas, 2);
  EXPECT_EQ(two.expert_nodes, 2);
  request_.tokens_per_s = 100;
  const auto none = PlanSizing(request_);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(none.status().message()),
              HasSubstr("at most 9 tokens per second of the 100 asked for"));
}

TEST_F(SizingTest, WhatDoesNotFitIsRefusedWithTheNumbers) {
  request_.node_memory_bytes = 24 * kGiB;
  const auto experts = PlanSizing(request_);
  EXPECT_EQ(experts.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(experts.status().message()),
      HasSubstr("all workers together need some 37.8 GB with one copy of each expert, and 1 "
                "nodes give 24.5 GB"));
  request_.node_memory_bytes = 3 * kGiB;
  const auto attention = PlanSizing(request_);
  EXPECT_THAT(std::string(attention.status().message()),
              HasSubstr("an attention worker with the cache of one stream needs"));
  request_.config.num_experts = 0;
  EXPECT_EQ(PlanSizing(request_).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SizingTest, SmallerFormatsNeedLess) {
  request_.format = WeightFormat::kInt4;
  request_.node_memory_bytes = 16 * kGiB;
  request_.expert_copies = 1;
  const Sizing sizing = Plan();
  EXPECT_EQ(sizing.expert.replicas, 1);
  // 4 bits a value and a factor of 4 bits per 32.
  EXPECT_EQ(sizing.expert.weight_bytes, kExperts * (kExpert / 2 / 2 + kExpert / 2 / 64));
}

}  // namespace
}  // namespace tandem
