#include "common/checkpoint/checkpoint.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/checkpoint/convert.h"
#include "common/checkpoint/read_file.h"
#include "common/checkpoint/tensor_table.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxIndexBytes = 64 << 20;

std::string ShapeName(const TensorShape& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Tensor name -> file name, from the index; file names must stay in the folder.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxIndexBytes));
  // What an index nests deeper than the map's values is dropped unread, so that memory is bounded.
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth <= 2; };
  const Json json = Json::parse(text, shallow, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no object \"weight_map\""));
  }
  std::map<std::string, std::string> names;
  for (const auto& [tensor, value] : json["weight_map"].items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": the file of ", tensor, " is not a name"));
    }
    const std::string name = value.get<std::string>();
    if (name.empty() || name == ".." || name == "." || absl::StrContains(name, '/') ||
        absl::StrContains(name, '\0')) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": \"", name, "\" is not the name of a file beside it"));
    }
    names[tensor] = name;
  }
  return names;
}

// Where an expert's projection lies if a layer's experts are one tensor: gate_up_proj of
// [experts, 2 * intermediate, hidden], gate before up, and down_proj of [experts, hidden,
// intermediate].
struct FusedExpert {
  std::string name;  // of the tensor
  int64_t expert = 0;
  int64_t part = 0;   // 1: the second of the two halves
  int64_t parts = 1;  // of an expert's rows
};

// For the name of one expert's projection; nothing for other tensors.
std::optional<FusedExpert> FindFused(const std::string& name) {
  static constexpr char kExperts[] = ".mlp.experts.";
  const size_t at = name.find(kExperts);
  if (at == std::string::npos) return std::nullopt;
  const std::string prefix = name.substr(0, at + sizeof(kExperts) - 1);
  const std::vector<std::string> rest = absl::StrSplit(name.substr(prefix.size()), '.');
  FusedExpert fused;
  if (rest.size() != 3 || !absl::SimpleAtoi(rest[0], &fused.expert)) return std::nullopt;
  if (rest[1] == "down_proj") {
    fused.name = prefix + "down_proj";
  } else {
    fused.name = prefix + "gate_up_proj";
    fused.part = rest[1] == "up_proj" ? 1 : 0;
    fused.parts = 2;
  }
  return fused;
}

// The share of a fused tensor that is one expert's projection, of `shape`.
absl::StatusOr<SafetensorsEntry> SliceFused(const SafetensorsEntry& whole, const FusedExpert& fused,
                                            const TensorShape& shape, int64_t num_experts) {
  const TensorShape expected = {num_experts, fused.parts * shape[0], shape[1]};
  if (whole.shape != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected shape ", ShapeName(expected), ", found ", ShapeName(whole.shape)));
  }
  const uint64_t bytes =
      (whole.end - whole.begin) / static_cast<uint64_t>(num_experts * fused.parts);
  SafetensorsEntry entry{whole.dtype, shape, 0, 0};
  entry.begin =
      whole.begin + bytes * static_cast<uint64_t>(fused.expert * fused.parts + fused.part);
  entry.end = entry.begin + bytes;
  return entry;
}

// Finds the file that holds a tensor: the single one, or the one that the index names. Opens each
// when it is first asked for.
class Shards {
 public:
  static absl::StatusOr<Shards> Open(const std::string& dir, const ModelConfig& config) {
    Shards shards;
    shards.dir_ = dir;
    shards.index_ = dir + "/model.safetensors.index.json";
    const std::string single = dir + "/model.safetensors";
    // A link to nothing is to be named, not passed over.
    const auto is_there = [](const std::string& path) {
      std::error_code ignored;
      return std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
    };
    if (is_there(single)) {
      TANDEM_ASSIGN_OR_RETURN(shards.single_, SafetensorsFile::Open(single));
    }
    if (is_there(shards.index_)) {
      TANDEM_RETURN_IF_ERROR(shards.TakeIndex(config));
    } else if (shards.single_ == nullptr) {
      return absl::NotFoundError(
          absl::StrCat(dir, " holds neither model.safetensors nor model.safetensors.index.json"));
    }
    return shards;
  }

