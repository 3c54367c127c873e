#include "kernels/cuda/emulation/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/config.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace tandem::kernels::cuda::emulation {
namespace {

// Not boost::context::fiber, which ends a fiber that is dropped by an exception through the kernel.
using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kGuardBytes = 64 << 10;  // below each stack: whole pages of any machine

// Where code goes on that has passed on its turn.
struct Context {
  fcontext_t goes_on = nullptr;
  // What AddressSanitizer knows of its stack.
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
};

// A context with a stack. Below the stack is memory that ends the process when it is touched.
class Fiber : public Context {
 public:
  Fiber() {
    memory_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    TANDEM_CHECK(memory_ != MAP_FAILED);
    std::byte* const stack = static_cast<std::byte*>(memory_) + kGuardBytes;
    TANDEM_CHECK(mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) == 0);
    bottom = stack;
    bytes = kStackBytes;
  }
  ~Fiber() {
#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
    // What the frames of a dropped fiber have poisoned.
    ASAN_UNPOISON_MEMORY_REGION(bottom, bytes);
#endif
    TANDEM_CHECK(munmap(memory_, kGuardBytes + kStackBytes) == 0);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Its next turn is the first of `code`.
  void Begin(void (*code)(transfer_t)) {
    goes_on = make_fcontext(static_cast<std::byte*>(memory_) + kGuardBytes + kStackBytes,
                            kStackBytes, code);
    fake_stack = nullptr;
#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
    // What the frames have poisoned in which the fiber passed on its last turn.
    ASAN_UNPOISON_MEMORY_REGION(bottom, bytes);
#endif
  }

 private:
  void* memory_;
};

// What a context does first in each turn: notes where `passed`, which it has the turn from, goes
// on.
void Arrive(const transfer_t& passed, [[maybe_unused]] void* own_fake_stack) {
  auto& last = *static_cast<Context*>(passed.data);
  last.goes_on = passed.fctx;
#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(own_fake_stack, &last.bottom, &last.bytes);
#endif
}

// Returns when `from` has its turn again. `ends`: never.
void Switch(Context& from, const Context& to, bool ends) {
#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  const transfer_t passed = jump_fcontext(to.goes_on, &from);
  TANDEM_CHECK(!ends);  // at the end of its code Boost.Context would exit, with 0
  Arrive(passed, from.fake_stack);
}

// Numbers drawn from a seed: splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  template <typename T>
  void Shuffle(std::vector<T>* items) {
    for (size_t left = items->size(); left > 1; --left) {
      std::swap((*items)[left - 1], (*items)[Below(left)]);
    }
  }
  // `bound` < 2^32.
  size_t Below(uint64_t bound) {
    uint64_t bits = state_ += 0x9E3779B97F4A7C15;
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB;
    return (bits >> 32) * bound >> 32;
  }

 private:
  uint64_t state_;
};

// A line at which threads wait for each other, and for whom: 0: for the whole block.
struct Meeting {
  const char* file = nullptr;
  int line = 0;
  uint32_t mask = 0;

