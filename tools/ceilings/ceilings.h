// What the machine can do at most: how fast it reads memory, and how fast it computes.
//
// Both are the best of short trials, so that a neighbour's moment of quiet is enough: what a kernel
// reaches is compared with what was possible, not with what was usual.
#ifndef TANDEM_TOOLS_CEILINGS_CEILINGS_H_
#define TANDEM_TOOLS_CEILINGS_CEILINGS_H_

#include <string>
#include <vector>

namespace tandem {

// A way of reading memory once, from its begin to its end.
struct ReadPattern {
  int streams = 1;           // of each thread: places that it reads at in turn, a cache line each
  int prefetch_bytes = 0;    // how far ahead each stream prefetches; 0: it does not
  bool huge_pages = false;   // by madvise
  std::string Name() const;  // "2 streams, prefetch 512 bytes ahead, huge pages"
};

struct ReadRate {
  ReadPattern pattern;
  double bytes_per_s = 0;  // of all threads
};

// Every pattern, the fastest first. Loads are of 64 bytes with AVX-512, of 32 with AVX2. Reads a
// buffer of 1 GiB, so that no cache helps; takes some ten seconds. Without huge pages where there
// are none; empty where there is no memory. Requires AVX2.
std::vector<ReadRate> MeasureReadRates(int num_threads);

// The rate of one instruction sequence on registers alone.
struct PeakRate {
  std::string name;      // "int8 VNNI"
  std::string sequence;  // "vpdpbusd zmm"
  bool is_float = false;
  double ops_per_s = 0;  // of all threads; a multiplication and its addition are two
};

// One for each sequence that the processor has and, for AMX, the system allows. Takes some seconds.
// Requires AVX2 and FMA.
std::vector<PeakRate> MeasurePeakRates(int num_threads);

// The fastest of those that multiply and add floats.
double FloatPeakRate(const std::vector<PeakRate>& peaks);

}  // namespace tandem

#endif  // TANDEM_TOOLS_CEILINGS_CEILINGS_H_
