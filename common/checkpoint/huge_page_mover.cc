#include "common/checkpoint/huge_page_mover.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/machine.h"

namespace tandem {
namespace {

constexpr size_t kMostAtOnce = 4 * kHugePageBytes;  // in memory twice while they are moved
constexpr size_t kPageBytes = 4096;
constexpr int64_t kSpareShare = 8;  // of the memory that the process may use
constexpr std::chrono::minutes kBetweenTries{1};

#ifndef MADV_COLLAPSE
constexpr int MADV_COLLAPSE = 25;  // since Linux 6.1
#endif

struct Range {
  std::byte* begin = nullptr;
  std::byte* end = nullptr;
};

// The last boundary of a huge page before `address`, or that is it; the first one from there on.
std::byte* RoundDown(std::byte* address) {
  return address - reinterpret_cast<uintptr_t>(address) % kHugePageBytes;
}
std::byte* RoundUp(std::byte* address) { return RoundDown(address + kHugePageBytes - 1); }

// Whether the system's administrator, and whoever began the process, let it have huge pages.
bool SystemGivesHugePages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");  // "always [madvise] never"
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos &&
         prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0;
}

// The ioctl PAGEMAP_SCAN of /proc/self/pagemap, since Linux 6.7, whose <linux/fs.h> may be older.
struct ScannedRegion {
  uint64_t start, end, categories;
};
struct ScanArguments {
  uint64_t size = sizeof(ScanArguments);
  uint64_t flags = 0;
  uint64_t start, end, walk_end;
  uint64_t regions, num_regions, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);
constexpr uint64_t kPageIsHuge = 1 << 6;

// Of [begin, end), at boundaries, the first stretch that lies in small pages and could fill huge
// ones; all of it where the system does not tell; empty, at `end`, if there is none.
Range NextInSmallPages(int pagemap, std::byte* begin, std::byte* end) {
  while (begin < end) {
    ScannedRegion region{};
    ScanArguments scan{};
    scan.start = reinterpret_cast<uintptr_t>(begin);
    scan.end = reinterpret_cast<uintptr_t>(end);
    scan.regions = reinterpret_cast<uintptr_t>(&region);
    scan.num_regions = 1;
    scan.category_inverted = scan.category_mask = scan.return_mask = kPageIsHuge;
    const int found = pagemap < 0 ? -1 : ioctl(pagemap, kPagemapScan, &scan);
    if (found < 0) return {begin, end};
    if (found == 0) break;
    auto* const first = reinterpret_cast<std::byte*>(region.start);
    auto* const last = reinterpret_cast<std::byte*>(region.end);
    const Range whole = {RoundUp(first), RoundDown(last)};
    if (whole.begin < whole.end) return whole;
    begin = last;
  }
  return {end, end};
}

// Anonymous memory, of whole huge pages and at the boundary of one.
class AnonymousMemory {
 public:
  explicit AnonymousMemory(size_t bytes) : bytes_(bytes) {
    const size_t size = bytes + kHugePageBytes;
    void* const mapped =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return;
    auto* const first = static_cast<std::byte*>(mapped);
    begin_ = RoundUp(first);
    if (begin_ > first) munmap(first, static_cast<size_t>(begin_ - first));
    munmap(begin_ + bytes, static_cast<size_t>(first + size - (begin_ + bytes)));
  }
  ~AnonymousMemory() {
    if (begin_ != nullptr) munmap(begin_, bytes_);
  }
  AnonymousMemory(const AnonymousMemory&) = delete;
  AnonymousMemory& operator=(const AnonymousMemory&) = delete;

  std::byte* begin() const { return begin_; }  // null: the system has none

  // Whether it is in huge pages from now on.
  bool TakeHugePages() {
    madvise(begin_, bytes_, MADV_HUGEPAGE);
    for (size_t at = 0; at < bytes_; at += kHugePageBytes) {
      *reinterpret_cast<volatile std::byte*>(begin_ + at) = std::byte{0};
    }
    // Makes them where the loop came by small pages, and says if it cannot. EINVAL: before Linux
    // 6.1, which says nothing.
    return madvise(begin_, bytes_, MADV_COLLAPSE) == 0 || errno == EINVAL;
  }

