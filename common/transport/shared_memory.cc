#include "common/transport/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace tandem {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr size_t kMaxBytes = size_t{1} << 32;

absl::Status NoMemory(absl::string_view what) {
  return absl::UnavailableError(
      absl::StrCat("no shared memory: ", what, ": ", std::generic_category().message(errno)));
}

}  // namespace

absl::StatusOr<std::shared_ptr<SharedMemory>> SharedMemory::Map(Descriptor file, size_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) return NoMemory("mmap");
  return std::shared_ptr<SharedMemory>(
      new SharedMemory(std::move(file), static_cast<std::byte*>(data), bytes));
}

absl::StatusOr<std::shared_ptr<SharedMemory>> SharedMemory::Create(size_t bytes) {
  Descriptor file(memfd_create("tandem-expert-rows", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) return NoMemory("memfd_create");
  if (ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return NoMemory("ftruncate");
  if (fcntl(file.get(), F_ADD_SEALS, kSeals) != 0) return NoMemory("sealing");
  return Map(std::move(file), bytes);
}

absl::StatusOr<std::shared_ptr<SharedMemory>> SharedMemory::Open(Descriptor file) {
  const int seals = fcntl(file.get(), F_GET_SEALS);
  struct stat stat = {};
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(file.get(), &stat) != 0) {
    return absl::InvalidArgumentError("a file came that is no sealed memory");
  }
  if (stat.st_size <= 0 || static_cast<size_t>(stat.st_size) > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("shared memory of ", stat.st_size, " bytes is out of range"));
  }
  return Map(std::move(file), static_cast<size_t>(stat.st_size));
}

SharedMemory::~SharedMemory() { munmap(data_, bytes_); }

bool SharedMemory::Reserve(size_t begin, size_t end) const {
  int result = 0;
  do {
    result = fallocate(file_.get(), 0, static_cast<off_t>(begin), static_cast<off_t>(end - begin));
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

SharedBlocks::SharedBlocks(std::shared_ptr<const SharedMemory> memory)
    : state_(std::make_shared<State>()) {
  MutexLock lock(state_->mutex);
  state_->free.emplace(0, memory->bytes() / kAlign * kAlign);
  state_->memory = std::move(memory);
}

std::shared_ptr<std::byte> SharedBlocks::Take(size_t bytes) {
  State& state = *state_;
  if (bytes == 0 || bytes > state.memory->bytes()) return nullptr;
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  size_t begin = 0;
  {
    MutexLock lock(state.mutex);
    auto it = state.free.begin();
    while (it != state.free.end() && it->second - it->first < bytes) ++it;
    if (it == state.free.end()) return nullptr;
    begin = it->first;
    const size_t end = begin + bytes;
    if (end > state.reserved_end) {
      if (!state.memory->Reserve(state.reserved_end, end)) return nullptr;
      state.reserved_end = end;
    }
    if (it->second > end) state.free.emplace(end, it->second);
    state.free.erase(it);
    state.bytes_in_use += bytes;
  }
  return std::shared_ptr<std::byte>(
      state.memory->data() + begin,
      [shared = state_, begin, end = begin + bytes](std::byte*) { shared->GiveBack(begin, end); });
}

void SharedBlocks::State::GiveBack(size_t begin, size_t end) {
  MutexLock lock(mutex);
  bytes_in_use -= end - begin;
  auto next = free.upper_bound(begin);
  if (next != free.end() && next->first == end) {
    end = next->second;
    next = free.erase(next);
  }
  if (next != free.begin()) {
    const auto previous = std::prev(next);
    if (previous->second == begin) {
      previous->second = end;
      return;
    }
  }
  free.emplace(begin, end);
}

size_t SharedBlocks::bytes_in_use() const {
  MutexLock lock(state_->mutex);
  return state_->bytes_in_use;
}

}  // namespace tandem