  // The file that should hold a tensor, by the index, or the single one.
  absl::StatusOr<std::shared_ptr<const SafetensorsFile>> FileOf(const std::string& tensor) {
    if (single_ != nullptr) return single_;
    const auto it = names_.find(tensor);
    if (it == names_.end()) {
      return absl::NotFoundError(absl::StrCat(index_, ": tensor ", tensor, " is missing"));
    }
    std::shared_ptr<const SafetensorsFile>& file = files_[it->second];
    if (file == nullptr) {
      absl::StatusOr<std::shared_ptr<const SafetensorsFile>> opened =
          SafetensorsFile::Open(absl::StrCat(dir_, "/", it->second));
      if (!opened.ok()) {
        return absl::Status(opened.status().code(),
                            absl::StrCat(opened.status().message(), " (the index places tensor ",
                                         tensor, " there)"));
      }
      file = *std::move(opened);
    }
    return file;
  }

  // What people should know of how the files fit together. After the last FileOf.
  std::vector<std::string> Warnings() const {
    std::vector<std::string> warnings = warnings_;
    for (const auto& [tensor, name] : names_) {
      for (const auto& [other, file] : files_) {
        if (other == name || file == nullptr || !file->entries().contains(tensor)) continue;
        warnings.push_back(absl::StrCat("tensor ", tensor, " is in ", name, " and in ", other,
                                        ": the former is used, as the index says"));
        return warnings;  // one is enough to know
      }
    }
    return warnings;
  }

 private:
  // A single file beside an index counts if it has all that is needed.
  absl::Status TakeIndex(const ModelConfig& config) {
    if (single_ != nullptr) {
      const absl::Status whole = ForEachNeededTensor(
          config, [&](const std::string& name, const TensorShape&) -> absl::Status {
            const auto& entries = single_->entries();
            if (entries.contains(name)) return absl::OkStatus();
            const std::optional<FusedExpert> fused = FindFused(name);
            if (fused.has_value() && entries.contains(fused->name)) return absl::OkStatus();
            return absl::NotFoundError(name);
          });
      if (whole.ok()) {
        warnings_.push_back(
            absl::StrCat(single_->path(), " is used, and the index beside it is not"));
        return absl::OkStatus();
      }
      warnings_.push_back(absl::StrCat(single_->path(), " lacks tensor ", whole.message(),
                                       ": the index beside it is used"));
      single_ = nullptr;
    }
    TANDEM_ASSIGN_OR_RETURN(names_, ReadIndex(index_));
    return absl::OkStatus();
  }

  std::string dir_;
  std::string index_;
  std::shared_ptr<const SafetensorsFile> single_;
  std::map<std::string, std::string> names_;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> files_;
  std::vector<std::string> warnings_;
};

absl::StatusOr<Dtype> WeightDtype(const SafetensorsEntry& entry) {
  if (entry.dtype == "BF16") return Dtype::kBF16;
  if (entry.dtype == "F16") return Dtype::kF16;
  if (entry.dtype == "F32") return Dtype::kF32;
  return absl::UnimplementedError(
      absl::StrCat("expected dtype BF16, F16 or F32, found ", entry.dtype));
}

// What Load makes of a stored dtype.
Dtype DtypeAs(WeightFormat format, Dtype stored) {
  if (format == WeightFormat::kBF16) return Dtype::kBF16;
  return stored == Dtype::kF16 && format == WeightFormat::kF32 ? Dtype::kF32 : stored;
}

TensorView ViewOf(const void* data, Dtype dtype, const std::vector<int64_t>& shape) {
  // Views serve for outputs too, hence are not const; weights are never written.
  void* memory = const_cast<void*>(data);
  if (shape.size() == 1) return TensorView(memory, dtype, {shape[0]});
  return TensorView(memory, dtype, {shape[0], shape[1]});
}

