// An attention engine in each dtype, and the logits of sequences computed alone, for tests.
#ifndef TANDEM_TESTS_ATTENTION_WORKER_ENGINE_FIXTURE_H_
#define TANDEM_TESTS_ATTENTION_WORKER_ENGINE_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/attention_worker/engine_harness.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {

// By position.
using Logits = std::map<int32_t, std::vector<float>>;

// One checkpoint for all tests of this program.
inline const std::string& CheckpointDir() {
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

inline std::vector<int32_t> RandomIds(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 96);
  return ids;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
inline void ExpectSameBits(const Logits& a, const Logits& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [position, logits] : a) {
    const auto other = b.find(position);
    ASSERT_NE(other, b.end()) << position;
    EXPECT_TRUE(SameBits(logits, other->second)) << "at position " << position;
  }
}

inline void Collect(const StepResult& result, SequenceId sequence, Logits* logits) {
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

}  // namespace tandem

#endif  // TANDEM_TESTS_ATTENTION_WORKER_ENGINE_FIXTURE_H_
