#include "kernels/cuda/emulation/block.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/config.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#endif

namespace tandem::kernels::cuda::emulation {
namespace {

#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

// A stack and where its code goes on; RunKernel's own has no stack here.
struct Context {
  ucontext_t state{};
  std::unique_ptr<std::byte[]> stack;
  // What AddressSanitizer knows of it.
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
};

// AddressSanitizer wants to know which stack is in use. `ends`: `from` is never gone on with.
void Switch(Context& from, Context& to, [[maybe_unused]] bool ends = false) {
#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  TANDEM_CHECK(swapcontext(&from.state, &to.state) == 0);
#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// A line at which threads wait for each other, and for whom: 0: for the whole block.
struct Meeting {
  const char* file = nullptr;
  int line = 0;
  uint32_t mask = 0;

  bool operator==(const Meeting& other) const {
    return line == other.line && mask == other.mask && std::string_view(file) == other.file;
  }
};

struct Thread {
  Context context;
  Index3 index;
  bool ended = false;
  std::optional<Meeting> waits;
  uint64_t given = 0;  // to Exchange
  LaneValues taken{};  // from it

  bool ready() const { return !ended && !waits.has_value(); }
};

class BlockRun {
 public:
  BlockRun(const LaunchShape& shape, absl::FunctionRef<void()> kernel)
      : shape_(shape),
        kernel_(kernel),
        shared_(new std::byte[std::max<size_t>(shape.shared_bytes, 1)]),
        threads_(shape.block.x * shape.block.y * shape.block.z) {}

  absl::Status Run(const Index3& block, std::mt19937_64& random);

  // Of the thread that runs.
  void WaitFor(Meeting meeting) {
    Thread& thread = *current_;
    thread.waits = meeting;
    Switch(thread.context, scheduler_);
  }
  Thread& current() { return *current_; }

  const LaunchShape& shape() const { return shape_; }
  const Index3& block() const { return block_; }
  std::byte* shared() { return shared_.get(); }

 private:
  static void Enter();
  void Begin(Thread* thread, unsigned i);
  bool LetThroughBarrier();
  bool LetThroughWarps();
  absl::Status Stuck() const;

  const LaunchShape& shape_;
  const absl::FunctionRef<void()> kernel_;
  const std::unique_ptr<std::byte[]> shared_;
  std::vector<Thread> threads_;
  Context scheduler_;
  Index3 block_;
  Thread* current_ = nullptr;
};

thread_local BlockRun* running = nullptr;

// The first code of a fiber.
void BlockRun::Enter() {
  BlockRun& run = *running;
#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, &run.scheduler_.bottom, &run.scheduler_.bytes);
#endif
  run.kernel_();
  Thread& thread = run.current();
  thread.ended = true;
  Switch(thread.context, run.scheduler_, /*ends=*/true);
}

void BlockRun::Begin(Thread* thread, unsigned i) {
  const Extent3& extent = shape_.block;
  thread->index = {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y};
  thread->ended = false;
  thread->waits.reset();
  Context& context = thread->context;
  if (context.stack == nullptr) context.stack.reset(new std::byte[kStackBytes]);
  context.fake_stack = nullptr;
  context.bottom = context.stack.get();
  context.bytes = kStackBytes;
  TANDEM_CHECK(getcontext(&context.state) == 0);
  context.state.uc_stack.ss_sp = context.stack.get();
  context.state.uc_stack.ss_size = kStackBytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, &BlockRun::Enter, 0);
}

absl::Status BlockRun::Run(const Index3& block, std::mt19937_64& random) {
  block_ = block;
  std::memset(shared_.get(), 0xFF, shape_.shared_bytes);
  for (unsigned i = 0; i < threads_.size(); ++i) Begin(&threads_[i], i);
  std::vector<Thread*> order(threads_.size());
  std::transform(threads_.begin(), threads_.end(), order.begin(), [](Thread& t) { return &t; });
  do {
    std::shuffle(order.begin(), order.end(), random);
    for (Thread* const thread : order) {
      if (!thread->ready()) continue;
      current_ = thread;
      Switch(scheduler_, thread->context);
    }
    if (std::all_of(order.begin(), order.end(), [](const Thread* t) { return t->ended; })) {
      return absl::OkStatus();
    }
  } while (LetThroughWarps() || LetThroughBarrier());
  return Stuck();
}

// If all threads of the block are at one barrier.
bool BlockRun::LetThroughBarrier() {
  const std::optional<Meeting>& meeting = threads_.front().waits;
  if (!meeting.has_value() || meeting->mask != 0) return false;
  if (!std::all_of(threads_.begin(), threads_.end(),
                   [&](const Thread& t) { return !t.ended && t.waits == meeting; })) {
    return false;
  }
  for (Thread& thread : threads_) thread.waits.reset();
  return true;
}

// All lanes that have met all that they wait for. Whether there were any.
bool BlockRun::LetThroughWarps() {
  bool any = false;
  for (size_t first = 0; first < threads_.size(); first += kWarpLanes) {
    const size_t lanes = std::min<size_t>(kWarpLanes, threads_.size() - first);
    for (size_t i = 0; i < lanes; ++i) {
      if (!threads_[first + i].waits.has_value()) continue;
      const Meeting meeting = *threads_[first + i].waits;
      if (meeting.mask == 0) continue;
      LaneValues values{};
      bool all_met = true;
      for (size_t lane = 0; lane < kWarpLanes; ++lane) {
        if ((meeting.mask >> lane & 1) == 0) continue;
        all_met = all_met && lane < lanes && !threads_[first + lane].ended &&
                  threads_[first + lane].waits == meeting;
        if (all_met) values[lane] = threads_[first + lane].given;
      }
      if (!all_met) continue;
      any = true;
      for (size_t lane = 0; lane < lanes; ++lane) {
        if ((meeting.mask >> lane & 1) == 0) continue;
        threads_[first + lane].taken = values;
        threads_[first + lane].waits.reset();
      }
    }
  }
  return any;
}

absl::Status BlockRun::Stuck() const {
  const auto count = [&](auto condition) {
    return std::count_if(threads_.begin(), threads_.end(), condition);
  };
  const auto waiting = std::find_if(threads_.begin(), threads_.end(),
                                    [](const Thread& t) { return t.waits.has_value(); });
  const Meeting& meeting = *waiting->waits;
  const auto here = count([&](const Thread& t) { return t.waits == meeting; });
  const auto ended = count([](const Thread& t) { return t.ended; });
  return absl::InternalError(absl::StrCat(
      "block (", block_.x, ", ", block_.y, ", ", block_.z, "): ", here, " of ", threads_.size(),
      " threads wait at ", meeting.file, ":", meeting.line,
      meeting.mask == 0 ? "" : absl::StrCat(" for lanes ", absl::Hex(meeting.mask)), ", ", ended,
      " have ended, and ", count([](const Thread& t) { return t.waits.has_value(); }) - here,
      " wait elsewhere"));
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
  for (unsigned z = 0; z < shape.grid.z; ++z) {
    for (unsigned y = 0; y < shape.grid.y; ++y) {
      for (unsigned x = 0; x < shape.grid.x; ++x) blocks.push_back({x, y, z});
    }
  }
  std::mt19937_64 random(seed);
  std::shuffle(blocks.begin(), blocks.end(), random);
  TANDEM_CHECK(running == nullptr);
  BlockRun run(shape, kernel);
  running = &run;
  absl::Status status;
  for (size_t i = 0; i < blocks.size() && status.ok(); ++i) status = run.Run(blocks[i], random);
  running = nullptr;
  return status;
}

const Index3& ThreadIndex() { return running->current().index; }
const Index3& BlockIndex() { return running->block(); }
const Extent3& BlockExtent() { return running->shape().block; }
const Extent3& GridExtent() { return running->shape().grid; }
std::byte* SharedMemory() { return running->shared(); }

void SyncThreads(const char* file, int line) { running->WaitFor({file, line, 0}); }

LaneValues Exchange(uint32_t mask, uint64_t value, const char* file, int line) {
  Thread& thread = running->current();
  const Extent3& extent = running->shape().block;
  const unsigned i = thread.index.x + extent.x * (thread.index.y + extent.y * thread.index.z);
  TANDEM_CHECK((mask >> (i % kWarpLanes) & 1) != 0);
  thread.given = value;
  running->WaitFor({file, line, mask});
  return thread.taken;
}

}  // namespace tandem::kernels::cuda::emulation
