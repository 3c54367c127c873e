// Weights that are packed once and mapped by later starts of the real programs: the same bits, and
// never those of another checkpoint.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/checkpoint.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

constexpr absl::Duration kLimit = absl::Seconds(60);

std::vector<v1::GenerateRequest> Requests() {
  std::vector<v1::GenerateRequest> requests;
  for (int seed = 0; seed < 6; ++seed) requests.push_back(SeededRequest(seed, 8));
  return requests;
}

int64_t NumFiles(const std::string& dir) {
  int64_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) files += entry.is_regular_file();
  return files;
}

class PackedWeightsTest : public testing::TestWithParam<std::string> {
 protected:
  PackedWeightsTest() {
    model_ = dir_.path() + "/model";
    fs::copy(TinyModel(), model_);
  }
  DeploymentOptions Options(const std::string& packed, int workers = 0) const {
    DeploymentOptions options;
    options.model = model_;
    options.dtype = "bf16";
    options.attention_workers = workers > 0 ? 1 : 0;
    options.expert_workers = workers;
    if (workers > 0) options.gateway_flags = {"--expert-copies", "1"};  // each unit at one of them
    options.weights_flags = {"--weights", GetParam(), "--packed-weights", packed};
    return options;
  }
  std::vector<Answer> Answers(Deployment& deployment) const {
    return AskAll(deployment.stub(), Requests(), 1);
  }
  std::vector<Answer> Unpacked() const {
    Deployment deployment(Options("off"));
    return Answers(deployment);
  }
  // `tandem quantize`; its exit code, and what it says.
  int Quantize(const std::string& packed, std::string* output) const {
    Process process({Binary("tandem"), "quantize", "--model", model_, "--weights", GetParam(),
                     "--packed-weights", packed},
                    dir_.path() + "/quantize.log");
    const int code = process.Wait(kLimit);
    *output = process.Output();
    return code;
  }
  std::string Cache() const { return dir_.path() + "/cache"; }

  const TempDir dir_;
  std::string model_;
};

// Of attention worker and experts together; in one process the former shows them all.
int64_t Sum(Deployment& deployment, const std::string& counter) {
  return std::max<int64_t>(0, deployment.Counter("attention", counter)) +
         std::max<int64_t>(0, deployment.Counter("expert", counter));
}

TEST_P(PackedWeightsTest, LaterStartsOfAnyShapeMapThemAndGiveTheSameBits) {
  const std::vector<Answer> unpacked = Unpacked();
  ASSERT_TRUE(unpacked[0].status.ok()) << unpacked[0].status.error_message();
  int64_t units = 0;
  {
    Deployment first(Options(Cache()));
    EXPECT_EQ(Answers(first), unpacked);
    EXPECT_EQ(Sum(first, "packed_mapped"), 0);
    int64_t last = -1;  // until it writes no more
    EXPECT_TRUE(WaitUntil(
        [&] {
          const int64_t now = Sum(first, "packed_written");
          return now > 0 && std::exchange(last, now) == now && NumFiles(Cache()) == now;
        },
        kLimit));
    units = last;
  }
  {
    Deployment second(Options(Cache()));
    EXPECT_EQ(Sum(second, "packed_mapped") + Sum(second, "packed_written"), units);
    EXPECT_GT(Sum(second, "packed_mapped"), 0);
    EXPECT_EQ(Sum(second, "packed_refused"), 0);
    EXPECT_EQ(Answers(second), unpacked);
  }
  Deployment apart(Options(Cache(), 2));
  EXPECT_EQ(Answers(apart), unpacked);
  EXPECT_TRUE(WaitUntil([&] { return Sum(apart, "packed_mapped") == units; }, kLimit));
}

TEST_P(PackedWeightsTest, WorkersPackTheirOwnSideBySide) {
  {
    Deployment first(Options(Cache(), 2));
    EXPECT_TRUE(WaitUntil([&] { return Sum(first, "packed_written") > 0; }, kLimit));
    EXPECT_EQ(Answers(first), Unpacked());
    EXPECT_EQ(Sum(first, "packed_failed"), 0);
  }
  Deployment second(Options(Cache(), 2));
  EXPECT_EQ(Answers(second), Unpacked());
  EXPECT_TRUE(WaitUntil([&] { return Sum(second, "packed_mapped") > 0; }, kLimit));
}