  // Takes the place of what is mapped at `at`, read-only from then on.
  bool MoveTo(std::byte* at) {
    if (mprotect(begin_, bytes_, PROT_READ) != 0) return false;
    if (mremap(begin_, bytes_, bytes_, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED) {
      // Out of memory in the middle of it, the system may have taken the place away already.
      std::array<unsigned char, kMostAtOnce / kPageBytes> resident;
      TANDEM_CHECK(mincore(at, bytes_, resident.data()) == 0);
      return false;
    }
    begin_ = nullptr;
    return true;
  }

 private:
  const size_t bytes_;
  std::byte* begin_ = nullptr;
};

// The system replaces pages under its lock: who reads one meanwhile finds the old one, or waits for
// the new.
bool MoveRange(const Range& range) {
  const auto bytes = static_cast<size_t>(range.end - range.begin);
  AnonymousMemory copy(bytes);
  if (copy.begin() == nullptr || !copy.TakeHugePages()) return false;
  std::memcpy(copy.begin(), range.begin, bytes);
  return copy.MoveTo(range.begin);
}

}  // namespace

HugePageMover::HugePageMover() : enabled_(SystemGivesHugePages()) {}

HugePageMover::~HugePageMover() {
  std::thread thread;
  {
    MutexLock lock(mutex_);
    ending_ = true;
    thread = std::move(thread_);
  }
  wake_.NotifyAll();
  if (thread.joinable()) thread.join();
}

void HugePageMover::Move(std::weak_ptr<const std::byte> memory, int64_t bytes) {
  if (!enabled_) return;
  {
    MutexLock lock(mutex_);
    waiting_bytes_ += bytes;
    jobs_.push_back({.memory = std::move(memory), .bytes = bytes});
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
  }
  wake_.NotifyAll();
}

void HugePageMover::Run() {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  const int64_t spare_bytes = ReadMachineLimits().memory_bytes / kSpareShare;
  const auto wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ending_ || !jobs_.empty();
  };
  const sched_param unused{};
  const bool stays_idle = sched_setscheduler(0, SCHED_IDLE, &unused) == 0;  // of this thread
  MutexLock lock(mutex_);
  for (wake_.Wait(lock, wanted); !ending_; wake_.Wait(lock, wanted)) {
    Job job = jobs_.front();
    lock.Unlock();
    const bool moved = !stays_idle || MoveAll(&job, pagemap, spare_bytes);
    lock.Lock();
    if (moved) {
      jobs_.pop_front();
      waiting_bytes_ -= job.bytes;
    } else {
      jobs_.front().done = job.done;
      wake_.WaitFor(lock, kBetweenTries, [this] { return ending_.load(); });
    }
  }
  if (pagemap >= 0) close(pagemap);
}

// Whether nothing is left of the job; otherwise it goes on later from what is done.
bool HugePageMover::MoveAll(Job* job, int pagemap, int64_t spare_bytes) {
  const std::shared_ptr<const std::byte> memory = job->memory.lock();
  if (memory == nullptr) return true;
  TANDEM_CHECK(reinterpret_cast<uintptr_t>(memory.get()) % kHugePageBytes == 0);
  auto* const begin = const_cast<std::byte*>(memory.get());
  std::byte* const end = begin + job->bytes / kHugePageBytes * kHugePageBytes;
  Range range = NextInSmallPages(pagemap, begin + job->done, end);
  while (range.begin < end && !ending_) {
    range.end = std::min(range.end, range.begin + kMostAtOnce);
    const int64_t bytes = range.end - range.begin;
    if (ReadAvailableMemory() < spare_bytes + bytes) return false;
    if (!MoveRange(range)) return false;
    moved_bytes_ += bytes;
    job->done = range.end - begin;
    range = NextInSmallPages(pagemap, range.end, end);
  }
  return true;
}

}  // namespace tandem
