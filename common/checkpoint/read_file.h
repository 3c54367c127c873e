// Reading small text files of a checkpoint: configurations, indices, the tokenizer's.
#ifndef TANDEM_COMMON_CHECKPOINT_READ_FILE_H_
#define TANDEM_COMMON_CHECKPOINT_READ_FILE_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace tandem {

// The content of a regular file.
//   NOT_FOUND         nothing has that name
//   INVALID_ARGUMENT  it is no regular file, a link to nothing or a git-lfs pointer, cannot be
//                     opened, or has more than `max_bytes`; named
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

// Of a file that may be missing; nullopt: nothing has that name. Other errors: as above.
absl::StatusOr<std::optional<std::string>> ReadSmallFileIfThere(const std::string& path,
                                                                size_t max_bytes);

// Opens a regular file for reading and stores its size. Never waits, not even for a pipe.
// The caller closes the descriptor. Errors: as above.
absl::StatusOr<int> OpenRegularFile(const std::string& path, size_t* file_bytes);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_READ_FILE_H_
