// Short trials on several threads at once.
#ifndef TANDEM_TOOLS_CEILINGS_TRIALS_H_
#define TANDEM_TOOLS_CEILINGS_TRIALS_H_

#include "absl/functional/function_ref.h"

namespace tandem {

// Calls work(thread, trial) on `num_threads` new threads at once, each on a core of its own,
// `trials` times in turn. Returns the seconds of the shortest trial, from the first thread's start
// to the last one's end.
double ShortestTrial(int num_threads, int trials,
                     absl::FunctionRef<void(int thread, int trial)> work);

}  // namespace tandem

#endif  // TANDEM_TOOLS_CEILINGS_TRIALS_H_
