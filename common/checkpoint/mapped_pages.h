// Pages of files in memory. A file that becomes shorter takes its pages away, and whoever reads one
// then gets SIGBUS: the process says which file it was and ends with code 1, as after any error.
#ifndef TANDEM_COMMON_CHECKPOINT_MAPPED_PAGES_H_
#define TANDEM_COMMON_CHECKPOINT_MAPPED_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace tandem {

// Maps `bytes` > 0 of a file, from `offset`, a multiple of the page size, on, read-only and
// privately; the pointer owns the mapping. `path` names the file for people. The first call takes
// over SIGBUS, unless the process has a handler of its own. What could fill a huge page lies
// so that one can hold it: as far behind a boundary in memory as `offset` is in the file.
//   RESOURCE_EXHAUSTED  the system refuses another mapping
absl::StatusOr<std::shared_ptr<void>> MapPages(int descriptor, const std::string& path,
                                               uint64_t offset, size_t bytes);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_MAPPED_PAGES_H_
