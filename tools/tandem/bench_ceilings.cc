#include "bench_ceilings.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/machine.h"
#include "io.h"
#include "tools/ceilings/ceilings.h"

namespace tandem::tool {
namespace {

using ReadsByThreads = std::map<int, std::vector<ReadRate>>;

// What a plain loop over plain memory gets, which the best pattern is worth comparing with.
const ReadRate& PlainLoop(const std::vector<ReadRate>& reads) {
  return *std::find_if(reads.begin(), reads.end(), [](const ReadRate& read) {
    const ReadPattern& p = read.pattern;
    return p.streams == 1 && p.prefetch_bytes == 0 && !p.huge_pages;
  });
}

void PrintTable(const ReadsByThreads& reads_by_threads, const std::vector<PeakRate>& peaks,
                int num_threads) {
  for (const auto& [threads, reads] : reads_by_threads) {
    std::printf("read, %2d thread%s %8.1f GB/s   %s\n", threads, threads == 1 ? " " : "s",
                reads.front().bytes_per_s * 1e-9, reads.front().pattern.Name().c_str());
    std::printf("%16s %8.1f GB/s   %s\n", "", PlainLoop(reads).bytes_per_s * 1e-9,
                PlainLoop(reads).pattern.Name().c_str());
  }
  std::printf("peak, %d thread%s\n", num_threads, num_threads == 1 ? "" : "s");
  for (const PeakRate& peak : peaks) {
    std::printf("%16s %8.1f %-7s %s\n", peak.name.c_str(), peak.ops_per_s * 1e-9,
                peak.is_float ? "GFLOP/s" : "GOP/s", peak.sequence.c_str());
  }
}

void PrintJson(const ReadsByThreads& reads_by_threads, const std::vector<PeakRate>& peaks,
               int num_threads) {
  nlohmann::json all = {{"threads", num_threads},
                        {"reads", nlohmann::json::array()},
                        {"peaks", nlohmann::json::array()}};
  for (const auto& [threads, reads] : reads_by_threads) {
    for (const ReadRate& read : reads) {  // the best of its threads first
      all["reads"].push_back({{"threads", threads},
                              {"streams", read.pattern.streams},
                              {"prefetch_bytes", read.pattern.prefetch_bytes},
                              {"huge_pages", read.pattern.huge_pages},
                              {"bytes_per_s", read.bytes_per_s}});
    }
  }
  for (const PeakRate& peak : peaks) {
    all["peaks"].push_back(
        {{"name", peak.name}, {"sequence", peak.sequence}, {"ops_per_s", peak.ops_per_s}});
  }
  std::cout << Dump(all) << "\n";
}

}  // namespace

absl::Status BenchCeilings(int num_threads, bool json) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return absl::UnimplementedError("this processor has no AVX2");
  }
  if (num_threads == 0) num_threads = ReadMachineLimits().cpus;
  ReadsByThreads reads_by_threads;
  for (const int threads : {1, num_threads}) {
    if (reads_by_threads.contains(threads)) continue;
    std::vector<ReadRate> reads = MeasureReadRates(threads);
    if (reads.empty()) return absl::ResourceExhaustedError("there is no 1 GiB of memory to read");
    reads_by_threads[threads] = std::move(reads);
  }
  const std::vector<PeakRate> peaks = MeasurePeakRates(num_threads);
  (json ? PrintJson : PrintTable)(reads_by_threads, peaks, num_threads);
  return absl::OkStatus();
}

}  // namespace tandem::tool
