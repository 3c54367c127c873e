// Many Generates at a time.
#ifndef TANDEM_TOOLS_TANDEM_RUN_ALL_H_
#define TANDEM_TOOLS_TANDEM_RUN_ALL_H_

#include <cstddef>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client.h"

namespace tandem::tool {

// Runs every request, up to `concurrency` (at least 1) at a time, and hands each answer with its
// request's index to `on_answer`: on the calling thread, in the order of the requests, each as soon
// as it and those before it are there. A request that fails does not stop the others. Returns, once
// all threads have ended, OK or how many failed and the first one's error.
absl::Status RunAll(
    Client& client, const std::vector<v1::GenerateRequest>& requests, int concurrency,
    const std::function<void(size_t, const absl::StatusOr<Completion>&)>& on_answer);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_RUN_ALL_H_
