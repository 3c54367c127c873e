#include "common/checkpoint/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {

absl::StatusOr<int> OpenRegularFile(const std::string& path, size_t* file_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return absl::NotFoundError(
        absl::StrCat("cannot read ", path, ": ", std::generic_category().message(errno)));
  }
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  *file_bytes = static_cast<size_t>(info.st_size);
  return fd;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes) {
  size_t file_bytes = 0;
  TANDEM_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path, &file_bytes));
  if (file_bytes > max_bytes) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", file_bytes, " bytes, but at most ", max_bytes, " are allowed"));
  }
  std::string content(file_bytes, '\0');
  size_t done = 0;
  while (done < file_bytes) {
    const ssize_t n = read(fd, content.data() + done, file_bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;  // it has become shorter: what is left is judged by its parser
    done += static_cast<size_t>(n);
  }
  close(fd);
  content.resize(done);
  return content;
}

}  // namespace tandem
