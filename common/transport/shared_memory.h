// Memory that two processes of one machine share, and the blocks that one of them deals out.
#ifndef TANDEM_COMMON_TRANSPORT_SHARED_MEMORY_H_
#define TANDEM_COMMON_TRANSPORT_SHARED_MEMORY_H_

#include <cstddef>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "common/transport/local_socket.h"

namespace tandem {

// A mapped memfd of a fixed size, sealed so that nobody can change it: no access can go beyond its
// end (SIGBUS), whatever the other process does. Its contents may change at any time, so what
// decides about memory is copied before it is checked. Pages are taken when they are first used.
class SharedMemory {
 public:
  // UNAVAILABLE: the system gives none.
  static absl::StatusOr<std::shared_ptr<SharedMemory>> Create(size_t bytes);
  // Maps what another process has created and passed. INVALID_ARGUMENT if it is not sealed so, or
  // too large.
  static absl::StatusOr<std::shared_ptr<SharedMemory>> Open(Descriptor file);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  int fd() const { return file_.get(); }
  // Takes the pages of [begin, end) from the system: without it, a first use of one that is not to
  // be had ends the process. False if they are not to be had.
  bool Reserve(size_t begin, size_t end) const;

 private:
  SharedMemory(Descriptor file, std::byte* data, size_t bytes)
      : file_(std::move(file)), data_(data), bytes_(bytes) {}
  static absl::StatusOr<std::shared_ptr<SharedMemory>> Map(Descriptor file, size_t bytes);

  const Descriptor file_;
  std::byte* const data_;
  const size_t bytes_;
};

// Deals blocks out of shared memory, each at the lowest place where it fits, so that no more pages
// are in use than were once needed. What it knows lies in private memory. Thread-safe; blocks may
// outlive it.
class SharedBlocks {
 public:
  static constexpr size_t kAlign = 64;

  explicit SharedBlocks(std::shared_ptr<const SharedMemory> memory);
  // A block with any contents, aligned to kAlign; given back when its last owner goes. Null if
  // there is no room.
  std::shared_ptr<std::byte> Take(size_t bytes);
  size_t bytes_in_use() const;

 private:
  struct State {
    std::shared_ptr<const SharedMemory> memory;
    Mutex mutex;
    std::map<size_t, size_t> free ABSL_GUARDED_BY(mutex);  // begin to end; never adjacent
    size_t bytes_in_use ABSL_GUARDED_BY(mutex) = 0;
    size_t reserved_end ABSL_GUARDED_BY(mutex) = 0;  // pages below are there

    void GiveBack(size_t begin, size_t end);
  };
  const std::shared_ptr<State> state_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_SHARED_MEMORY_H_
