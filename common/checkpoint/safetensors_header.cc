#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint/safetensors.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

using Json = nlohmann::json;
using Entries = std::map<std::string, SafetensorsEntry>;

// Far above any real tensor's rank: a bound on the memory that a hostile header takes.
constexpr size_t kMaxRank = 64;

std::optional<uint64_t> BytesPerElement(const std::string& dtype) {
  static const auto* sizes = new std::map<std::string, uint64_t>{
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  const auto it = sizes->find(dtype);
  if (it == sizes->end()) return std::nullopt;
  return it->second;
}

// Takes the events of the JSON parser in the only order that is a header. Compared with a parsed
// document, it sees names that come twice, and memory stays within a few times the header's size
// whatever the header nests.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(uint64_t data_bytes) : data_bytes_(data_bytes) {}

  const absl::Status& status() const { return status_; }
  Entries& entries() { return entries_; }

  bool start_object(size_t) override {
    if (place_ == Place::kStart) return Enter(Place::kHeader);
    if (place_ != Place::kHeader) return Malformed();
    if (name_ == kMetadata) return Enter(Place::kMetadata);
    fields_.clear();
    numbers_.clear();
    return Enter(Place::kTensor);
  }

  bool key(std::string& key) override {
    if (place_ == Place::kHeader) {
      name_ = key;
      field_.clear();
      if (!names_.insert(key).second) {
        return Invalid(absl::StrCat("the header names \"", key, "\" twice"));
      }
    } else if (place_ == Place::kTensor) {
      field_ = key;
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        return Invalid(absl::StrCat("tensor ", name_, " has an unknown field \"", key, "\""));
      }
      if (!fields_.insert(key).second) {
        return Invalid(absl::StrCat("tensor ", name_, " has ", key, " twice"));
      }
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != "dtype") return Malformed();
    dtype_ = value;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || field_ == "dtype") return Malformed();
    numbers_[field_].clear();
    return Enter(Place::kNumbers);
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::kNumbers || numbers_[field_].size() == kMaxRank) return Malformed();
    numbers_[field_].push_back(value);
    return true;
  }

  bool end_array() override { return Enter(Place::kTensor); }

  bool end_object() override {
    if (place_ == Place::kHeader) return Enter(Place::kEnd);
    if (place_ == Place::kTensor) {
      status_ = AddEntry();
      if (!status_.ok()) return false;
    }
    return Enter(Place::kHeader);
  }

  bool null() override { return Malformed(); }
  bool boolean(bool) override { return Malformed(); }
  bool number_integer(int64_t) override { return Malformed(); }
  bool number_float(double, const std::string&) override { return Malformed(); }
  bool binary(Json::binary_t&) override { return Malformed(); }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return Invalid(absl::StrCat("the header is not valid JSON at its byte ", position));
  }

 private:
  static constexpr const char* kMetadata = "__metadata__";
  enum class Place { kStart, kHeader, kMetadata, kTensor, kNumbers, kEnd };

  bool Enter(Place place) {
    place_ = place;
    return true;
  }
  bool Invalid(const std::string& problem) {
    status_ = absl::InvalidArgumentError(problem);
    return false;
  }
  bool Malformed() {
    if (place_ == Place::kStart) return Invalid("the header is not a JSON object");
    if (name_ == kMetadata) return Invalid("__metadata__ is not a map of strings");
    return Invalid(absl::StrCat("tensor ", name_, ": ", field_.empty() ? "its entry" : field_,
                                " is malformed"));
  }

  // Checks one tensor's complete entry and keeps it.
  absl::Status AddEntry() {
    const auto invalid = [&](const auto&... words) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name_, ": ", words...));
    };
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (fields_.count(field) == 0) return invalid(field, " is missing");
    }
    const std::vector<uint64_t>& shape = numbers_["shape"];
    const std::vector<uint64_t>& range = numbers_["data_offsets"];
    // Of an unknown dtype, which matters only if the tensor is needed, the size is not known.
    const std::optional<uint64_t> size = BytesPerElement(dtype_);
    const std::string shape_text = absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
    SafetensorsEntry entry;
    entry.dtype = dtype_;
    uint64_t bytes = size.value_or(1);
    for (const uint64_t n : shape) {
      if (n > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          __builtin_mul_overflow(bytes, n, &bytes)) {
        return invalid("the size of shape ", shape_text, " overflows");
      }
      entry.shape.push_back(static_cast<int64_t>(n));
    }
    if (range.size() != 2) return invalid("data_offsets are not two numbers");
    entry.begin = range[0];
    entry.end = range[1];
    if (entry.begin > entry.end || entry.end > data_bytes_) {
      return invalid("data_offsets [", entry.begin, ", ", entry.end, "] lie outside of the ",
                     data_bytes_, " bytes of data in the file");
    }
    if (size.has_value() && entry.end - entry.begin != bytes) {
      return invalid("expected ", bytes, " bytes for ", dtype_, " ", shape_text, ", found ",
                     entry.end - entry.begin, " between its data_offsets");
    }
    entries_.emplace(name_, std::move(entry));
    return absl::OkStatus();
  }

  const uint64_t data_bytes_;
  absl::Status status_;
  Entries entries_;
  std::set<std::string> names_;
  Place place_ = Place::kStart;
  // The tensor that is being read, and its fields so far.
  std::string name_;
  std::string field_;
  std::set<std::string> fields_;
  std::string dtype_;
  std::map<std::string, std::vector<uint64_t>> numbers_;
};

absl::Status CheckCoverage(const Entries& entries, uint64_t data_bytes) {
  std::vector<Entries::const_pointer> order;
  for (const auto& item : entries) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t next = 0;
  for (const auto* item : order) {
    const auto& [name, entry] = *item;
    if (entry.begin != next) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, " begins at byte ", entry.begin,
                       entry.begin < next ? ", but overlaps the one that ends at "
                                          : ", but leaves a hole that begins at ",
                       next));
    }
    next = entry.end;
  }
  if (next != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensors cover ", next, " bytes, but the file holds ", data_bytes, " bytes of data"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::map<std::string, SafetensorsEntry>> ParseSafetensorsHeader(
    absl::string_view json, uint64_t data_bytes) {
  if (json.empty() || json[0] != '{') {
    return absl::InvalidArgumentError("the header does not begin with {");
  }
  // The JSON parser would take a NUL for the end of its input.
  if (json.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError("the header holds a NUL byte");
  }
  HeaderReader reader(data_bytes);
  if (!Json::sax_parse(json.begin(), json.end(), &reader)) return reader.status();
  TANDEM_RETURN_IF_ERROR(CheckCoverage(reader.entries(), data_bytes));
  return std::move(reader.entries());
}

}  // namespace tandem
