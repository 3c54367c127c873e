// Runs simulated deployments, each by a seed with several faults, and holds every answer against
// that of a model which nobody disturbed.
//
//   simulation_seeds_test                              # as many seeds as CI has time for
//   simulation_seeds_test --seeds 1000000 --first-seed 1
//   simulation_seeds_test --seeds 1 --first-seed 4711 --trace
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "tests/simulation/simulation.h"

namespace tandem {
namespace {

struct Flags {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  int64_t seeds = 300;
#else
  int64_t seeds = 10000;
#endif
  uint64_t first_seed = 1;
  bool trace = false;
} flags;

std::string Lines(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) absl::StrAppend(&text, line, "\n");
  return text;
}

constexpr int kMostFailures = 5;  // that are shown, the first with its trace

TEST(SimulationTest, EveryStreamIsAsIfNothingHadHappened) {
  google::protobuf::SetLogHandler(nullptr);  // it has something to say of damaged frames
  const TinyModel model;
  SimulationCounts counts;
  int64_t done = 0;
  for (int failures = 0; done < flags.seeds && failures < kMostFailures; ++done) {
    const uint64_t seed = flags.first_seed + static_cast<uint64_t>(done);
    Simulation simulation(&model, seed, flags.trace);
    const Trace& trace = simulation.Run();
    simulation.AddTo(&counts);
    if (flags.trace) std::printf("%s", Lines(trace.lines()).c_str());
    if (trace.violations().empty()) continue;
    ADD_FAILURE() << "seed " << seed << ":\n"
                  << Lines(trace.violations()) << "what happened: --trace --seeds 1 --first-seed "
                  << seed;
    if (failures++ > 0 || flags.trace) continue;
    Simulation again(&model, seed, true);
    EXPECT_EQ(again.Run().violations(), trace.violations()) << "the same seed does something else";
    std::printf("%s", Lines(again.trace().lines()).c_str());
  }
  std::printf("%lld seeds from %llu on; what broke, and what was seen:\n",
              static_cast<long long>(done), static_cast<unsigned long long>(flags.first_seed));
  for (const auto& [kind, count] : counts.faults) {
    std::printf("%10lld  %s\n", static_cast<long long>(count), kind.c_str());
  }
  std::printf("\n");
  for (const auto& [what, count] : counts.seen) {
    std::printf("%10lld  %s\n", static_cast<long long>(count), what.c_str());
  }
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  spdlog::set_level(spdlog::level::off);  // faults are what it is about
  using tandem::flags;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* const value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (flag == "--trace") {
      flags.trace = true;
    } else if (flag == "--seeds" && value != nullptr) {
      flags.seeds = std::atoll(argv[++i]);
    } else if (flag == "--first-seed" && value != nullptr) {
      flags.first_seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: %s [--seeds N] [--first-seed S] [--trace]\n", argv[0]);
      return 2;
    }
  }
  return RUN_ALL_TESTS();
}
