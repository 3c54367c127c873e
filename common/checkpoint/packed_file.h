// A file of packed weights: what is loaded together, in the layout of whoever packed it.
//
//   the bytes, from the file's beginning, so that huge pages can hold them
//   JSON: {"unit", "source", "layout", "bytes", "sums"}; a sum is XXH3-64 of 256 KiB of the bytes
//   32 bytes, little-endian: "TNDMPACK", the version (1), the JSON's length, its XXH3-64
#ifndef TANDEM_COMMON_CHECKPOINT_PACKED_FILE_H_
#define TANDEM_COMMON_CHECKPOINT_PACKED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/packed_unit.h"

namespace tandem {

// What a file says of itself.
struct PackedLabel {
  std::string unit;    // names the tensors
  std::string source;  // names the content that they are made of
  std::string layout;  // names the order of the bytes
  int64_t bytes = 0;

  bool operator==(const PackedLabel&) const = default;
};

// One opened file, complete by its length and with a sound label. Thread-safe.
class PackedFile {
 public:
  // Reads the label only.
  //   NOT_FOUND  there is none
  //   DATA_LOSS  it is another kind of file or version, or not whole
  static absl::StatusOr<std::shared_ptr<const PackedFile>> Open(const std::string& path);
  ~PackedFile();
  PackedFile(const PackedFile&) = delete;
  PackedFile& operator=(const PackedFile&) = delete;

  const PackedLabel& label() const { return label_; }
  // Maps the bytes, in huge pages where the file's pages are such, reads all of them and checks
  // their sums. The memory outlives this.
  //   DATA_LOSS           a sum is wrong
  //   RESOURCE_EXHAUSTED  the system refuses another mapping
  absl::StatusOr<std::shared_ptr<const std::byte>> Map(PackedUnit::ForAll for_all) const;

 private:
  PackedFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  const int fd_;
  PackedLabel label_;
  std::vector<uint64_t> sums_;
};

// Writes a file under another name (path + ".new"), brings it to the disk and renames it, so that
// whoever finds one finds all of it. False: another process is about to do so, by a lock (flock) on
// the unfinished file, and nothing was done. One that a process has left unfinished is taken over.
// Asks `go_on` every few megabytes and before it renames; ends with its error. After an error
// nothing is left.
//   RESOURCE_EXHAUSTED   the disk would have less than `spare_bytes` left
//   FAILED_PRECONDITION  the system refuses to write; says why
absl::StatusOr<bool> WritePackedFile(const std::string& path, const PackedLabel& label,
                                     const std::byte* memory, int64_t spare_bytes,
                                     const std::function<absl::Status()>& go_on);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_PACKED_FILE_H_
