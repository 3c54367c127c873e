#include "common/checkpoint/packed_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxh_x86dispatch.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/mapped_pages.h"
#include "common/checkpoint/read_file.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

using Json = nlohmann::json;

constexpr char kMagic[] = "TNDMPACK";
constexpr uint64_t kVersion = 1;
constexpr int64_t kSumBytes = 256 << 10;      // of one sum; some per thread even of an expert
constexpr uint64_t kMaxJsonBytes = 16 << 20;  // sums of hundreds of GiB
constexpr int64_t kWriteBytes = 2 << 20;      // a huge page, at once
constexpr int64_t kSyncBytes = 8 << 20;       // written before they are waited for

struct Tail {
  char magic[8];
  uint64_t version;
  uint64_t json_bytes;
  uint64_t json_sum;
};
static_assert(sizeof(Tail) == 32);

int64_t NumSums(int64_t bytes) { return (bytes + kSumBytes - 1) / kSumBytes; }

uint64_t SumOf(const std::byte* memory, int64_t bytes, int64_t i) {
  const int64_t begin = i * kSumBytes;
  return XXH3_64bits(memory + begin, static_cast<size_t>(std::min(kSumBytes, bytes - begin)));
}

absl::Status ReadAt(int fd, uint64_t offset, void* to, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n =
        pread(fd, static_cast<char*>(to) + done, bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::DataLossError("cannot be read");
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

// The label and sums of a file of `file_bytes`. Errors lack the path.
absl::Status ReadLabel(int fd, uint64_t file_bytes, PackedLabel* label,
                       std::vector<uint64_t>* sums) {
  Tail tail;
  if (file_bytes < sizeof(tail)) return absl::DataLossError("is not whole");
  const uint64_t json_end = file_bytes - sizeof(tail);
  TANDEM_RETURN_IF_ERROR(ReadAt(fd, json_end, &tail, sizeof(tail)));
  if (std::memcmp(tail.magic, kMagic, sizeof(tail.magic)) != 0) {
    return absl::DataLossError("is no whole file of packed weights");
  }
  if (tail.version != kVersion) {
    return absl::DataLossError(absl::StrCat("is of version ", tail.version, ", not ", kVersion));
  }
  if (tail.json_bytes > std::min(json_end, kMaxJsonBytes)) {
    return absl::DataLossError("has a broken label");
  }
  std::string text(tail.json_bytes, '\0');
  TANDEM_RETURN_IF_ERROR(ReadAt(fd, json_end - tail.json_bytes, text.data(), text.size()));
  if (XXH3_64bits(text.data(), text.size()) != tail.json_sum) {
    return absl::DataLossError("has a broken label");
  }
  // What has this sum was written below, so the types are right; unless somebody wanted otherwise.
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    label->unit = json.at("unit").get<std::string>();
    label->source = json.at("source").get<std::string>();
    label->layout = json.at("layout").get<std::string>();
    label->bytes = json.at("bytes").get<int64_t>();
    *sums = json.at("sums").get<std::vector<uint64_t>>();
  } catch (const Json::exception&) {
    return absl::DataLossError("has a broken label");
  }
  if (label->bytes <= 0 || static_cast<uint64_t>(label->bytes) != json_end - tail.json_bytes ||
      static_cast<int64_t>(sums->size()) != NumSums(label->bytes)) {
    return absl::DataLossError("is not as long as its label says");
  }
  return absl::OkStatus();
}

absl::Status SystemError(const char* what, const std::string& path) {
  return absl::FailedPreconditionError(
      absl::StrCat(what, " ", path, ": ", std::generic_category().message(errno)));
}

// Has the system put a huge page together and leave it free. For the pages of files it takes one
// that is there, but never makes one; for other memory it moves pages until there is one, if asked.
// So a huge page that was taken for other memory and given back is what a write of its size takes.
class HugePageMaker {
 public:
  HugePageMaker() {
    mapped_ =
        mmap(nullptr, 2 * kWriteBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ == MAP_FAILED) return;
    const auto address = reinterpret_cast<uintptr_t>(mapped_);
    page_ = static_cast<char*>(mapped_) + (kWriteBytes - address % kWriteBytes) % kWriteBytes;
    madvise(page_, kWriteBytes, MADV_HUGEPAGE);
  }
  ~HugePageMaker() {
    if (mapped_ != MAP_FAILED) munmap(mapped_, 2 * kWriteBytes);
  }
  HugePageMaker(const HugePageMaker&) = delete;
  HugePageMaker& operator=(const HugePageMaker&) = delete;

  void Make() {
    if (mapped_ == MAP_FAILED) return;
    *static_cast<volatile char*>(page_) = 0;
    madvise(page_, kWriteBytes, MADV_DONTNEED);
  }

 private:
  void* mapped_;
  char* page_ = nullptr;  // in it, at a multiple of its size
};

// An unfinished file that this process alone may write. Removed unless it was given its name.
class UnfinishedFile {
 public:
  // Null: another process has it.
  static absl::StatusOr<std::unique_ptr<UnfinishedFile>> Take(const std::string& path) {
    auto file = std::unique_ptr<UnfinishedFile>(new UnfinishedFile(path));
    file->fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file->fd_ < 0) return SystemError("cannot write", path);
    if (flock(file->fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return nullptr;
      return SystemError("cannot lock", path);
    }
    // Whoever had the lock before may have given the file its name, or removed it.
    struct stat locked, named;
    if (fstat(file->fd_, &locked) != 0 || lstat(path.c_str(), &named) != 0 ||
        locked.st_ino != named.st_ino || locked.st_dev != named.st_dev) {
      return nullptr;
    }
    file->owned_ = true;
    if (ftruncate(file->fd_, 0) != 0) return SystemError("cannot write", path);
    return file;
  }
  ~UnfinishedFile() {
    if (owned_) unlink(path_.c_str());
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Append(const void* from, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
      const ssize_t n =
          write(fd_, static_cast<const char*>(from) + done, static_cast<size_t>(bytes - done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return SystemError("cannot write", path_);
      done += n;
    }
    return absl::OkStatus();
  }
  absl::Status Sync() {
    return fdatasync(fd_) == 0 ? absl::OkStatus() : SystemError("cannot write", path_);
  }
  absl::Status CheckSpace(int64_t bytes, int64_t spare_bytes) const {
    struct statvfs disk;
    if (fstatvfs(fd_, &disk) != 0) return absl::OkStatus();  // writing will tell
    const auto free = static_cast<int64_t>(disk.f_bavail * disk.f_frsize);
    if (free >= bytes + spare_bytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("the disk of ", path_, " has ", free >> 20,
                                                     " MiB left, and ", spare_bytes >> 20,
                                                     " MiB are not taken for packed weights"));
  }
  absl::Status Rename(const std::string& name) {
    if (rename(path_.c_str(), name.c_str()) != 0) return SystemError("cannot write", name);
    owned_ = false;
    return absl::OkStatus();
  }

 private:
  explicit UnfinishedFile(std::string path) : path_(std::move(path)) {}
  const std::string path_;
  int fd_ = -1;
  bool owned_ = false;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const PackedFile>> PackedFile::Open(const std::string& path) {
  size_t file_bytes = 0;
  TANDEM_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path, &file_bytes));
  auto file = std::shared_ptr<PackedFile>(new PackedFile(path, fd));
  const absl::Status read = ReadLabel(fd, file_bytes, &file->label_, &file->sums_);
  if (!read.ok()) return absl::Status(read.code(), absl::StrCat(path, " ", read.message()));
  return std::shared_ptr<const PackedFile>(std::move(file));
}

PackedFile::~PackedFile() { close(fd_); }

absl::StatusOr<std::shared_ptr<const std::byte>> PackedFile::Map(PackedUnit::ForAll for_all) const {
  const auto bytes = static_cast<size_t>(label_.bytes);
  TANDEM_ASSIGN_OR_RETURN(const std::shared_ptr<void> pages, MapPages(fd_, path_, 0, bytes));
  // Advice only. Threads that come by its pages at the same time would make them small.
  madvise(pages.get(), bytes, MADV_HUGEPAGE);
  madvise(pages.get(), bytes, MADV_POPULATE_READ);
  const std::shared_ptr<const std::byte> memory(pages, static_cast<const std::byte*>(pages.get()));
  std::atomic<bool> sound = true;
  for_all(static_cast<int64_t>(sums_.size()), [&](int64_t i) {
    if (SumOf(memory.get(), label_.bytes, i) != sums_[static_cast<size_t>(i)]) sound = false;
  });
  if (!sound) return absl::DataLossError(absl::StrCat(path_, " is damaged: a sum is wrong"));
  return memory;
}

absl::StatusOr<bool> WritePackedFile(const std::string& path, const PackedLabel& label,
                                     const std::byte* memory, int64_t spare_bytes,
                                     const std::function<absl::Status()>& go_on) {
  TANDEM_ASSIGN_OR_RETURN(const auto file, UnfinishedFile::Take(path + ".new"));
  if (file == nullptr) return false;
  TANDEM_RETURN_IF_ERROR(file->CheckSpace(label.bytes, spare_bytes));
  std::vector<uint64_t> sums;
  for (int64_t i = 0; i < NumSums(label.bytes); ++i) {
    sums.push_back(SumOf(memory, label.bytes, i));
  }
  HugePageMaker huge_pages;
  for (int64_t done = 0; done < label.bytes; done += kWriteBytes) {
    if (done % kSyncBytes == 0) {
      if (done > 0) TANDEM_RETURN_IF_ERROR(file->Sync());
      TANDEM_RETURN_IF_ERROR(go_on());
    }
    const int64_t count = std::min(kWriteBytes, label.bytes - done);
    if (count == kWriteBytes) huge_pages.Make();
    TANDEM_RETURN_IF_ERROR(file->Append(memory + done, count));
  }
  const std::string text = Json{
      {"unit", label.unit},
      {"source", label.source},
      {"layout", label.layout},
      {"bytes", label.bytes},
      {"sums", sums}}.dump();
  Tail tail{{}, kVersion, text.size(), XXH3_64bits(text.data(), text.size())};
  std::memcpy(tail.magic, kMagic, sizeof(tail.magic));
  TANDEM_RETURN_IF_ERROR(file->Append(text.data(), static_cast<int64_t>(text.size())));
  TANDEM_RETURN_IF_ERROR(file->Append(&tail, sizeof(tail)));
  TANDEM_RETURN_IF_ERROR(file->Sync());
  TANDEM_RETURN_IF_ERROR(go_on());
  TANDEM_RETURN_IF_ERROR(file->Rename(path));
  return true;
}

}  // namespace tandem
