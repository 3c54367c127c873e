#include "common/checkpoint/checkpoint.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
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

// Finds the file that holds a tensor: the single one, or the one that the index names. Opens each
// when it is first asked for.
class Shards {
 public:
  // Where both are there, the single file counts, as in transformers.
  static absl::StatusOr<Shards> Open(const std::string& dir) {
    Shards shards;
    shards.dir_ = dir;
    shards.index_ = dir + "/model.safetensors.index.json";
    const std::string single = dir + "/model.safetensors";
    std::error_code ignored;
    if (std::filesystem::exists(single, ignored)) {
      TANDEM_ASSIGN_OR_RETURN(shards.single_, SafetensorsFile::Open(single));
    } else if (std::filesystem::exists(shards.index_, ignored)) {
      TANDEM_ASSIGN_OR_RETURN(shards.names_, ReadIndex(shards.index_));
    } else {
      return absl::NotFoundError(
          absl::StrCat(dir, " holds neither model.safetensors nor model.safetensors.index.json"));
    }
    return shards;
  }

  absl::StatusOr<std::shared_ptr<const SafetensorsFile>> FileOf(const std::string& tensor) {
    if (single_ != nullptr) return single_;
    const auto it = names_.find(tensor);
    if (it == names_.end()) {
      return absl::NotFoundError(absl::StrCat(index_, ": tensor ", tensor, " is missing"));
    }
    std::shared_ptr<const SafetensorsFile>& file = files_[it->second];
    if (file == nullptr) {
      TANDEM_ASSIGN_OR_RETURN(file, SafetensorsFile::Open(absl::StrCat(dir_, "/", it->second)));
    }
    return file;
  }

 private:
  std::string dir_;
  std::string index_;
  std::shared_ptr<const SafetensorsFile> single_;
  std::map<std::string, std::string> names_;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> files_;
};

absl::StatusOr<Dtype> WeightDtype(const SafetensorsEntry& entry) {
  if (entry.dtype == "BF16") return Dtype::kBF16;
  if (entry.dtype == "F16") return Dtype::kF16;
  if (entry.dtype == "F32") return Dtype::kF32;
  return absl::UnimplementedError(
      absl::StrCat("expected dtype BF16, F16 or F32, found ", entry.dtype));
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

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir) {
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint);
  TANDEM_ASSIGN_OR_RETURN(checkpoint->config_, LoadModelConfig(dir));
  TANDEM_ASSIGN_OR_RETURN(Shards shards, Shards::Open(dir));
  // The visit ends at the first tensor that is missing: what a config claims costs no more than the
  // files hold.
  const auto locate = [&](const std::string& name, const TensorShape& shape) -> absl::Status {
    TANDEM_ASSIGN_OR_RETURN(const auto file, shards.FileOf(name));
    const auto entry = file->entries().find(name);
    if (entry == file->entries().end()) {
      return absl::NotFoundError(absl::StrCat(file->path(), ": tensor ", name, " is missing"));
    }
    if (entry->second.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat(file->path(), ": tensor ", name,
                                                     ": expected shape ", ShapeName(shape),
                                                     ", found ", ShapeName(entry->second.shape)));
    }
    if (const auto dtype = WeightDtype(entry->second); !dtype.ok()) {
      return absl::Status(dtype.status().code(), absl::StrCat(file->path(), ": tensor ", name, ": ",
                                                              dtype.status().message()));
    }
    checkpoint->tensors_[name] = {file, entry->second};
    return absl::OkStatus();
  };
  TANDEM_RETURN_IF_ERROR(ForEachNeededTensor(checkpoint->config_, locate));
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

absl::StatusOr<OwnedTensor> Checkpoint::Load(const std::string& name, WeightFormat format) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", name));
  const TensorLocation& tensor = it->second;
  TANDEM_ASSIGN_OR_RETURN(const Dtype stored, WeightDtype(tensor.entry));
  TANDEM_ASSIGN_OR_RETURN(const auto mapped,
                          tensor.file->Map(tensor.entry.begin, tensor.entry.end));
  ++mapped_tensors_;
  mapped_bytes_ += static_cast<int64_t>(tensor.entry.end - tensor.entry.begin);
  const TensorView view = ViewOf(mapped.get(), stored, tensor.entry.shape);
  const Dtype wanted = format == WeightFormat::kBF16 ? Dtype::kBF16
                       : stored == Dtype::kF16       ? Dtype::kF32
                                                     : stored;
  if (wanted == stored) return OwnedTensor{view, mapped};
  const size_t copy_bytes = static_cast<size_t>(view.elements()) * DtypeBytes(wanted);
  const std::shared_ptr<void> copy(std::malloc(copy_bytes), std::free);
  if (copy == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory to convert tensor ", name));
  }
  const TensorView converted = ViewOf(copy.get(), wanted, tensor.entry.shape);
  ConvertElements(view, converted);
  return OwnedTensor{converted, copy};
}

CheckpointLoader::CheckpointLoader(const Checkpoint* checkpoint, WeightFormat format,
                                   int64_t total_bytes, std::function<void(float)> progress)
    : checkpoint_(checkpoint),
      format_(format),
      total_bytes_(std::max<int64_t>(1, total_bytes)),
      progress_(std::move(progress)) {}

absl::StatusOr<OwnedTensor> CheckpointLoader::Load(const std::string& name) {
  TANDEM_ASSIGN_OR_RETURN(OwnedTensor weight, checkpoint_->Load(name, format_));
  const SafetensorsEntry& entry = checkpoint_->tensors().at(name).entry;
  const auto file_bytes = static_cast<double>(entry.end - entry.begin);
  const size_t bytes = weight.view.bytes();
  // A large tensor reports several times: an embedding table alone can take seconds to read.
  constexpr size_t kReportBytes = 64 << 20;
  for (size_t begin = 0; begin < bytes; begin += kReportBytes) {
    const size_t end = std::min(bytes, begin + kReportBytes);
    TouchPages(weight.view.as<std::byte>() + begin, end - begin);
    const double share = static_cast<double>(end) / static_cast<double>(bytes);
    if (progress_) {
      progress_(
          static_cast<float>(std::min(1.0, (static_cast<double>(done_bytes_) + share * file_bytes) /
                                               static_cast<double>(total_bytes_))));
    }
  }
  done_bytes_ += static_cast<int64_t>(entry.end - entry.begin);
  return weight;
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
