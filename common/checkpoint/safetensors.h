// The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes.
// Source: huggingface/safetensors; every check of its reference reader is made.
#ifndef TANDEM_COMMON_CHECKPOINT_SAFETENSORS_H_
#define TANDEM_COMMON_CHECKPOINT_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

struct SafetensorsEntry {
  std::string dtype;           // as the file names it: "BF16"
  std::vector<int64_t> shape;  // empty: a scalar
  uint64_t begin = 0;          // of its bytes in the file
  uint64_t end = 0;
};

// Parses a header that stands before `data_bytes` bytes of data. Offsets in the result count from
// the first byte of data. A tensor of a dtype that safetensors does not know is kept as it is.
// Errors name the tensor, not the file.
//   INVALID_ARGUMENT  broken JSON, duplicate names, a range that does not fit shape and dtype,
//                     ranges that overlap, leave holes or do not cover the data
absl::StatusOr<std::map<std::string, SafetensorsEntry>> ParseSafetensorsHeader(
    absl::string_view json, uint64_t data_bytes);

// One opened file, its header read and checked. Thread-safe.
class SafetensorsFile {
 public:
  // The limit of the reference reader.
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;

  // Reads the header only. Errors begin with the path: NOT_FOUND where the file cannot be opened,
  // and those of ParseSafetensorsHeader.
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  // Its size and when it was written to, in ns since 1970, at Open.
  uint64_t bytes() const { return bytes_; }
  int64_t modified_ns() const { return modified_ns_; }
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }

  // Maps the pages of [begin, end) read-only and privately; the pointer is to `begin`, unaligned as
  // it may be, and owns the mapping, which may outlive the file object.
  //   DATA_LOSS           the file has become shorter
  //   RESOURCE_EXHAUSTED  the system refuses another mapping
  absl::StatusOr<std::shared_ptr<const void>> Map(uint64_t begin, uint64_t end) const;
  // Copies [begin, begin + bytes) to `to`. DATA_LOSS if the file has become shorter.
  absl::Status Read(uint64_t begin, size_t bytes, void* to) const;
  // Whether reading [begin, end) would wait for no disk or network, by some of its pages: false
  // also where the system does not say.
  bool IsInMemory(uint64_t begin, uint64_t end) const;
  // DATA_LOSS if the file has been written to, or has become shorter, since Open. One that was
  // replaced by another of its name has not: the old one is still read.
  absl::Status CheckUnchanged() const;

 private:
  SafetensorsFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  const int fd_;
  uint64_t bytes_ = 0;
  int64_t modified_ns_ = 0;
  std::map<std::string, SafetensorsEntry> entries_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_SAFETENSORS_H_
