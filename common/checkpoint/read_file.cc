#include "common/checkpoint/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status.h"

namespace tandem {
namespace {

// What a git-lfs pointer, the file that git leaves where git-lfs did not fetch, begins with.
constexpr absl::string_view kLfsPointer = "version https://git-lfs.github.com/spec/v1";

// Its specification allows a pointer this many bytes. The beginning of a larger file is not read:
// the system would keep it in small pages, of which nothing would make a huge one.
constexpr off_t kMaxLfsPointerBytes = 1024;

bool IsLfsPointer(int fd, off_t file_bytes) {
  if (file_bytes > kMaxLfsPointerBytes) return false;
  std::array<char, kLfsPointer.size()> begin{};
  return pread(fd, begin.data(), begin.size(), 0) == static_cast<ssize_t>(begin.size()) &&
         absl::string_view(begin.data(), begin.size()) == kLfsPointer;
}

}  // namespace

absl::StatusOr<int> OpenRegularFile(const std::string& path, size_t* file_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int error = errno;
    std::error_code ignored;
    if (error == ENOENT && std::filesystem::is_symlink(path, ignored)) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is a link to a file that is missing"));
    }
    return absl::Status(
        error == ENOENT ? absl::StatusCode::kNotFound : absl::StatusCode::kInvalidArgument,
        absl::StrCat("cannot read ", path, ": ", std::generic_category().message(error)));
  }
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  if (IsLfsPointer(fd, info.st_size)) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is a git-lfs pointer, not the file itself: git lfs pull fetches it"));
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

absl::StatusOr<std::optional<std::string>> ReadSmallFileIfThere(const std::string& path,
                                                                size_t max_bytes) {
  absl::StatusOr<std::string> content = ReadSmallFile(path, max_bytes);
  if (absl::IsNotFound(content.status())) return std::nullopt;
  TANDEM_RETURN_IF_ERROR(content.status());
  return *std::move(content);
}

}  // namespace tandem
