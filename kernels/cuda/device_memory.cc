#include "kernels/cuda/device_memory.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "kernels/device_access.h"

namespace tandem::kernels::cuda {
namespace {

// Reached when the stream comes to it. The stream's thread may come after the event is gone.
class StreamEvent final : public DeviceEvent {
 public:
  // What the stream calls, once.
  std::function<void()> Reacher() const {
    return [state = state_] { state->Reach(); };
  }

  ~StreamEvent() override {
    MutexLock lock(state_->mutex);
    state_->then = nullptr;
    state_->changed.Wait(
        lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex) { return !state_->calling; });
  }

  bool Reached() const override {
    MutexLock lock(state_->mutex);
    return state_->reached;
  }
  void Wait() const override {
    MutexLock lock(state_->mutex);
    state_->changed.Wait(
        lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex) { return state_->reached; });
  }
  void WhenReached(std::function<void()> reached) override {
    {
      MutexLock lock(state_->mutex);
      if (!state_->reached) {
        state_->then = std::move(reached);
        return;
      }
    }
    reached();
  }

 private:
  struct State {
    void Reach() {
      MutexLock lock(mutex);
      reached = true;
      changed.NotifyAll();
      if (then == nullptr) return;
      const std::function<void()> call = std::exchange(then, nullptr);
      calling = true;
      lock.Unlock();
      call();
      lock.Lock();
      calling = false;
      changed.NotifyAll();
    }

    Mutex mutex;
    CondVar changed;
    bool reached ABSL_GUARDED_BY(mutex) = false;
    bool calling ABSL_GUARDED_BY(mutex) = false;
    std::function<void()> then ABSL_GUARDED_BY(mutex);
  };

  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

size_t RowBytes(const DeviceTensor& tensor) {
  return static_cast<size_t>(tensor.width()) * DtypeBytes(tensor.dtype);
}

// A tensor's rows as runs of bytes that lie side by side.
struct Runs {
  size_t count, bytes, stride;

  explicit Runs(const DeviceTensor& tensor)
      : count(static_cast<size_t>(tensor.rows())),
        bytes(RowBytes(tensor)),
        stride(tensor.row_stride_bytes()) {
    if (count == 1 || stride == bytes) {
      bytes *= std::exchange(count, 1);
      stride = bytes;
    }
  }
  bool empty() const { return bytes == 0; }
};

}  // namespace

class DeviceMemory::Part final : public Buffer {
 public:
  Part(DeviceMemory* memory, size_t offset, size_t bytes)
      : Buffer(memory->memory_ + offset, bytes), memory_(*memory), offset_(offset) {}
  ~Part() override { memory_.GiveBack(*this); }

  size_t offset() const { return offset_; }

 private:
  DeviceMemory& memory_;
  const size_t offset_;
};

absl::StatusOr<std::unique_ptr<DeviceMemory>> DeviceMemory::Open(size_t bytes) {
  constexpr size_t kShareForOthers = 16;
  TANDEM_ASSIGN_OR_RETURN(const Gpu gpu, OpenGpu());
  if (bytes == 0) bytes = gpu.free_bytes - gpu.free_bytes / kShareForOthers;
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<PinnedMemory> pinned, PinnedMemory::Allocate());
  if (bytes > gpu.free_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        gpu.name, " has ", gpu.free_bytes, " bytes of memory free, but ", bytes, " are wanted"));
  }
  std::byte* const memory = AllocateDeviceMemory(bytes);
  if (memory == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(gpu.name, " does not give ", bytes, " bytes of its memory, although ",
                     gpu.free_bytes, " were free: another process may be starting on it"));
  }
  return std::unique_ptr<DeviceMemory>(new DeviceMemory(gpu, memory, bytes, std::move(pinned)));
}

DeviceMemory::DeviceMemory(Gpu gpu, std::byte* memory, size_t bytes,
                           std::unique_ptr<PinnedMemory> pinned)
    : gpu_(std::move(gpu)),
      memory_(memory),
      bytes_(bytes),
      pinned_(std::move(pinned)),
      stream_(CreateStream()),
      arena_(bytes) {
  MarkUnused(stream_, memory_, bytes_);
  watch_ = std::thread([this] { Watch(); });
}

DeviceMemory::~DeviceMemory() {
  {
    MutexLock lock(mutex_);
    ends_ = true;
  }
  ended_.NotifyAll();
  watch_.join();
  DestroyStream(stream_);
  FreeDeviceMemory(memory_, bytes_);
}