  bool operator==(const Meeting& other) const {
    return line == other.line && mask == other.mask &&
           (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

// To shared memory, not done yet.
struct Copy {
  std::byte* to;
  const std::byte* from;
  size_t bytes;
};
using CopyGroup = std::vector<Copy>;

struct Thread {
  Index3 index;
  Meeting waits;           // or of line 0, where there is none
  Fiber* fiber = nullptr;  // once it has begun
  std::deque<CopyGroup> copies;
  CopyGroup uncommitted_copies;

  bool waiting() const { return waits.line != 0; }
};

// Whether all lanes that `meeting` is for are at it, of those that there are.
bool AllMet(std::span<const Thread> lanes, const Meeting& meeting) {
  for (size_t lane = 0; lane < kWarpLanes; ++lane) {
    if ((meeting.mask >> lane & 1) == 0) continue;
    if (lane >= lanes.size() || !(lanes[lane].waits == meeting)) return false;
  }
  return true;
}

struct Warp {
  LaneValues given{};  // to Exchange
  LaneValues taken{};  // from it
};

// Kept between launches, at most kMostThreads for each thread that launches.
thread_local std::deque<Fiber> fibers;

class BlockRun {
 public:
  BlockRun(const LaunchShape& shape, absl::FunctionRef<void()> kernel);

  absl::Status Run(const Index3& block, Random& random);

  // Of the thread that runs.
  void WaitFor(const Meeting& meeting) {
    current_->waits = meeting;
    PassTurn(*current_->fiber, /*ends=*/false);
  }
  const LaneValues& Exchange(uint64_t value, const Meeting& meeting);
  Thread& current() { return *current_; }
  unsigned current_number() const { return static_cast<unsigned>(current_ - threads_.data()); }

  const LaunchShape& shape() const { return shape_; }
  const Index3& block() const { return block_; }
  std::byte* shared() { return shared_.get(); }
  uint64_t SharedAddress(const void* address, size_t alignment) const;

 private:
  static void Enter(transfer_t passed);
  void PassTurn(Context& from, bool ends);
  Fiber& NextFiber();
  bool LetThroughBarrier();
  void LetThroughWarps(Random& random);
  absl::Status Stuck() const;

  const LaunchShape& shape_;
  const absl::FunctionRef<void()> kernel_;
  const std::unique_ptr<std::byte[]> shared_;
  std::deque<Fiber>& fibers_ = fibers;
  size_t fibers_in_use_ = 0;  // the first ones
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Context scheduler_;
  Index3 block_;
  size_t ended_ = 0;
  std::vector<uint16_t> turns_;  // the threads that have a turn in this round, in their order
  size_t next_turn_ = 0;
  Thread* current_ = nullptr;
};

thread_local BlockRun* running = nullptr;

BlockRun::BlockRun(const LaunchShape& shape, absl::FunctionRef<void()> kernel)
    : shape_(shape),
      kernel_(kernel),
      shared_(new std::byte[std::max<size_t>(shape.shared_bytes, 1)]) {
  const Extent3& extent = shape.block;
  threads_.reserve(size_t{extent.x} * extent.y * extent.z);
  for (unsigned z = 0; z < extent.z; ++z) {
    for (unsigned y = 0; y < extent.y; ++y) {
      for (unsigned x = 0; x < extent.x; ++x) threads_.emplace_back().index = {x, y, z};
    }
  }
  warps_.resize((threads_.size() + kWarpLanes - 1) / kWarpLanes);
}

const LaneValues& BlockRun::Exchange(uint64_t value, const Meeting& meeting) {
  const unsigned number = current_number();
  TANDEM_CHECK((meeting.mask >> number % kWarpLanes & 1) != 0);
  Warp& warp = warps_[number / kWarpLanes];
  warp.given[number % kWarpLanes] = value;
  WaitFor(meeting);
  return warp.taken;
}

uint64_t BlockRun::SharedAddress(const void* address, size_t alignment) const {
  const std::ptrdiff_t at = static_cast<const std::byte*>(address) - shared_.get();
  TANDEM_CHECK(at >= 0 && static_cast<size_t>(at) < shape_.shared_bytes);
  TANDEM_CHECK(static_cast<size_t>(at) % alignment == 0);
  return static_cast<uint64_t>(at);
}

// The code of a fiber: a thread, and while threads end without ever having waited, the next one.
void BlockRun::Enter(transfer_t passed) {
  Arrive(passed, nullptr);
  BlockRun& run = *running;
  Fiber& own = *run.current_->fiber;
  while (true) {
    run.kernel_();
    ++run.ended_;
    if (run.next_turn_ == run.turns_.size()) break;
    Thread& next = run.threads_[run.turns_[run.next_turn_]];
    if (next.fiber != nullptr) break;
    ++run.next_turn_;
    next.fiber = &own;
    run.current_ = &next;
  }
  run.PassTurn(own, /*ends=*/true);
}

// To the next thread of this round, or to the scheduler after the last.
void BlockRun::PassTurn(Context& from, bool ends) {
  if (next_turn_ == turns_.size()) return Switch(from, scheduler_, ends);
  current_ = &threads_[turns_[next_turn_++]];
  if (current_->fiber == nullptr) current_->fiber = &NextFiber();
  if (next_turn_ < turns_.size()) {
    // Its stack has left the nearest cache meanwhile.
    const Fiber* const fiber = threads_[turns_[next_turn_]].fiber;
    if (fiber != nullptr) __builtin_prefetch(fiber->goes_on);
  }
  Switch(from, *current_->fiber, ends);
}

Fiber& BlockRun::NextFiber() {
  if (fibers_in_use_ == fibers_.size()) fibers_.emplace_back();
  Fiber& fiber = fibers_[fibers_in_use_++];
  fiber.Begin(&BlockRun::Enter);
  return fiber;
}

absl::Status BlockRun::Run(const Index3& block, Random& random) {
  block_ = block;
  std::memset(shared_.get(), 0xFF, shape_.shared_bytes);
  for (Thread& thread : threads_) {
    thread.fiber = nullptr;
    thread.copies.clear();
    thread.uncommitted_copies.clear();
  }
  fibers_in_use_ = 0;
  ended_ = 0;
  turns_.resize(threads_.size());
  std::iota(turns_.begin(), turns_.end(), 0);
  while (true) {
    random.Shuffle(&turns_);
    next_turn_ = 0;
    PassTurn(scheduler_, /*ends=*/false);
    if (ended_ == threads_.size()) return absl::OkStatus();
    turns_.clear();
    if (!LetThroughBarrier()) LetThroughWarps(random);
    if (turns_.empty()) return Stuck();
  }
}

// If all threads of the block are at one barrier.
bool BlockRun::LetThroughBarrier() {
  const Meeting meeting = threads_.front().waits;
  if (!threads_.front().waiting() || meeting.mask != 0) return false;
  if (!std::all_of(threads_.begin(), threads_.end(),
                   [&](const Thread& t) { return t.waits == meeting; })) {
    return false;
  }
  for (Thread& thread : threads_) thread.waits = {};
  turns_.resize(threads_.size());
  std::iota(turns_.begin(), turns_.end(), 0);
  return true;
}

// Lanes that have met all that they wait for; of some warps now, of others later, since on a GPU
// warps that do not wait for each other may be far apart.
void BlockRun::LetThroughWarps(Random& random) {
  bool may_wait = false;  // another has been let through
  const size_t first_warp = random.Below(warps_.size());
  for (size_t i = 0; i < warps_.size(); ++i) {
    const size_t first = (first_warp + i) % warps_.size() * kWarpLanes;
    const std::span lanes =
        std::span(threads_).subspan(first, std::min<size_t>(kWarpLanes, threads_.size() - first));
    bool any = false;
    for (const Thread& thread : lanes) {
      const Meeting meeting = thread.waits;
      if (meeting.mask == 0 || !AllMet(lanes, meeting)) continue;
      if (!any && may_wait && random.Below(2) == 0) break;
      any = may_wait = true;
      for (size_t lane = 0; lane < lanes.size(); ++lane) {
        if ((meeting.mask >> lane & 1) == 0) continue;
        lanes[lane].waits = {};
        turns_.push_back(static_cast<uint16_t>(first + lane));
      }
    }
    // Those let through the last time have had their turn, and so are done with their values.
    Warp& warp = warps_[first / kWarpLanes];
    if (any) warp.taken = warp.given;
  }
}

// All threads that have not ended wait.
absl::Status BlockRun::Stuck() const {
  const Meeting meeting = std::find_if(threads_.begin(), threads_.end(), [](const Thread& t) {
                            return t.waiting();
                          })->waits;
  const size_t here = std::count_if(threads_.begin(), threads_.end(),
                                    [&](const Thread& t) { return t.waits == meeting; });
  return absl::InternalError(absl::StrCat(
      "block (", block_.x, ", ", block_.y, ", ", block_.z, "): ", here, " of ", threads_.size(),
      " threads wait at ", meeting.file, ":", meeting.line,
      meeting.mask == 0 ? "" : absl::StrCat(" for lanes ", absl::Hex(meeting.mask)), ", ", ended_,
      " have ended, and ", threads_.size() - ended_ - here, " wait elsewhere"));
}

}  // namespace

absl::Status RunKernel(const LaunchShape& shape, uint64_t seed, absl::FunctionRef<void()> kernel) {
  constexpr unsigned kMostBlocks = 65535, kMostThreadsByZ = 64;
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  const Extent3& grid = shape.grid;
  if (threads == 0 || threads > kMostThreads || shape.block.z > kMostThreadsByZ) {
    return absl::InvalidArgumentError(absl::StrCat("a block of ", threads, " threads"));
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > kMostBlocks || grid.z > kMostBlocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("a grid of ", grid.x, " by ", grid.y, " by ", grid.z, " blocks"));
  }
  if (shape.shared_bytes > kMostSharedBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a block with ", shape.shared_bytes, " bytes of shared memory"));
  }
  std::vector<Index3> blocks;
  blocks.reserve(size_t{grid.x} * grid.y * grid.z);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
    }
  }
  Random random(seed);
  random.Shuffle(&blocks);
  TANDEM_CHECK(running == nullptr);
  BlockRun run(shape, kernel);
  running = &run;
  absl::Status status;
  for (size_t i = 0; i < blocks.size() && status.ok(); ++i) status = run.Run(blocks[i], random);
  running = nullptr;
  if (!status.ok()) fibers.clear();  // those that wait are dropped
  return status;
}

