// The seam between a backend, which packs weights in an order of its own, and whoever keeps what it
// has packed for the next start.
#ifndef TANDEM_COMMON_PACKED_UNIT_H_
#define TANDEM_COMMON_PACKED_UNIT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"

namespace tandem {

// How bytes that are packed together lie.
struct PackedLayout {
  // Says everything that their meaning depends on: the order of one format's panels, shapes.
  std::string name;
  int64_t bytes = 0;  // 0: nothing is packed
};

// Packed bytes in memory, which stays while it is owned.
struct PackedBytes {
  PackedLayout layout;
  std::shared_ptr<const std::byte> memory;
};

// What is made of the tensors that are loaded together: a linear map's, or one expert's. Its bytes
// mean something to the backend alone, which names their layout: two layouts of one name and length
// are one. Used by one thread at a time.
class PackedUnit {
 public:
  // Calls fn(i) for all i < count, from any threads, and returns when all have returned.
  using ForAll = absl::FunctionRef<void(int64_t count, absl::FunctionRef<void(int64_t i)> fn)>;

  virtual ~PackedUnit() = default;
  // Whether something is kept, which Find may yet refuse: if not, the tensors will be read.
  virtual bool is_kept() const = 0;
  // The `bytes` that were kept in this layout, read and found to be what was written, at a multiple
  // of the page size. Null: there are none, or none that can be trusted.
  virtual std::shared_ptr<const std::byte> Find(const std::string& layout, int64_t bytes,
                                                ForAll for_all) = 0;
  // Keeps `bytes` at `memory`, which change no more. That it fails is no error of whoever packs.
  virtual void Keep(const std::string& layout, std::shared_ptr<const std::byte> memory,
                    int64_t bytes) = 0;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_PACKED_UNIT_H_