// Brings the pages of [data, data + bytes), bytes > 0, into memory: asks for all of them at once,
// then waits by reading one byte of each.
void TouchPages(std::byte* data, size_t bytes) {
  const auto page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::byte* first = data - reinterpret_cast<uintptr_t>(data) % page_bytes;
  madvise(first, static_cast<size_t>(data + bytes - first), MADV_WILLNEED);
  const volatile std::byte* read = data;
  for (size_t i = 0; i < bytes; i += page_bytes) (void)read[i];
  (void)read[bytes - 1];
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir,
                                                             const std::atomic<bool>* stop) {
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint(stop));
  TANDEM_ASSIGN_OR_RETURN(checkpoint->config_, LoadModelConfig(dir));
  const ModelConfig& config = checkpoint->config_;
  TANDEM_ASSIGN_OR_RETURN(Shards shards, Shards::Open(dir, config));
  // Where one tensor lies, of one file if `fused` is set.
  const auto find = [&](const std::string& name, const TensorShape& shape,
                        const std::optional<FusedExpert>& fused) -> absl::StatusOr<TensorLocation> {
    const std::string& stored = fused.has_value() ? fused->name : name;
    TANDEM_ASSIGN_OR_RETURN(const auto file, shards.FileOf(stored));
    const auto it = file->entries().find(stored);
    if (it == file->entries().end()) {
      return absl::NotFoundError(absl::StrCat(file->path(), ": tensor ", stored, " is missing"));
    }
    SafetensorsEntry entry = it->second;
    absl::Status status;
    if (fused.has_value()) {
      absl::StatusOr<SafetensorsEntry> slice = SliceFused(entry, *fused, shape, config.num_experts);
      status = slice.status();
      if (slice.ok()) entry = *std::move(slice);
    } else if (entry.shape != shape) {
      status = absl::InvalidArgumentError(
          absl::StrCat("expected shape ", ShapeName(shape), ", found ", ShapeName(entry.shape)));
    }
    if (status.ok()) status = WeightDtype(entry).status();
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat(file->path(), ": tensor ", stored, ": ", status.message()));
    }
    return TensorLocation{file, std::move(entry)};
  };
  // The visit ends at the first tensor that is missing: what a config claims costs no more than the
  // files hold.
  const auto locate = [&](const std::string& name, const TensorShape& shape) -> absl::Status {
    absl::StatusOr<TensorLocation> location = find(name, shape, std::nullopt);
    if (absl::IsNotFound(location.status())) {
      if (const std::optional<FusedExpert> fused = FindFused(name)) {
        absl::StatusOr<TensorLocation> slice = find(name, shape, fused);
        if (!absl::IsNotFound(slice.status())) location = std::move(slice);
      }
    }
    if (!location.ok()) return location.status();
    checkpoint->files_.insert(location->file);
    checkpoint->tensors_[name] = *std::move(location);
    return absl::OkStatus();
  };
  TANDEM_RETURN_IF_ERROR(ForEachNeededTensor(config, locate));
  checkpoint->warnings_ = shards.Warnings();
  return checkpoint;
}

uint64_t Checkpoint::num_parameters() const {
  uint64_t total = 0;
  for (const auto& [name, tensor] : tensors_) {
    uint64_t elements = 1;
    for (int64_t n : tensor.entry.shape) elements *= static_cast<uint64_t>(n);
    total += elements;
  }
  return total;
}

std::vector<std::shared_ptr<const SafetensorsFile>> Checkpoint::files() const {
  std::vector<std::shared_ptr<const SafetensorsFile>> files(files_.begin(), files_.end());
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return a->path() < b->path(); });
  return files;
}

void Checkpoint::KeepPacked(std::unique_ptr<PackedWeights> packed) {
  owned_packed_ = std::move(packed);
  packed_ = owned_packed_.get();
}

absl::Status Checkpoint::CheckUnchanged() const {
  for (const auto& file : files_) TANDEM_RETURN_IF_ERROR(file->CheckUnchanged());
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckStop() const {
  if (stop_ == nullptr || !*stop_) return absl::OkStatus();
  return absl::CancelledError("loading was stopped");
}

absl::StatusOr<TensorView> Checkpoint::Outline(const std::string& name, WeightFormat format) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", name));
  TANDEM_ASSIGN_OR_RETURN(const Dtype stored, WeightDtype(it->second.entry));
  return ViewOf(nullptr, DtypeAs(format, stored), it->second.entry.shape);
}

bool Checkpoint::IsInMemory(const std::string& name) const {
  const TensorLocation& tensor = tensors_.at(name);
  return tensor.file->IsInMemory(tensor.entry.begin, tensor.entry.end);
}

