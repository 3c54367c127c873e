#include "common/checkpoint/safetensors.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"

namespace tandem {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr uint64_t kLengthBytes = 8;

}  // namespace

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path) {
  size_t file_bytes = 0;
  TANDEM_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path, &file_bytes));
  auto file = std::shared_ptr<SafetensorsFile>(new SafetensorsFile(path, fd));
  const auto invalid = [&](const auto&... words) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", words...));
  };
  if (file_bytes < kLengthBytes) {
    return invalid("is truncated: it has ", file_bytes, " bytes, and ", kLengthBytes,
                   " hold the header's length");
  }
  uint64_t header_bytes = 0;
  TANDEM_RETURN_IF_ERROR(file->Read(0, sizeof(header_bytes), &header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    return invalid("the header claims ", header_bytes, " bytes, but at most ", kMaxHeaderBytes,
                   " are allowed");
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    return invalid("is truncated: the header claims ", header_bytes, " bytes, but the file has ",
                   file_bytes);
  }
  std::string header(header_bytes, '\0');
  TANDEM_RETURN_IF_ERROR(file->Read(kLengthBytes, header_bytes, header.data()));
  const uint64_t data_begin = kLengthBytes + header_bytes;
  auto entries = ParseSafetensorsHeader(header, file_bytes - data_begin);
  if (!entries.ok()) {
    return absl::Status(entries.status().code(),
                        absl::StrCat(path, ": ", entries.status().message()));
  }
  file->entries_ = *std::move(entries);
  for (auto& [name, entry] : file->entries_) {
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  return std::shared_ptr<const SafetensorsFile>(std::move(file));
}

SafetensorsFile::~SafetensorsFile() { close(fd_); }

absl::Status SafetensorsFile::Read(uint64_t begin, size_t bytes, void* to) const {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n =
        pread(fd_, static_cast<char*>(to) + done, bytes - done, static_cast<off_t>(begin + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::DataLossError(absl::StrCat(path_, " has become shorter"));
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const void>> SafetensorsFile::Map(uint64_t begin,
                                                                 uint64_t end) const {
  // A tensor of no bytes has no pages; its pointer is never read.
  if (begin == end) return std::shared_ptr<const void>(std::make_shared<char>());
  struct stat info;
  if (fstat(fd_, &info) != 0 || static_cast<uint64_t>(info.st_size) < end) {
    return absl::DataLossError(absl::StrCat(path_, " has become shorter"));
  }
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t first = begin / page * page;
  const size_t length = static_cast<size_t>(end - first);
  void* pages = mmap(nullptr, length, PROT_READ, MAP_PRIVATE, fd_, static_cast<off_t>(first));
  if (pages == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", path_, ": ", std::generic_category().message(errno)));
  }
  const std::shared_ptr<void> owner(pages, [length](void* p) { munmap(p, length); });
  return std::shared_ptr<const void>(owner, static_cast<char*>(pages) + (begin - first));
}

}  // namespace tandem
