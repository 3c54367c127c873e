#include "common/checkpoint/mapped_pages.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/machine.h"
#include "common/mutex.h"

namespace tandem {
namespace {

// A mapping as the signal handler sees it. Never freed: used again once its mapping is gone.
struct Range {
  std::atomic<uintptr_t> begin = 0;  // 0: free
  std::atomic<uintptr_t> end = 0;
  std::atomic<const char*> path = nullptr;  // lives as long as the process
  Range* next = nullptr;
};

std::atomic<Range*> ranges = nullptr;  // in no order; grows at its head

Mutex& ChangingRanges() {
  static Mutex* const mutex = new Mutex;
  return *mutex;
}

// Requires the lock of ChangingRanges.
const char* Intern(const std::string& path) {
  static auto* const paths = new std::set<std::string>;
  return paths->insert(path).first->c_str();
}

Range* AddRange(const void* begin, size_t bytes, const std::string& path) {
  MutexLock lock(ChangingRanges());
  Range* range = ranges;
  while (range != nullptr && range->begin != 0) range = range->next;
  if (range == nullptr) {
    range = new Range;
    range->next = ranges;
    ranges = range;
  }
  range->path = Intern(path);
  range->end = reinterpret_cast<uintptr_t>(begin) + bytes;
  range->begin = reinterpret_cast<uintptr_t>(begin);
  return range;
}

void Say(const char* text) {
  size_t left = std::strlen(text);
  while (left > 0) {
    const ssize_t written = write(STDERR_FILENO, text, left);
    if (written <= 0) return;
    text += written;
    left -= static_cast<size_t>(written);
  }
}

// Only what a signal handler may do.
void OnSigbus(int signal_number, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Range* range = ranges; range != nullptr; range = range->next) {
    const uintptr_t begin = range->begin;
    if (begin == 0 || address < begin || address >= range->end) continue;
    Say("error: ");
    Say(range->path);
    Say(" has become shorter, or cannot be read, while it was in use: the process ends\n");
    _exit(1);
  }
  signal(signal_number, SIG_DFL);  // not ours: the instruction runs again and ends the process
}

void TakeSigbus() {
  struct sigaction current {};
  if (sigaction(SIGBUS, nullptr, &current) != 0 || current.sa_handler != SIG_DFL) return;
  struct sigaction ours {};
  ours.sa_sigaction = OnSigbus;
  ours.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &ours, nullptr);
}

// mmap, with the file's boundaries of huge pages at those of memory if that many bytes could fill
// one.
void* MapAligned(int descriptor, uint64_t offset, size_t bytes) {
  const auto map = [&](void* at, int flags) {
    return mmap(at, bytes, PROT_READ, MAP_PRIVATE | flags, descriptor, static_cast<off_t>(offset));
  };
  if (bytes < kHugePageBytes) return map(nullptr, 0);
  void* const place =
      mmap(nullptr, bytes + kHugePageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return place;
  auto* const begin = static_cast<std::byte*>(place);
  const size_t before = (offset - reinterpret_cast<uintptr_t>(place)) % kHugePageBytes;
  void* const pages = map(begin + before, MAP_FIXED);
  if (pages == MAP_FAILED) {
    munmap(place, bytes + kHugePageBytes);
    return pages;
  }
  // What the mapping does not need of its place: whole pages before and behind it.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t end = before + (bytes + page - 1) / page * page;
  if (before > 0) munmap(begin, before);
  if (end < bytes + kHugePageBytes) munmap(begin + end, bytes + kHugePageBytes - end);
  return pages;
}

}  // namespace

absl::StatusOr<std::shared_ptr<void>> MapPages(int descriptor, const std::string& path,
                                               uint64_t offset, size_t bytes) {
  static std::once_flag taken;
  std::call_once(taken, TakeSigbus);
  void* const pages = MapAligned(descriptor, offset, bytes);
  if (pages == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", path, ": ", std::generic_category().message(errno)));
  }
  Range* const range = AddRange(pages, bytes, path);
  return std::shared_ptr<void>(pages, [range, bytes](void* mapped) {
    range->begin = 0;
    munmap(mapped, bytes);
  });
}

}  // namespace tandem
