#include "common/checkpoint/safetensors.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/mapped_pages.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"

namespace tandem {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr uint64_t kLengthBytes = 8;

int64_t ModifiedNs(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path) {
  size_t file_bytes = 0;
  TANDEM_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path, &file_bytes));
  auto file = std::shared_ptr<SafetensorsFile>(new SafetensorsFile(path, fd));
  struct stat info;
  if (fstat(fd, &info) != 0) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  file->bytes_ = file_bytes;
  file->modified_ns_ = ModifiedNs(info);
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
  TANDEM_ASSIGN_OR_RETURN(const std::shared_ptr<void> pages, MapPages(fd_, path_, first, length));
  return std::shared_ptr<const void>(pages, static_cast<char*>(pages.get()) + (begin - first));
}

bool SafetensorsFile::IsInMemory(uint64_t begin, uint64_t end) const {
  struct statfs system;
  if (fstatfs(fd_, &system) != 0) return false;
  if (system.f_type == TMPFS_MAGIC) return true;
  constexpr uint64_t kLooks = 16;
  for (uint64_t i = 0; i < kLooks && begin < end; ++i) {
    char byte;
    iovec to{&byte, sizeof(byte)};
    const uint64_t at = begin + (end - 1 - begin) * i / (kLooks - 1);
    if (preadv2(fd_, &to, 1, static_cast<off_t>(at), RWF_NOWAIT) != 1) return false;
  }
  return true;
}

absl::Status SafetensorsFile::CheckUnchanged() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) return absl::DataLossError(absl::StrCat(path_, " cannot be read"));
  if (static_cast<uint64_t>(info.st_size) < bytes_) {
    return absl::DataLossError(absl::StrCat(path_, " has become shorter since it was opened"));
  }
  if (static_cast<uint64_t>(info.st_size) > bytes_ || ModifiedNs(info) != modified_ns_) {
    return absl::DataLossError(absl::StrCat(path_, " has been written to since it was opened"));
  }
  return absl::OkStatus();
}

}  // namespace tandem