TEST_P(PackedWeightsTest, QuantizePacksAllThatAStartNeeds) {
  std::string output;
  ASSERT_EQ(Quantize(Cache(), &output), 0) << output;
  const int64_t files = NumFiles(Cache());
  EXPECT_THAT(output, HasSubstr(absl::StrCat(files, " files written, 0 were there")));
  EXPECT_THAT(output, HasSubstr("packing: 100%"));
  ASSERT_EQ(Quantize(Cache(), &output), 0) << output;
  EXPECT_THAT(output, HasSubstr(absl::StrCat("0 files written, ", files, " were there")));
  Deployment deployment(Options(Cache()));
  EXPECT_EQ(Sum(deployment, "packed_mapped"), files);
  EXPECT_EQ(Sum(deployment, "packed_written"), 0);
  EXPECT_EQ(Answers(deployment), Unpacked());
}

TEST_P(PackedWeightsTest, QuantizedBesideTheCheckpointTheyAreFoundWithoutAFlag) {
  Process process({Binary("tandem"), "quantize", "--model", model_, "--weights", GetParam()},
                  dir_.path() + "/log");
  ASSERT_EQ(process.Wait(kLimit), 0) << process.Output();
  EXPECT_TRUE(fs::exists(model_ + "/packed-" + GetParam()));
  DeploymentOptions options = Options("");
  options.weights_flags = {"--weights", GetParam()};
  Deployment deployment(options);
  EXPECT_GT(Sum(deployment, "packed_mapped"), 0);
  EXPECT_EQ(Sum(deployment, "packed_written"), 0);
}

