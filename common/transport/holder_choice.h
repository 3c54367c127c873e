// Which holder of each expert is asked, where several hold it.
#ifndef TANDEM_COMMON_TRANSPORT_HOLDER_CHOICE_H_
#define TANDEM_COMMON_TRANSPORT_HOLDER_CHOICE_H_

#include <cstdint>
#include <map>
#include <vector>

#include "common/placement.h"

namespace tandem {

// Work is counted in routes. An expert's weights are read once for all of its routes, which takes
// as long as the arithmetic of so many of them: a route takes two operations per weight, a weight
// has one or two bytes, and machines do 10 (CPU) to 100 (GPU) operations in the time in which they
// read a byte. Small batches, of a route or two per expert, are so shared by experts, which is what
// they take time for, and prompts, of hundreds, by routes; no value between 8 and 100 changes much.
inline constexpr int64_t kWorkPerExpert = 16;

inline int64_t PartWork(int64_t num_routes, int64_t num_experts) {
  return num_routes + kWorkPerExpert * num_experts;
}

struct ExpertDemand {
  int32_t expert = 0;
  int64_t num_routes = 0;
  std::vector<WorkerId> holders;  // that may be asked, each as good as the others; at least one
};

// Gives each expert whole to the holder that then has the least work: experts of one holder first,
// then those with the most routes. `work` is what each worker has to do already; none: nothing.
// Between holders with equal work `rotation` decides, so that senders that know nothing of each
// other do not all ask the same one.
//
// Rows whose experts would all be at one worker are not kept together, though that worker would
// combine them and return one row instead of top_k. What is gained is the reading of weights, 10 MB
// and more per expert, against a row's 4 KB; and no more rows return than from workers that share
// the experts without copies.
std::map<int32_t, WorkerId> ChooseHolders(std::vector<ExpertDemand> demands,
                                          std::map<WorkerId, int64_t> work, uint64_t rotation);

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_HOLDER_CHOICE_H_