void DeviceMemory::Watch() {
  constexpr auto kInterval = std::chrono::milliseconds(100);
  MutexLock lock(mutex_);
  while (!ended_.WaitFor(lock, kInterval,
                         [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ends_; })) {
    lock.Unlock();
    RequireNoError(stream_);
    lock.Lock();
  }
}

absl::StatusOr<std::unique_ptr<Buffer>> DeviceMemory::Take(size_t bytes) {
  MutexLock lock(mutex_);
  const std::optional<size_t> offset = arena_.Take(bytes);
  if (!offset.has_value()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        gpu_.name, " does not have ", bytes, " bytes side by side for the cuda backend: of ",
        arena_.bytes(), " bytes, ", arena_.free_bytes(), " are free, ", arena_.largest_bytes(),
        " at most side by side"));
  }
  MarkInUse(stream_, memory_ + *offset, bytes);
  return std::make_unique<Part>(this, *offset, bytes);
}

absl::StatusOr<std::unique_ptr<Buffer>> DeviceMemory::TakeZeroed(size_t bytes) {
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Buffer> buffer, Take(bytes));
  const DeviceTensor all = buffer->Tensor(Dtype::kU8, {static_cast<int64_t>(bytes)});
  if (bytes > 0) FillZero(stream_, DeviceAccess::Address(all), bytes);
  return buffer;
}

void DeviceMemory::GiveBack(const Part& part) {
  MutexLock lock(mutex_);
  MarkUnused(stream_, memory_ + part.offset(), part.bytes());
  arena_.GiveBack(part.offset(), part.bytes());
}

// Calls copy(device memory, dense host memory, run bytes, runs) for pieces of the tensor that
// pinned memory holds at once, of whole runs or of a part of one.
template <typename CopyPiece>
void DeviceMemory::ForEachPiece(const DeviceTensor& tensor, std::byte* host,
                                const CopyPiece& copy) {
  const Runs runs(tensor);
  if (runs.empty()) return;
  const size_t piece_bytes = std::min(runs.bytes, PinnedMemory::kMostBytes);
  const size_t piece_runs = std::max<size_t>(1, PinnedMemory::kMostBytes / runs.bytes);
  for (size_t run = 0; run < runs.count; run += piece_runs) {
    const size_t count = std::min(piece_runs, runs.count - run);
    for (size_t begin = 0; begin < runs.bytes; begin += piece_bytes) {
      const size_t bytes = std::min(piece_bytes, runs.bytes - begin);
      std::byte* const pinned = pinned_->Take(count * bytes);
      std::byte* const device = DeviceAccess::Address(tensor) + run * runs.stride + begin;
      copy(pinned, host, count * bytes,
           RowsToCopy{device, runs.stride, pinned, bytes, bytes, count});
      host += count * bytes;
    }
  }
}

void DeviceMemory::Write(const void* from, const DeviceTensor& to) {
  auto* const host = const_cast<std::byte*>(static_cast<const std::byte*>(from));
  ForEachPiece(to, host,
               [this](std::byte* pinned, const std::byte* source, size_t bytes,
                      const RowsToCopy& to_device) {
                 std::memcpy(pinned, source, bytes);
                 CopyRows(stream_, to_device);
                 CallAfter(stream_, [this, pinned, bytes] { pinned_->GiveBack(pinned, bytes); });
               });
}

std::unique_ptr<DeviceEvent> DeviceMemory::Read(const DeviceTensor& from, void* to) {
  auto event = std::make_unique<StreamEvent>();
  ForEachPiece(from, static_cast<std::byte*>(to),
               [this](std::byte* pinned, std::byte* target, size_t bytes, const RowsToCopy& c) {
                 CopyRows(stream_, {pinned, c.from_stride, c.to, c.to_stride, c.row_bytes, c.rows});
                 CallAfter(stream_, [this, pinned, target, bytes] {
                   std::memcpy(target, pinned, bytes);
                   pinned_->GiveBack(pinned, bytes);
                 });
               });
  CallAfter(stream_, event->Reacher());
  return event;
}

void DeviceMemory::Copy(const DeviceTensor& from, const DeviceTensor& to) {
  const Runs source(from), target(to);
  if (source.empty()) return;
  const bool whole = source.count == 1 && target.count == 1;
  const size_t bytes = whole ? source.bytes : RowBytes(from);
  CopyRows(stream_, {DeviceAccess::Address(to), whole ? bytes : to.row_stride_bytes(),
                     DeviceAccess::Address(from), whole ? bytes : from.row_stride_bytes(), bytes,
                     whole ? 1 : static_cast<size_t>(from.rows())});
}

}  // namespace tandem::kernels::cuda