// In the middle of a matrix, where the digest takes no sample; and the file is as long as before.
TEST_P(PackedWeightsTest, AChangedCheckpointIsPackedAgain) {
  std::string output;
  ASSERT_EQ(Quantize(Cache(), &output), 0) << output;
  const std::vector<Answer> before = Unpacked();
  {
    const auto checkpoint = Checkpoint::Open(model_);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const TensorLocation& tensor = (*checkpoint)->tensors().at("lm_head.weight");
    const uint64_t quarter = (tensor.entry.end - tensor.entry.begin) / 4;
    ASSERT_GT(quarter, 4096);
    std::fstream file(tensor.file->path(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(tensor.entry.begin + quarter));
    file << std::string(quarter, '\x3d');
  }
  const std::vector<Answer> after = Unpacked();
  ASSERT_NE(after, before);
  Deployment deployment(Options(Cache()));
  EXPECT_EQ(Sum(deployment, "packed_mapped"), 0);
  EXPECT_GT(Sum(deployment, "packed_refused"), 0);
  EXPECT_EQ(Answers(deployment), after);
  EXPECT_THAT(deployment.gateway().Output(), HasSubstr("was made of another checkpoint"));
}

TEST_P(PackedWeightsTest, KilledInTheMiddleOfWritingItLeavesNothingThatIsTaken) {
  const std::vector<Answer> unpacked = Unpacked();
  for (int round = 1; round <= 8; ++round) {
    Process process({Binary("tandem"), "quantize", "--model", model_, "--weights", GetParam(),
                     "--packed-weights", Cache()},
                    dir_.path() + "/log");
    // At another file each time.
    WaitUntil(
        [&] {
          return !process.running() || (fs::exists(Cache()) && NumFiles(Cache()) >= 7 * round);
        },
        kLimit);
    process.Signal(SIGKILL);
    process.Wait(kLimit);
  }
  Deployment deployment(Options(Cache()));
  EXPECT_GT(Sum(deployment, "packed_mapped"), 0);
  EXPECT_EQ(Sum(deployment, "packed_refused"), 0);
  EXPECT_EQ(Answers(deployment), unpacked);
}

TEST_P(PackedWeightsTest, TwoThatStartAtOncePackTheSame) {
  std::vector<std::unique_ptr<Process>> both;
  for (int i = 0; i < 2; ++i) {
    both.push_back(std::make_unique<Process>(
        std::vector<std::string>{Binary("tandem"), "generate", "one two", "--max-tokens", "2",
                                 "--model", model_, "--weights", GetParam(), "--packed-weights",
                                 Cache()},
        absl::StrCat(dir_.path(), "/log", i)));
  }
  for (auto& process : both) EXPECT_EQ(process->Wait(kLimit), 0) << process->Output();
  Deployment deployment(Options(Cache()));
  EXPECT_EQ(Sum(deployment, "packed_refused"), 0);
  EXPECT_EQ(Answers(deployment), Unpacked());
}

TEST_P(PackedWeightsTest, WhereNothingCanBeWrittenItIsSaidOnceAndServes) {
  Deployment deployment(Options("/proc/no/such/place"));
  EXPECT_EQ(Answers(deployment), Unpacked());
  EXPECT_TRUE(WaitUntil([&] { return Sum(deployment, "packed_failed") == 1; }, kLimit));
  const std::string log = deployment.gateway().Output();
  const std::string said = "packed weights are kept no more";
  const size_t first = log.find(said);
  ASSERT_NE(first, std::string::npos) << log;
  EXPECT_EQ(log.find(said, first + 1), std::string::npos) << log;
  EXPECT_THAT(log, HasSubstr("cannot make /proc/no/such/place"));
}

TEST_P(PackedWeightsTest, SmallOnesLeaveNothingBesideTheCheckpointUnasked) {
  DeploymentOptions options = Options("");
  options.weights_flags = {"--weights", GetParam()};
  Deployment deployment(options);
  EXPECT_TRUE(Answers(deployment)[0].status.ok());
  EXPECT_FALSE(fs::exists(model_ + "/packed-" + GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedWeightsTest, testing::Values("int8", "int4"),
                         [](const auto& info) { return info.param; });

TEST(QuantizeTest, SaysWhatIsWrong) {
  const TempDir dir;
  const auto run = [&](std::vector<std::string> flags, int code) {
    std::vector<std::string> command = {Binary("tandem"), "quantize"};
    command.insert(command.end(), flags.begin(), flags.end());
    Process process(command, dir.path() + "/log");
    EXPECT_EQ(process.Wait(kLimit), code) << process.Output();
    return process.Output();
  };
  EXPECT_THAT(run({"--model", TinyModel()}, 2), HasSubstr("--weights"));
  EXPECT_THAT(run({"--weights", "int4"}, 2), HasSubstr("--model"));
  EXPECT_THAT(run({"--model", TinyModel(), "--weights", "bf16"}, 1),
              HasSubstr("what is kept is int8 or int4"));
  EXPECT_THAT(run({"--model", TinyModel(), "--weights", "int4", "--packed-weights", "off"}, 1),
              HasSubstr("leaves no place"));
  EXPECT_THAT(run({"--model", TinyModel(), "--weights", "int4", "--packed-weights", "/proc/x"}, 1),
              HasSubstr("cannot make /proc/x"));
  EXPECT_THAT(run({"--model", dir.path(), "--weights", "int4"}, 1), HasSubstr("config.json"));
}

TEST(AutoWeightsTest, StatusAndLogSayWhatWasChosenAndWhy) {
  DeploymentOptions options;
  options.dtype = "bf16";
  options.weights_flags = {"--weights", "auto"};
  Deployment deployment(options);
  const std::string why = "bf16 weights by --weights auto: bf16 needs";
  EXPECT_THAT(deployment.Status().detail(), HasSubstr(why));
  EXPECT_THAT(deployment.gateway().Output(), HasSubstr(why));
}

TEST(AutoWeightsTest, IsNotForWorkers) {
  const TempDir dir;
  Process worker({Binary("tandem-expert-worker"), "--model", TinyModel(), "--registry",
                  "127.0.0.1:1", "--weights", "auto"},
                 dir.path() + "/log");
  EXPECT_EQ(worker.Wait(kLimit), 1);
  EXPECT_THAT(worker.Output(), HasSubstr("--weights auto is for a whole model in one process"));
}

}  // namespace
}  // namespace tandem::test
