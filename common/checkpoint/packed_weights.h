// A folder in which packed weights are kept for the next start, a file per unit (packed_file.h):
// mapped then, instead of read from the checkpoint and packed again.
//
// Nothing here makes a start fail: a file that is not of the unit, its source and layout, or not as
// it was written, counts as none and is replaced; where nothing can be written, it is said once.
// But a file that the disk cannot read, or that is cut short while it is mapped, ends the process,
// with a word (mapped_pages.h).
#ifndef TANDEM_COMMON_CHECKPOINT_PACKED_WEIGHTS_H_
#define TANDEM_COMMON_CHECKPOINT_PACKED_WEIGHTS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "common/checkpoint/huge_page_mover.h"
#include "common/checkpoint/packed_file.h"
#include "common/counters.h"
#include "common/mutex.h"
#include "common/packed_unit.h"

namespace tandem {

// Thread-safe.
class PackedWeights {
 public:
  struct Options {
    std::string dir;     // made, with the folder that it is in, when there is something to write
    std::string source;  // names the content that the units are made of
    // Whether `source` still is what is there; asked before a file gets its name. Null: it is.
    std::function<absl::Status()> check_source;
    // Keep returns when the file is written, and that another process writes it is an error,
    // UNAVAILABLE. Otherwise a thread writes, while the weights are in
    // use; what it has not written when this is destroyed will be packed again.
    bool wait = false;
    int64_t spare_bytes = int64_t{1} << 30;  // of the disk, left to others
  };

  explicit PackedWeights(Options options);
  ~PackedWeights();
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;

  // Of a name that can be a file's. Must not outlive this.
  std::unique_ptr<PackedUnit> Unit(const std::string& name);

  // Whether Unit would find it kept, but for its layout and bytes.
  bool Has(const std::string& name) const;

  const std::string& dir() const { return options_.dir; }
  // The first error in writing, after which nothing is written any more.
  absl::Status status() const;
  // packed_mapped, packed_mapped_bytes: of units that were found; packed_moved_bytes: of these,
  // moved into huge pages; packed_waiting_bytes: that wait to be looked at for it; packed_refused:
  // files that were there and not taken; packed_written: files; packed_failed: 1 after an error.
  CounterSnapshot Counters() const;

 private:
  class KeptUnit;
  struct Job {
    PackedLabel label;
    bool damaged;                           // what lies there: its label says nothing
    std::weak_ptr<const std::byte> memory;  // gone when it is no longer in use
  };

  std::string PathOf(const std::string& unit) const;
  void Refuse(const absl::Status& why);
  void Keep(Job job);
  absl::Status Write(const Job& job);
  void WriteOrFail(const Job& job);
  void RunWrites();

  const Options options_;
  HugePageMover mover_;
  std::atomic<int64_t> mapped_ = 0;
  std::atomic<int64_t> mapped_bytes_ = 0;
  std::atomic<int64_t> refused_ = 0;
  std::atomic<int64_t> written_ = 0;
  std::atomic<bool> ending_ = false;

  mutable Mutex mutex_;
  CondVar wake_;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mutex_);
  std::thread writes_ ABSL_GUARDED_BY(mutex_);  // from the first job on
};

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_PACKED_WEIGHTS_H_
