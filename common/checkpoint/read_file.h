// Reading small text files of a checkpoint: configurations and indices.
#ifndef TANDEM_COMMON_CHECKPOINT_READ_FILE_H_
#define TANDEM_COMMON_CHECKPOINT_READ_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace tandem {

// The content of a regular file.
//   NOT_FOUND         it is not there or cannot be opened
//   INVALID_ARGUMENT  it is no regular file, or has more than `max_bytes`
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

// Opens a regular file for reading and stores its size. Never waits, not even for a pipe.
// The caller closes the descriptor. Errors: as above.
absl::StatusOr<int> OpenRegularFile(const std::string& path, size_t* file_bytes);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_READ_FILE_H_