absl::StatusOr<OwnedTensor> Checkpoint::Load(const std::string& name, WeightFormat format) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", name));
  TANDEM_RETURN_IF_ERROR(CheckStop());
  const TensorLocation& tensor = it->second;
  TANDEM_ASSIGN_OR_RETURN(const Dtype stored, WeightDtype(tensor.entry));
  TANDEM_ASSIGN_OR_RETURN(const auto mapped,
                          tensor.file->Map(tensor.entry.begin, tensor.entry.end));
  ++mapped_tensors_;
  mapped_bytes_ += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
  const TensorView view = ViewOf(mapped.get(), stored, tensor.entry.shape);
  const Dtype wanted = DtypeAs(format, stored);
  if (made_up_seed_.has_value()) {
    if (stored == Dtype::kBF16 && wanted == Dtype::kBF16 && !IsInteger(format)) {
      return OwnedTensor{view, mapped, MakeUpTensor(*made_up_seed_, name)};
    }
    return absl::UnimplementedError(absl::StrCat("weights are made up in bf16 alone: not ", name));
  }
  if (wanted == stored) return OwnedTensor{view, mapped};
  const size_t copy_bytes = static_cast<size_t>(view.elements()) * DtypeBytes(wanted);
  const std::shared_ptr<void> copy(std::malloc(copy_bytes), std::free);
  if (copy == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory to convert tensor ", name));
  }
  const TensorView converted = ViewOf(copy.get(), wanted, tensor.entry.shape);
  // In pieces: an embedding table from a slow disk takes seconds.
  constexpr int64_t kPieceElements = 16 << 20;
  for (int64_t begin = 0; begin < view.elements(); begin += kPieceElements) {
    TANDEM_RETURN_IF_ERROR(CheckStop());
    const int64_t count = std::min(kPieceElements, view.elements() - begin);
    const auto piece = [&](const TensorView& of) {
      return TensorView(of.as<std::byte>() + begin * static_cast<int64_t>(DtypeBytes(of.dtype)),
                        of.dtype, {count});
    };
    ConvertElements(piece(view), piece(converted));
  }
  return OwnedTensor{converted, copy};
}

CheckpointLoader::CheckpointLoader(const Checkpoint* checkpoint, WeightFormat format,
                                   int64_t total_bytes, std::function<void(float)> progress)
    : checkpoint_(checkpoint),
      format_(format),
      total_bytes_(std::max<int64_t>(1, total_bytes)),
      progress_(std::move(progress)) {}

std::unique_ptr<PackedUnit> CheckpointLoader::Unit(const std::string& name) const {
  PackedWeights* const packed = checkpoint_->packed();
  return packed == nullptr ? nullptr : packed->Unit(name);
}

absl::StatusOr<OwnedTensor> CheckpointLoader::Load(const std::string& name,
                                                   const PackedUnit* unit) {
  TANDEM_ASSIGN_OR_RETURN(OwnedTensor weight, checkpoint_->Load(name, FormatOf(name, format_)));
  const SafetensorsEntry& entry = checkpoint_->tensors().at(name).entry;
  const auto file_bytes = static_cast<double>(entry.end - entry.begin);
  const size_t bytes = weight.view.bytes();
  const bool kept = (unit != nullptr && unit->is_kept()) || weight.made_up.has_value();
  // A large tensor reports several times: an embedding table alone can take seconds to read.
  constexpr size_t kReportBytes = 64 << 20;
  for (size_t begin = 0; begin < bytes; begin += kReportBytes) {
    TANDEM_RETURN_IF_ERROR(checkpoint_->CheckStop());
    const size_t end = std::min(bytes, begin + kReportBytes);
    if (!kept) TouchPages(weight.view.as<std::byte>() + begin, end - begin);
    const double share = static_cast<double>(end) / static_cast<double>(bytes);
    Report(static_cast<double>(done_bytes_) + share * file_bytes);
  }
  done_bytes_ += static_cast<int64_t>(entry.end - entry.begin);
  return weight;
}

void CheckpointLoader::Skip(const std::string& name) {
  const SafetensorsEntry& entry = checkpoint_->tensors().at(name).entry;
  done_bytes_ += static_cast<int64_t>(entry.end - entry.begin);
  Report(static_cast<double>(done_bytes_));
}

void CheckpointLoader::Report(double done_bytes) const {
  if (!progress_) return;
  progress_(static_cast<float>(std::min(1.0, done_bytes / static_cast<double>(total_bytes_))));
}

WeightFormat FormatOf(const std::string& name, WeightFormat format) {
  if (!IsInteger(format)) return format;
  const bool is_of_latents =
      absl::EndsWith(name, "kv_a_proj_with_mqa.weight") || absl::EndsWith(name, "kv_b_proj.weight");
  if (is_of_latents) return WeightFormat::kInt8;
  const bool is_matrix = absl::EndsWith(name, "_proj.weight") || name == "lm_head.weight";
  return is_matrix ? format : WeightFormat::kF32;
}

bool IsRoutedExpert(const std::string& name) { return absl::StrContains(name, ".mlp.experts."); }

int64_t TensorBytes(const Checkpoint& checkpoint,
                    const std::function<bool(const std::string&)>& wanted) {
  int64_t total = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (wanted(name)) total += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
  }
  return total;
}

}  // namespace tandem