const Index3& ThreadIndex() { return running->current().index; }
const Index3& BlockIndex() { return running->block(); }
const Extent3& BlockExtent() { return running->shape().block; }
const Extent3& GridExtent() { return running->shape().grid; }
std::byte* SharedMemory() { return running->shared(); }

void SyncThreads(const char* file, int line) { running->WaitFor({file, line, 0}); }

const LaneValues& Exchange(uint32_t mask, uint64_t value, const char* file, int line) {
  return running->Exchange(value, {file, line, mask});
}

uint64_t SharedAddress(const void* address, size_t alignment) {
  return running->SharedAddress(address, alignment);
}

void StartCopy(void* to, const void* from, size_t bytes) {
  TANDEM_CHECK(reinterpret_cast<uintptr_t>(from) % bytes == 0);
  std::byte* const target = SharedMemory() + SharedAddress(to, bytes);
  std::memset(target, 0xFF, bytes);
  running->current().uncommitted_copies.push_back(
      {target, static_cast<const std::byte*>(from), bytes});
}
void CommitCopies() {
  Thread& thread = running->current();
  thread.copies.push_back(std::exchange(thread.uncommitted_copies, {}));
}
void WaitForCopies(size_t left) {
  std::deque<CopyGroup>& groups = running->current().copies;
  for (; groups.size() > left; groups.pop_front()) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

unsigned LaneIndex() { return running->current_number() % kWarpLanes; }

}  // namespace tandem::kernels::cuda::emulation
