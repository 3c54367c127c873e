#include "tools/make_checkpoint/synthetic_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checkpoint/read_file.h"
#include "common/checkpoint/tensor_table.h"
#include "common/model_config.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "tools/make_checkpoint/fill_tensor.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kPieceValues = 1 << 20;  // what a thread makes and writes at a time

struct Tensor {
  std::string name;
  TensorShape shape;
  int64_t values = 1;
  int64_t begin = 0;  // in bytes, after its file's header
  int64_t bytes() const { return values * static_cast<int64_t>(sizeof(BF16)); }
};

struct File {
  std::string name;
  std::vector<Tensor> tensors;
  int64_t bytes = 0;
};

// All tensors in the order of the layers, cut into files.
absl::StatusOr<std::vector<File>> PlanFiles(const ModelConfig& config, int64_t file_bytes) {
  std::vector<File> files(1);
  TANDEM_RETURN_IF_ERROR(
      ForEachNeededTensor(config, [&](const std::string& name, const TensorShape& shape) {
        Tensor tensor{name, shape};
        for (const int64_t dim : shape) tensor.values *= dim;
        if (files.back().bytes > 0 && files.back().bytes + tensor.bytes() > file_bytes) {
          files.emplace_back();
        }
        tensor.begin = files.back().bytes;
        files.back().bytes += tensor.bytes();
        files.back().tensors.push_back(std::move(tensor));
        return absl::OkStatus();
      }));
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].name = files.size() == 1
                        ? "model.safetensors"
                        : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, files.size());
  }
  return files;
}

absl::Status CannotWrite(const fs::path& path, int error) {
  return absl::UnavailableError(
      absl::StrCat("cannot write ", path.string(), ": ", std::generic_category().message(error)));
}

absl::Status WriteText(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  return out ? absl::OkStatus() : CannotWrite(path, errno);
}

// The length of the header and the header, padded so that the values are aligned.
std::string HeaderOf(const File& file) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  for (const Tensor& tensor : file.tensors) {
    header[tensor.name] = {{"dtype", "BF16"},
                           {"shape", tensor.shape},
                           {"data_offsets", {tensor.begin, tensor.begin + tensor.bytes()}}};
  }
  std::string text = header.dump();
  text.append((64 - (sizeof(uint64_t) + text.size()) % 64) % 64, ' ');
  const uint64_t length = text.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + text;
}

// 0, or the error that it ends with.
int WriteAt(int fd, const void* data, int64_t bytes, int64_t offset) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = pwrite(fd, next, static_cast<size_t>(bytes), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    next += n;
    bytes -= n;
    offset += n;
  }
  return 0;
}

// Whether nothing that decides where rows go depends on it.
bool MayBeHollow(const std::string& name) {
  return name == "lm_head.weight" || absl::EndsWith(name, "gate_proj.weight") ||
         absl::EndsWith(name, "up_proj.weight") || absl::EndsWith(name, "down_proj.weight");
}

absl::Status WriteWeights(const File& file, const fs::path& path, const SyntheticOptions& options) {
  struct Piece {
    const Tensor* tensor;
    int64_t first;
    int64_t count;
  };
  std::vector<Piece> pieces;
  int64_t bytes = 0;
  for (const Tensor& tensor : file.tensors) {
    bytes += tensor.bytes();
    if (options.empty) continue;
    if (options.hollow && MayBeHollow(tensor.name)) continue;
    for (int64_t first = 0; first < tensor.values; first += kPieceValues) {
      pieces.push_back({&tensor, first, std::min(kPieceValues, tensor.values - first)});
    }
  }
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return CannotWrite(path, errno);
  const std::string header = HeaderOf(file);
  std::atomic<int> error = WriteAt(fd, header.data(), static_cast<int64_t>(header.size()), 0);
  if (error == 0 && ftruncate(fd, static_cast<int64_t>(header.size()) + bytes) != 0) error = errno;
  std::atomic<size_t> next_piece = 0;
  const auto work = [&] {
    std::vector<BF16> values(kPieceValues);
    for (size_t i; error == 0 && (i = next_piece++) < pieces.size();) {
      const auto& [tensor, first, count] = pieces[i];
      FillTensor(options.seed, tensor->name, absl::MakeSpan(values).first(count), first);
      const int64_t offset = tensor->begin + first * static_cast<int64_t>(sizeof(BF16));
      const int failed = WriteAt(fd, values.data(), count * static_cast<int64_t>(sizeof(BF16)),
                                 static_cast<int64_t>(header.size()) + offset);
      if (failed != 0) error = failed;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < options.threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (close(fd) != 0 && error == 0) error = errno;
  return error == 0 ? absl::OkStatus() : CannotWrite(path, error);
}

absl::Status WriteIndex(const std::vector<File>& files, int64_t total_bytes, const fs::path& path) {
  Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", Json::object()}};
  for (const File& file : files) {
    for (const Tensor& tensor : file.tensors) index["weight_map"][tensor.name] = file.name;
  }
  return WriteText(path, index.dump(2) + "\n");
}

absl::Status MakeEmptyFolder(const fs::path& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) return CannotWrite(dir, error.value());
  for (const fs::directory_entry& entry : fs::directory_iterator(dir, error)) {
    if (entry.path().extension() != ".safetensors") continue;
    return absl::FailedPreconditionError(absl::StrCat(dir.string(), " has weights already"));
  }
  return error ? CannotWrite(dir, error.value()) : absl::OkStatus();
}

absl::Status CopyTokenizer(const fs::path& from, const fs::path& to) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    std::error_code error;
    if (!fs::exists(from / name, error)) continue;
    fs::copy_file(from / name, to / name, fs::copy_options::overwrite_existing, error);
    if (error) return CannotWrite(to / name, error.value());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SyntheticSummary> WriteSyntheticCheckpoint(const SyntheticOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(std::string text, ReadSmallFile(options.config_path, kMaxConfigBytes));
  if (options.layers > 0) {
    Json config = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (config.is_object()) {  // else it is refused below
      config["num_hidden_layers"] = options.layers;
      text = config.dump(2) + "\n";
    }
  }
  TANDEM_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(text, options.config_path));
  TANDEM_ASSIGN_OR_RETURN(const std::vector<File> files, PlanFiles(config, options.file_bytes));

  const fs::path out_dir = options.out_dir;
  TANDEM_RETURN_IF_ERROR(MakeEmptyFolder(out_dir));
  SyntheticSummary summary{0, static_cast<int>(files.size()), config.num_layers};
  for (const File& file : files) {
    TANDEM_RETURN_IF_ERROR(WriteWeights(file, out_dir / file.name, options));
    summary.bytes += file.bytes;
  }
  if (files.size() > 1) {
    TANDEM_RETURN_IF_ERROR(
        WriteIndex(files, summary.bytes, out_dir / "model.safetensors.index.json"));
  }
  TANDEM_RETURN_IF_ERROR(CopyTokenizer(fs::path(options.config_path).parent_path(), out_dir));
  TANDEM_RETURN_IF_ERROR(WriteText(out_dir / "config.json", text));
  return summary;
}

}  // namespace tandem
