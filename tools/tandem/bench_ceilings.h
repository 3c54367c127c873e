// What the machine can do at most, as a table or as JSON.
#ifndef TANDEM_TOOLS_TANDEM_BENCH_CEILINGS_H_
#define TANDEM_TOOLS_TANDEM_BENCH_CEILINGS_H_

#include "absl/status/status.h"

namespace tandem::tool {

// Measures reads on one thread and on `num_threads`, peaks on `num_threads`, and prints them. 0: as
// many as this process may use.
//   UNIMPLEMENTED       a processor without AVX2
//   RESOURCE_EXHAUSTED  no memory to read
absl::Status BenchCeilings(int num_threads, bool json);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_BENCH_CEILINGS_H_
